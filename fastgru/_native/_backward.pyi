from typing import Any

import numpy as np

from fastgru._native._weights import PackedWeights
from fastgru.problem import GRUProblem

def backward(
    packed: PackedWeights,
    problem: GRUProblem,
    workspace: Any,
    states: np.ndarray,
    dy: np.ndarray | None,
    dstate: np.ndarray | None,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]: ...
