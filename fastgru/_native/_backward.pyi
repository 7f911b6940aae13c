from typing import Any

import numpy as np

from fastgru._native._fused import Fused
from fastgru.problem import GRUProblem

def backward(
    packed: Fused,
    problem: GRUProblem,
    workspace: Any,
    states: np.ndarray,
    dy: np.ndarray | None,
    dstate: np.ndarray | None,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]: ...
