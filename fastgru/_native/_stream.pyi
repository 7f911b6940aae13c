from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastgru._native._weights import PackedWeights
from fastgru.problem import GRUSpec, GRUWeights

class Stepper:
    def __init__(
        self,
        specs: Sequence[GRUSpec],
        states: list[np.ndarray],
        outputs: list[np.ndarray],
        pack: Callable[[GRUSpec, GRUWeights], PackedWeights | None],
        get_num_threads: Callable[[], int],
    ) -> None: ...
    def step(
        self, weights: Sequence[GRUWeights], x: Any, rows: Any = None
    ) -> np.ndarray | None: ...
