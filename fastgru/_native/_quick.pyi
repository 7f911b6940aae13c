from collections.abc import Callable
from typing import Any

import numpy as np

from fastgru._native._fused import Fused

def quick(
    packed: Fused,
    x: Any,
    sequences: bool,
    with_state: bool,
    reverse: bool,
    get_num_threads: Callable[[], int],
) -> Any: ...
def step(
    packed: Fused, x: Any, h0: Any, get_num_threads: Callable[[], int]
) -> np.ndarray | None: ...
