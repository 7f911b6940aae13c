"""Dropout masks, drawn before the loop over time.

A draw depends only on the seed, on the stream (inputs or states) and on the number of draws before.
Dtype, backend and threads do not change it (docs/semantics.md 7).
"""

from __future__ import annotations

import numpy as np

from fastgru import locks
from fastgru.seeds import fresh_seed

INPUT = 0
RECURRENT = 1


class DropoutGenerator:
    """The seeded source of one cell's dropout masks.

    Parameters
    ----------
    seed : int or None
        None takes a new seed, see `fastgru.set_random_seed`.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is None:
            self.entropy = fresh_seed()
        elif isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"seed: expected an integer or None, got {seed!r}")
        elif seed.__index__() < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        else:
            self.entropy = int(seed.__index__())
        self._counts = [0, 0]

    def draw(
        self, stream: int, shape: tuple[int, ...], rate: float, dtype: np.dtype, count: int = 1
    ) -> np.ndarray:
        """Return ``count`` masks of ``shape``: 0 with probability ``rate``, else 1 / (1 - rate).

        Parameters
        ----------
        stream : {INPUT, RECURRENT}
            Each of the two masks of a call has a stream, so that draws of one do not change the
            other.

        Returns
        -------
        ndarray, shape (count, *shape)
        """
        with locks.counting:
            call = self._counts[stream]
            self._counts[stream] += 1
        if rate >= 1.0:
            return np.zeros((count, *shape), dtype)
        key = np.random.SeedSequence(self.entropy, spawn_key=(stream, call))
        uniform = np.random.Generator(np.random.Philox(key)).random((count, *shape), np.float32)
        return (uniform >= np.float32(rate)).astype(dtype) * dtype.type(1.0 / (1.0 - rate))
