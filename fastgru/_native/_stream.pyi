from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastgru._native._weights import PackedWeights
from fastgru.problem import GRUSpec, GRUWeights

class Stepper:
    def __init__(
        self,
        specs: Sequence[GRUSpec],
        sources: Sequence[Any],
        states: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        weights_of: Callable[[Any], GRUWeights | None],
        forced: Callable[[], str | None],
        pack: Callable[[GRUSpec, GRUWeights], PackedWeights | None],
        get_num_threads: Callable[[], int],
    ) -> None: ...
    def step(self, x: Any, rows: Any = None) -> np.ndarray | None: ...
