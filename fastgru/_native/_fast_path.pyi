from collections.abc import Callable
from typing import Any

import numpy as np

from fastgru._native._weights import PackedWeights

def call(
    packed: PackedWeights,
    x: Any,
    sequences: bool,
    with_state: bool,
    reverse: bool,
    get_num_threads: Callable[[], int],
) -> Any: ...
def step(
    packed: PackedWeights, x: Any, h0: Any, get_num_threads: Callable[[], int]
) -> np.ndarray | None: ...
