"""Weights in the order in which the fused loop reads them: panels of a few vectors of units.

A panel is [k][gate][lane]: for each k the weights of one vector of units, gate after gate. The
last panel is padded with zeros. job.h says which matrix is packed how.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru._native._packing import panels


def biases(spec: Any, weights: Any, lanes: int) -> np.ndarray:
    """Pack the biases: (panels, 4, lanes) of z, r, h of the input, h of the recurrence."""
    units = spec.units
    rows = np.zeros(4 * units, spec.dtype)
    if weights.bias is not None:
        given = weights.bias
        if given.ndim == 1:
            rows[: 3 * units] = given
        else:
            rows[: 3 * units] = given[0]
            if spec.reset_after:
                rows[: 2 * units] += given[1, : 2 * units]
                rows[3 * units :] = given[1, 2 * units :]
    return panels(rows.reshape(1, 4 * units), 4, lanes, 1)


def forward_panels(
    spec: Any, weights: Any, lanes: int, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Return w, u, uh (None with reset_after) and the biases, packed.

    ``spec`` is a GRUSpec and ``weights`` a GRUWeights; nothing here knows more of them than names.
    """
    w = panels(weights.kernel, 3, lanes, threads)
    u, uh = weights.recurrent_kernel, None
    if not spec.reset_after:
        uh = panels(u[:, 2 * spec.units :], 1, lanes, threads)
        u = u[:, : 2 * spec.units]
    gates = 3 if spec.reset_after else 2
    return w, panels(u, gates, lanes, threads), uh, biases(spec, weights, lanes)


def backward_panels(
    kernel: np.ndarray, recurrent_kernel: np.ndarray, lanes: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return U^T, its rows z, r, h, for the carry, and W^T, its rows h, z, r, for the inputs."""
    units = len(recurrent_kernel)
    return (
        panels(recurrent_kernel.T, 1, 2 * lanes, threads),
        panels(kernel.T, 1, 2 * lanes, threads, units),
    )
