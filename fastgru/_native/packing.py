"""Weights in the order in which the fused loop reads them: panels of a few vectors of units.

A panel is [k][gate][lane]: for each k the weights of one vector of units, gate after gate. The
last panel is padded with zeros. loop.h says which matrix is packed how.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastgru._native._packing import pack_panels


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array at a 64-byte boundary: a vector never crosses a cache line."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)  # zeros would be fresh pages every time
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def panels(matrix: np.ndarray, gates: int, lanes: int) -> np.ndarray:
    """Pack a (K, gates * H) matrix of any strides: (panels, K, gates, lanes)."""
    depth, columns = matrix.shape
    units = columns // gates
    packed = aligned((-(-units // lanes), depth, gates, lanes), matrix.dtype)
    pack_panels(matrix.reshape(depth, gates, units), packed)
    return packed


def biases(spec: Any, weights: Any, lanes: int) -> np.ndarray:
    """Pack the biases: (panels, 4, lanes) of z, r, h of the input, h of the recurrence."""
    units = spec.units
    rows = np.zeros((4, units), spec.dtype)
    if weights.bias is not None:
        given = np.atleast_2d(weights.bias)
        rows[:3] = given[0].reshape(3, units)
        if spec.reset_after:
            rows[:2] += given[1, : 2 * units].reshape(2, units)
            rows[3] = given[1, 2 * units :]
    return panels(rows.reshape(1, 4 * units), 4, lanes)[:, 0]


def forward_panels(
    spec: Any, weights: Any, lanes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Return w, u, uh (None with reset_after) and the biases, packed.

    ``spec`` is a GRUSpec and ``weights`` a GRUWeights; nothing here knows more of them than names.
    """
    w = panels(weights.kernel, 3, lanes)
    u, uh = weights.recurrent_kernel, None
    if not spec.reset_after:
        uh = panels(u[:, 2 * spec.units :], 1, lanes)
        u = u[:, : 2 * spec.units]
    gates = 3 if spec.reset_after else 2
    return w, panels(u, gates, lanes), uh, biases(spec, weights, lanes)


def backward_panels(
    kernel: np.ndarray, recurrent_kernel: np.ndarray, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return U^T, its rows z, r, h, for the carry, and W^T, its rows h, z, r, for the inputs."""
    inputs, columns = kernel.shape
    packed = aligned((-(-inputs // (2 * lanes)), columns, 1, 2 * lanes), kernel.dtype)
    units = columns // 3
    rows = kernel.T.reshape(columns, 1, inputs)
    pack_panels(rows[2 * units :], packed)
    pack_panels(rows[: 2 * units], packed, units)
    return panels(recurrent_kernel.T, 1, 2 * lanes), packed
