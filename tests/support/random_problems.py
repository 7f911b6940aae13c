"""Problems and weights drawn at random for the backends, and the same in float64."""

import numpy as np

from fastgru import activations
from fastgru.backends.reference import ReferenceBackend
from fastgru.masks import NO_MASK, plan_mask, plan_resets
from fastgru.problem import GRUProblem, GRUSpec, GRUWeights

REFERENCE = ReferenceBackend()

# Absolute up to size 1, relative above, against the reference in float64: sums of size ~1 of a few
# hundred products, and states that pass rounding differences on from step to step.
TOLERANCE = {"float32": 5e-6, "float64": 1e-13}

ELEMENTWISE = [
    activations.get(name)
    for name in sorted(activations._TABLE)
    if name != "threshold" and activations.get(name).elementwise
] + [
    activations.relu.with_params(negative_slope=0.1, max_value=0.7, threshold=0.2),
    activations.relu.with_params(threshold=-0.3),
    activations.relu.with_params(negative_slope=0.2),
    activations.relu.with_params(max_value=6.0),
    activations.threshold.with_params(0.1, -0.2),
    activations.elu.with_params(alpha=0.7),
    activations.celu.with_params(alpha=0.6),
    activations.leaky_relu.with_params(0.3),
    activations.gelu.with_params(approximate=True),
    activations.squareplus.with_params(b=2.0),
    activations.soft_shrink.with_params(threshold=0.3),
    activations.hard_shrink.with_params(threshold=0.3),
]

# A gate outside [0, 1] makes the layer chaotic: a rounding difference grows at every step.
GATES = ["sigmoid", "sparse_sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"]
BOUNDED = [*GATES, "tanh", "hard_tanh", "softsign"]


def make_spec(inputs, units, dtype="float32", **changes):
    values = {
        "activation": activations.tanh,
        "recurrent_activation": activations.sigmoid,
        "use_bias": True,
        "reset_after": True,
    }
    return GRUSpec(inputs, units, np.dtype(dtype), **(values | changes))


def make_weights(rng, spec):
    def draw(*shape):
        return (rng.standard_normal(shape) * (1 / max(shape[0], 1)) ** 0.5).astype(spec.dtype)

    units = spec.units
    bias = draw(*((2,) if spec.reset_after else ()), 3 * units) if spec.use_bias else None
    return GRUWeights(draw(spec.input_dim, 3 * units), draw(units, 3 * units), bias)


def widened(problem, weights):
    """Return the same problem in float64, for the reference."""

    def wide(array):
        return None if array is None else np.asarray(array, np.float64)

    p = problem
    spec = p.spec._replace(dtype=np.dtype(np.float64))
    return GRUProblem(
        spec=spec,
        x=wide(p.x),
        h0=wide(p.h0),
        mask=p.mask,
        resets=p.resets,
        dropout=wide(p.dropout),
        recurrent_dropout=wide(p.recurrent_dropout),
        reverse=p.reverse,
        return_sequences=p.return_sequences,
        zero_output_for_mask=p.zero_output_for_mask,
    ), GRUWeights(wide(weights.kernel), wide(weights.recurrent_kernel), wide(weights.bias))


def draw_mask(rng, kind, batch, steps):
    if kind == "lengths":
        return plan_mask(None, rng.integers(0, steps + 1, batch), batch, steps)
    if kind == "steps":
        mask = rng.random((batch, steps)) < 0.6
        mask[: batch // 4] = False
        return plan_mask(mask, None, batch, steps)
    return NO_MASK


def draw_problem(seed):
    """Return a random problem and weights, anything that a layer allows."""
    rng = np.random.default_rng(seed)

    def flag(chance=0.5):
        return bool(rng.random() < chance)

    batch = int(rng.choice([1, 2, 3, 5, 7, 8, 17, 40]))
    steps = int(rng.choice([1, 2, 3, 6, 12]))
    inputs = int(rng.choice([0, 1, 3, 10, 33, 70]))
    units = int(rng.choice([1, 4, 11, 16, 33, 64, 65, 100, 130]))
    fast = flag(0.6)
    spec = make_spec(
        inputs,
        units,
        str(rng.choice(["float32", "float64"])),
        activation=activations.tanh if fast else activations.get(rng.choice(BOUNDED)),
        recurrent_activation=activations.sigmoid if fast else activations.get(rng.choice(GATES)),
        use_bias=flag(0.8),
        reset_after=flag(),
    )
    weights = make_weights(rng, spec)
    x = rng.standard_normal((batch, steps, inputs)).astype(spec.dtype)
    mask = draw_mask(rng, rng.choice(["none", "lengths", "steps"]), batch, steps)
    valid = mask.valid(steps)
    if valid is not None:
        x[~valid] = np.nan  # docs/semantics.md 4
    h0 = rng.standard_normal((batch, units)).astype(spec.dtype) if flag(0.7) else None
    resets = plan_resets(rng.random((batch, steps)) < 0.2, batch, steps) if flag(0.3) else None

    def dropout_mask(*shape):
        return ((rng.random(shape) < 0.7) / 0.7).astype(spec.dtype)

    dropout = recurrent_dropout = None
    if flag(0.3):
        dropout = dropout_mask(*((3,) if flag() else ()), batch, inputs)
    if flag(0.3):
        recurrent_dropout = dropout_mask(3, batch, units)
    problem = GRUProblem(
        spec=spec,
        x=x,
        h0=h0,
        mask=mask,
        resets=resets,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        reverse=flag(0.3),
        return_sequences=flag(),
        zero_output_for_mask=flag(0.3),
        num_threads=int(rng.integers(1, 4)),
    )
    return problem, weights


def layouts(x):
    """Yield (name, view) with the values of x and every kind of memory."""
    batch, steps, inputs = x.shape
    yield "time-major", np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    wide = np.zeros((batch, steps, inputs + 5), x.dtype)
    wide[..., 2 : 2 + inputs] = x
    yield "padded", wide[..., 2 : 2 + inputs]
    yield "negative", np.ascontiguousarray(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    yield "time reversed", np.ascontiguousarray(x[:, ::-1])[:, ::-1]
    yield "rows reversed", np.ascontiguousarray(x[::-1])[::-1]
    yield "last axis strided", np.asfortranarray(x)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(x.dtype).reshape(x.shape)
    misaligned[...] = x
    assert not misaligned.flags.aligned
    yield "misaligned", misaligned
    read_only = x.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
