"""What the tests of layers share: an oracle of another build, and layers with full weights.

`oracle` is written from docs/semantics.md one row and one step at a time, with no array tricks and
nothing of the library in it, so that a mistake in the reference backend cannot hide in it.
"""

from contextlib import contextmanager

import numpy as np
import pytest

import fastgru

# B, T, I, H all different: a swapped axis shows as a wrong shape or a wrong number.
B, T, I, H = 4, 7, 3, 5

# The figures: absolute, after 50 steps.
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


def rng(seed=0):
    return np.random.default_rng(seed)


def sequences(dtype="float64", seed=1, shape=(B, T, I)):
    return rng(seed).normal(size=shape).astype(dtype)


def state(dtype="float64", seed=2, shape=(B, H)):
    return rng(seed).normal(size=shape).astype(dtype)


def fill(layer, seed=3, scale=0.5, features=I):
    """Build the layer and give every weight, biases included, random values of its own."""
    if not layer.built:
        layer.build((None, None, features))
    draw = rng(seed)
    layer.set_weights([(scale * draw.normal(size=v.shape)).astype(v.dtype) for v in layer.weights])
    return layer


def gru(units=H, *, seed=3, scale=0.5, features=I, dtype="float64", **arguments):
    """Return a built GRU with random weights."""
    return fill(fastgru.GRU(units, dtype=dtype, **arguments), seed, scale, features)


MASKS = {
    "none": None,
    "right_padded": np.arange(T) < np.array([[7], [3], [1], [5]]),
    "left_padded": np.arange(T) >= np.array([[0], [3], [6], [2]]),
    "holes": np.array(
        [[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0], [1] * 7], bool
    ),
    "empty_row": np.array(
        [[0, 1, 1, 0, 1, 0, 0], [0] * 7, [1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]], bool
    ),
}
RESETS = np.array(
    [[0, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1], [0] * 7, [0, 1, 1, 0, 1, 0, 0]], bool
)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def oracle(
    x,
    weights,
    h0=None,
    *,
    reset_after=True,
    act=np.tanh,
    recurrent_act=sigmoid,
    valid=None,
    resets=None,
    reverse=False,
    zero_output=False,
    drop=None,
    recurrent_drop=None,
):
    """Return y (B, T, H) in processing order and the state (B, H), in float64.

    ``drop`` is (3, B, I), ``recurrent_drop`` (3, B, H), gate order z r h.
    """
    kernel, recurrent, *rest = (np.asarray(w, np.float64) for w in weights)
    units = recurrent.shape[0]
    wz, wr, wh = kernel[:, :units], kernel[:, units : 2 * units], kernel[:, 2 * units :]
    uz, ur, uh = recurrent[:, :units], recurrent[:, units : 2 * units], recurrent[:, 2 * units :]
    bias = rest[0] if rest else np.zeros((2, 3 * units))
    rows = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])
    (bz, br, bh), (cz, cr, ch) = (row.reshape(3, units) for row in rows)
    x = np.asarray(x, np.float64)
    batch, steps, _ = x.shape
    y = np.zeros((batch, steps, units))
    final = np.zeros((batch, units)) if h0 is None else np.array(h0, np.float64)
    for b in range(batch):
        h, previous = final[b], np.zeros(units)
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            if resets is not None and resets[b, t]:
                h = np.zeros(units)
            if valid is not None and not valid[b, t]:
                y[b, s] = 0 if zero_output else previous
                continue
            xz = xr = xh = x[b, t]
            hz = hr = hh = h
            if drop is not None:
                xz, xr, xh = (x[b, t] * drop[g][b] for g in range(3))
            if recurrent_drop is not None:
                hz, hr, hh = (h * recurrent_drop[g][b] for g in range(3))
            z = recurrent_act(xz @ wz + bz + hz @ uz + cz)
            r = recurrent_act(xr @ wr + br + hr @ ur + cr)
            if reset_after:
                n = act(xh @ wh + bh + r * (hh @ uh + ch))
            else:
                n = act(xh @ wh + bh + (r * hh) @ uh)
            h = z * h + (1 - z) * n
            previous = y[b, s] = h
        final[b] = h
    return y, final


def flatten(nested):
    """Return the arrays in nested lists and tuples, in order."""
    if isinstance(nested, (list, tuple)):
        return [leaf for part in nested for leaf in flatten(part)]
    return [np.asarray(nested)]


def rewind(layer):
    """Make the next dropout masks those of the first call."""
    for cell in cells_of(layer):
        cell.seed_generator._counts = [0, 0]


def cells_of(layer):
    """Return the GRU cells in a layer."""
    if hasattr(layer, "layers"):
        return [cell for part in layer.layers for cell in cells_of(part)]
    if hasattr(layer, "forward_layer"):
        return cells_of(layer.forward_layer) + cells_of(layer.backward_layer)
    inner = getattr(layer, "cell", layer)
    if hasattr(inner, "cells"):
        return [cell for part in inner.cells for cell in cells_of(part)]
    return [inner]


def draws(layer):
    """Return how many dropout masks each cell has drawn."""
    return [list(cell.seed_generator._counts) for cell in cells_of(layer)]


@contextmanager
def served_by(name):
    """Serve every call inside by one backend; skip the test where it says itself that it cannot."""
    reason = fastgru.GRU(2).explain(np.zeros((1, 1, 1), "float32")).reasons[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    with fastgru.use_backend(name):
        yield


def near(actual, expected, dtype="float64"):
    """Assert equality to the tolerance of the dtype, and the dtype itself."""
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype])
