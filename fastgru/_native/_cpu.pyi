import numpy as np

from fastgru.problem import GRUProblem, GRUSpec, GRUWeights

class Packed:
    spec: GRUSpec
    panels: bool
    def __init__(self, spec: GRUSpec, weights: GRUWeights, panels: bool) -> None: ...

def forward(
    packed: Packed, problem: GRUProblem, threads: int, save: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]: ...
def set_blas_functions(get_threads: int, set_threads: int) -> None: ...
