import numpy as np

def aligned(
    shape: tuple[int, ...], dtype: np.dtype, memory: np.ndarray | None = None
) -> np.ndarray: ...
def panels(
    matrix: np.ndarray, gates: int, lanes: int, threads: int, rotation: int = 0
) -> np.ndarray: ...
