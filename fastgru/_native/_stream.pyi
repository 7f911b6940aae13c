from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np

from fastgru._native._fused import Fused
from fastgru.problem import GRUSpec, GRUWeights

class Stepper:
    def __init__(
        self,
        cells: list[Any],
        states: list[np.ndarray],
        outputs: list[np.ndarray],
        forced: ContextVar[str | None],
        pack: Callable[[GRUSpec, GRUWeights], Fused | None],
        get_num_threads: Callable[[], int],
    ) -> None: ...
    def step(self, x: Any, rows: Any = None) -> np.ndarray | None: ...
