"""What a peer gives for a task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from problems import Float32Array


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be timed.

    Attributes
    ----------
    call : callable
        Takes nothing, returns the peer's own result, complete (no work still under way).
    to_numpy : callable
        Turns that result into an array, or a tuple of arrays, float32 in Keras' layout, as the
        task's reference lists them; never timed.
    """

    call: Callable[[], Any]
    to_numpy: Callable[[Any], Float32Array | tuple[Float32Array, ...]]
