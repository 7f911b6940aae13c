import numpy as np

from fastgru._native._fused import Fused

class Stepper:
    state: np.ndarray
    output: np.ndarray
    def __init__(self, state: np.ndarray, output: np.ndarray) -> None: ...
    def step(self, packed: Fused, x: np.ndarray, rows: np.ndarray | None, threads: int) -> None: ...
