from typing import Any

import numpy as np

from fastgru.problem import GRUSpec, GRUWeights

class PackedWeights:
    spec: GRUSpec
    lanes: int
    panels: int
    dtype: np.dtype
    sums: np.dtype
    def __init__(self, spec: GRUSpec, weights: GRUWeights, threads: int) -> None: ...
    def is_current(self) -> bool: ...

def aligned(
    shape: tuple[int, ...], dtype: np.dtype, memory: np.ndarray | None = None
) -> np.ndarray: ...
def forward_panels(
    spec: Any, weights: Any, lanes: int, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]: ...
def backward_panels(
    kernel: np.ndarray, recurrent_kernel: np.ndarray, lanes: int, threads: int
) -> tuple[np.ndarray, np.ndarray]: ...
