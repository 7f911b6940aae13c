import numpy as np

from fastgru.problem import GRUProblem, GRUSpec, GRUWeights

class Fused:
    spec: GRUSpec
    lanes: int
    def __init__(self, spec: GRUSpec, weights: GRUWeights, threads: int) -> None: ...

class Workspace:
    gates: np.ndarray
    reset_state: np.ndarray | None
    rows: int
    slots: np.ndarray | None
    taken: np.ndarray | None
    def __init__(self, problem: GRUProblem, packed: Fused) -> None: ...
    def release(self) -> None: ...

def lanes(itemsize: int) -> int: ...
def forward(
    packed: Fused, problem: GRUProblem, threads: int, save: bool, keep_gates: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Workspace | None]: ...
