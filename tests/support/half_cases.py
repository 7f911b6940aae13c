"""Random layers in 16 bits, and what Keras on JAX gives for them.

    KERAS_BACKEND=jax python tests/support/half_cases.py FIRST COUNT FILE.npz

writes Keras' outputs, in float32, which holds them exactly.
"""

import os
import sys
from typing import NamedTuple

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np

POLICIES = ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
ACTIVATIONS = ["tanh", "tanh", "tanh", "softsign", "hard_tanh", "sigmoid"]
GATES = ["sigmoid", "sigmoid", "sigmoid", "hard_sigmoid"]


class HalfCase(NamedTuple):
    """A layer: ``cells`` are its cells' arguments, ``layer`` its own; and how it is called."""

    kind: str  # gru, rnn (one cell), stacked or bidirectional
    policy: str
    cells: list[dict]
    layer: dict
    merge_mode: str | None
    x: np.ndarray
    mask: np.ndarray | None
    states: list[np.ndarray] | None
    weights: list[np.ndarray]  # float32

    @property
    def dtype(self):
        """What the layer computes in."""
        return self.policy.removeprefix("mixed_")


def numbered(index):
    """Return configuration ``index`` of the fixed sequence."""
    rng = np.random.default_rng([16, index])

    def choose(options):
        return options[int(rng.integers(len(options)))]

    kind = choose(["gru", "gru", "rnn", "stacked", "bidirectional"])
    policy = choose(POLICIES)
    dtype = policy.removeprefix("mixed_")
    # Few shapes, since JAX compiles each operation for each of them.
    batch, inputs = choose([(1, 8), (3, 4)])
    steps = choose([1, 2, 3, 5, 8, 13, 30])
    cells = [
        {
            "units": choose([5, 33]),
            "activation": choose(ACTIVATIONS),
            "recurrent_activation": choose(GATES),
            "use_bias": choose([True, True, False]),
            "reset_after": choose([True, False]),
            "recurrent_initializer": "glorot_uniform",  # JAX has no orthogonal one in 16 bits
        }
        for _ in range(choose([2, 3]) if kind == "stacked" else 1)
    ]
    layer = {
        "return_sequences": choose([True, False]),
        "return_state": choose([True, False]),
        "go_backwards": kind != "bidirectional" and choose([False, True]),
        "zero_output_for_mask": choose([False, False, False, True]),
    }
    x = rng.standard_normal((batch, steps, inputs)).astype(dtype)
    mask = None
    if choose([False, True]):
        mask = rng.random((batch, steps)) < 0.7
        # Where Keras' loop starts with a masked step it repeats the initial state: semantics.md 2.
        mask[:, -1 if layer["go_backwards"] else 0] = True
        if kind == "bidirectional":
            mask[:, -1] = True
    halves = 2 if kind == "bidirectional" else 1
    states = None
    if choose([False, True]):
        sizes = [cell["units"] for cell in cells] * halves
        states = [rng.uniform(-1, 1, (batch, size)).astype(dtype) for size in sizes]
    weights = []
    for _ in range(halves):
        width = inputs
        for cell in cells:
            columns = 3 * cell["units"]
            shapes = [(width, columns), (cell["units"], columns)]
            if cell["use_bias"]:
                shapes.append((2, columns) if cell["reset_after"] else (columns,))
            weights += [rng.normal(0, 0.5 * shape[0] ** -0.5, shape) for shape in shapes]
            width = cell["units"]
    merge_mode = choose(["concat", "sum", "mul", "ave"]) if kind == "bidirectional" else None
    weights = [w.astype(np.float32) for w in weights]
    return HalfCase(kind, policy, cells, layer, merge_mode, x, mask, states, weights)


def build(case, layers, policy=None):
    """Return the layer of either library, with the case's weights."""
    dtype = policy or case.policy
    cells, arguments = case.cells, {**case.layer, "dtype": dtype}
    if case.kind in ("gru", "bidirectional"):
        layer = layers.GRU(**cells[0], **arguments)
        if case.kind == "bidirectional":
            layer = layers.Bidirectional(layer, merge_mode=case.merge_mode, dtype=dtype)
    else:
        made = [layers.GRUCell(**cell, dtype=dtype) for cell in cells]
        cell = made[0] if case.kind == "rnn" else layers.StackedRNNCells(made, dtype=dtype)
        layer = layers.RNN(cell, **arguments)
    layer.build(case.x.shape)
    layer.set_weights([w.astype(v.dtype) for w, v in zip(case.weights, layer.weights, strict=True)])
    return layer


def flatten(nested):
    """Return the arrays of nested lists in order, as float32."""
    if isinstance(nested, (list, tuple)):
        return [array for part in nested for array in flatten(part)]
    return [np.asarray(nested).astype(np.float32)]


def unrolled(case):
    """Whether Keras unrolls its loop.

    It is faster then, since JAX compiles no loop; but zero_output_for_mask, which a Bidirectional
    turns on for sequences, is read by the other loop only.
    """
    zeros = case.layer["zero_output_for_mask"]
    if case.kind == "bidirectional":
        zeros = zeros or case.layer["return_sequences"]
    return case.mask is None or not zeros


def of_keras(case):
    """Return what Keras' layer gives, and check the dtypes of its members."""
    import keras

    layer = build(case, keras.layers)
    for half in (getattr(layer, "forward_layer", layer), getattr(layer, "backward_layer", layer)):
        half.use_cudnn = False  # Keras' fused loop for JAX fails where weights are float32
    states = case.states
    if case.kind == "stacked" and states is not None:
        states = [[state] for state in states]
        half.unroll = unrolled(case)
    outputs = layer(case.x, initial_state=states, mask=case.mask)
    parts = [layer.dtype, layer.compute_dtype, layer.variable_dtype, layer.dtype_policy.name]
    return flatten(outputs), parts


if __name__ == "__main__":
    first, count, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    assert os.environ["KERAS_BACKEND"] == "jax"
    found = {}
    for index in range(first, first + count):
        arrays, parts = of_keras(numbered(index))
        found.update({f"{index}.{i}": array for i, array in enumerate(arrays)})
        found[f"{index}.members"] = np.array(parts)
    np.savez(file, **found)
