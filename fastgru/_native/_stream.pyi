from collections.abc import Callable
from typing import Any

import numpy as np

from fastgru._native._weights import PackedWeights
from fastgru.backends.base import StreamParts
from fastgru.problem import GRUSpec, GRUWeights

class Stepper:
    def __init__(
        self,
        parts: StreamParts,
        pack: Callable[[GRUSpec, GRUWeights], PackedWeights | None],
        get_num_threads: Callable[[], int],
    ) -> None: ...
    def step(self, x: Any, rows: Any = None) -> np.ndarray | None: ...
