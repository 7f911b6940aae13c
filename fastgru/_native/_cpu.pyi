from typing import Any

import numpy as np

from fastgru.problem import GRUProblem, GRUSpec, GRUWeights

OPENMP: bool
ISA_NAMES: list[str]
ACTIVATIONS: frozenset[str]

class Packed:
    spec: GRUSpec
    panels: bool
    def __init__(self, spec: GRUSpec, weights: GRUWeights, panels: bool) -> None: ...

def forward(
    packed: Packed, problem: GRUProblem, threads: int, save: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]: ...
def apply_activation(activation: Any, values: np.ndarray) -> None: ...
def set_isa(name: str) -> None: ...
def get_isa() -> str: ...
def supported_isas() -> list[str]: ...
