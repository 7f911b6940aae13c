from collections.abc import Callable
from typing import Any

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

def lanes(itemsize: int) -> int: ...
def quick(
    packed: Fused,
    x: Any,
    sequences: bool,
    with_state: bool,
    reverse: bool,
    get_num_threads: Callable[[], int],
) -> Any: ...
def step(
    packed: Fused, x: Any, h0: Any, get_num_threads: Callable[[], int]
) -> np.ndarray | None: ...
def forward(
    packed: Fused, problem: GRUProblem, threads: int, save: bool, keep_gates: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Workspace | None]: ...
