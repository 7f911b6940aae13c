"""Seeds of initializers and dropout that were given none, and `set_random_seed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgru import locks

if TYPE_CHECKING:
    from numpy.random import SeedSequence

_source: SeedSequence | None = None  # None: the operating system


def set_random_seed(seed: int) -> None:
    """Make random weights and dropout masks the same in each run, as `keras.utils.set_random_seed`.

    It also seeds Python's ``random`` and NumPy's ``np.random``, as Keras' does. Initializers and
    layers with a ``seed`` of their own keep it.

    Parameters
    ----------
    seed : int
        From 0 to 2**32 - 1.

    Raises
    ------
    ValueError
        Another number.
    TypeError
        It is no integer.
    """
    global _source
    import random

    import numpy as np

    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed: expected an integer, got {seed!r}")
    number = seed.__index__()
    if not 0 <= number < 1 << 32:
        raise ValueError(f"seed: expected an integer from 0 to 2**32 - 1, got {number}")
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  as Keras does
    with locks.counting:
        _source = np.random.SeedSequence(number)


def fresh_seed() -> int:
    """Return 128 bits that nobody else gets: after `set_random_seed` the next of its sequence."""
    from numpy.random import SeedSequence  # slow to import, and loaded layers do not need it

    with locks.counting:
        sequence = SeedSequence() if _source is None else _source.spawn(1)[0]
    return int.from_bytes(sequence.generate_state(4).tobytes(), "little")
