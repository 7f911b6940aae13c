import numpy as np

from fastgru._native._weights import PackedWeights
from fastgru.problem import GRUProblem

class Workspace:
    gates: np.ndarray
    reset_state: np.ndarray | None
    rows: int
    slots: np.ndarray | None
    taken: np.ndarray | None
    def __init__(self, problem: GRUProblem, packed: PackedWeights) -> None: ...
    def release(self) -> None: ...

def forward(
    packed: PackedWeights, problem: GRUProblem, threads: int, save: bool, keep_gates: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Workspace | None]: ...
