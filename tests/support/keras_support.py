"""Keras as the judge: a `Case` is built, run and compared on both sides.

``check(Case(...))`` is the whole of it; a failing test prints the case, which can be pasted back.

Keras' own backends disagree where semantics.md decides, so the judge is Keras' NumPy backend in the
configuration that does what docs/semantics.md says:

- A masked step before the first valid one gives zeros (semantics.md 2). The unrolled loop does;
  the other one repeats ``states[0]`` there, which is the initial state. So ``unroll=True``, except:
- ``zero_output_for_mask`` is read by the loop with ``unroll=False`` only. So ``unroll=False``
  where it is on (also in a Bidirectional with return_sequences, which turns it on), and then the
  two loops' difference is hidden by the zeros.
- ``use_cudnn=False``: "auto" expands three dropout masks as if they were one
  (implementation=1), before it learns that the backend has no fused GRU.

Dropout: Keras' random bits are not ours, so the judge is handed our masks.
"""

import contextlib
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import fastgru
from fastgru import dispatch

keras = pytest.importorskip("keras", reason="Keras is the judge here; pip install fastgru[test]")
assert keras.backend.backend() == "numpy", "tests/conftest.py selects Keras' NumPy backend"
from keras.src.backend.common import dtypes as _keras_dtypes  # noqa: E402

# Everywhere but on TensorFlow, Keras turns the result of an operation on float64 arrays into
# float32, as JAX does by default; tanh in a layer of dtype "float64" is then good to 1e-8 only.
# The table that says so is changed to what the TensorFlow backend has in the same place.
_keras_dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"

ATOL = {"float64": 1e-12, "float32": 2e-6}  # the bounds, absolute
# Losses are sums over all weights or outputs, of which some are squares of next to nothing: twice
# the relative error of the outputs, and outputs of 0.04 may be off by 2e-6.
LOSS_TOLERANCE = {
    "float64": {"rtol": 1e-12, "atol": 1e-15},
    "float32": {"rtol": 1e-4, "atol": 1e-8},
}


@keras.saving.register_keras_serializable("judge")
def _keras_threshold(x):
    return keras.activations.threshold(x, 0.1, -0.2)


@keras.saving.register_keras_serializable("judge")
def _keras_sparsemax(x):
    return fastgru.activations.sparsemax(x)


# Activations that Keras' GRU cannot take by name, as (ours, Keras'). Keras 3.15's sparsemax is
# not the projection on the simplex (its threshold adds up cumulative sums), so it is handed ours.
BY_VALUE = {
    "threshold": (
        fastgru.activations.Activation("threshold", {"threshold": 0.1, "default_value": -0.2}),
        _keras_threshold,
    ),
    "sparsemax": (fastgru.activations.sparsemax, _keras_sparsemax),
}
# All activations that Keras has, which test_keras_grid.py checks.
ELEMENTWISE = [
    *("tanh", "sigmoid", "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu"),
    *("exponential", "softplus", "log_sigmoid", "softsign", "silu", "mish", "gelu", "squareplus"),
    *("tanh_shrink", "soft_shrink", "hard_shrink", "threshold", "hard_tanh", "hard_sigmoid"),
    *("hard_silu", "sparse_plus", "sparse_sigmoid"),
]
ALONG_UNITS = ["softmax", "log_softmax", "sparsemax"]
DETERMINISTIC = ("Zeros", "Ones", "Identity")


@dataclass(frozen=True)
class Case:
    """A layer and how it is called.

    ``cells`` are the arguments of each cell and ``layer`` those of the layer around them, as both
    libraries spell them; ``merge_mode="none"`` stands for Bidirectional's None, None for no
    Bidirectional.
    """

    kind: str = "gru"  # gru, rnn (one cell) or stacked
    cells: tuple = ({"units": 4},)
    layer: dict = field(default_factory=dict)
    merge_mode: str | None = None
    via: str = "constructor"  # or ours_from_keras, keras_from_ours: by config
    batch: int = 3
    steps: int = 5
    inputs: int = 4
    mask: str = "none"  # right, left, holes, empty (a fully masked row), full (all valid)
    mask_as: str = "bool"  # int64, float32, or lengths where the mask is right-padded
    initial_state: bool = False
    training: bool = False
    calls: int = 1
    reset: bool = False  # reset_state before the last call
    time_major: bool = False
    dtype: str = "float32"
    scale: float = 0.5  # of the weights
    seed: int = 0


def gru(units=4, cell=None, **case):
    """A Case with one GRU cell; ``cell`` are its other arguments."""
    return Case(cells=({"units": units, **(cell or {})},), **case)


# ---- building ------------------------------------------------------------------------------------


def _arguments(cell, side):
    """A cell's arguments for fastgru (side 0) or Keras (side 1)."""
    return {
        key: BY_VALUE[value][side] if isinstance(value, str) and value in BY_VALUE else value
        for key, value in cell.items()
    }


def build_ours(case, theirs=None):
    """Build fastgru's layer, without weights; from the config of ``theirs`` if the case says so."""
    cells = [_arguments(cell, 0) for cell in case.cells]
    shared = {**case.layer, "time_major": case.time_major, "dtype": case.dtype}
    if case.kind == "gru":
        layer = fastgru.GRU(**cells[0], **shared)
    else:
        made = [fastgru.GRUCell(**cell, dtype=case.dtype) for cell in cells]
        cell = made[0] if case.kind == "rnn" else fastgru.StackedRNNCells(made, dtype=case.dtype)
        layer = fastgru.RNN(cell, **shared)
    if case.merge_mode is not None:
        layer = fastgru.Bidirectional(layer, merge_mode=_mode(case))
    if case.via == "ours_from_keras" and theirs is not None:
        layer = type(layer).from_config(theirs.get_config())
    return layer


def build_keras(case, ours=None):
    """Build Keras' layer, without weights; from the config of ``ours`` if the case says so."""
    cells = [_arguments(cell, 1) for cell in case.cells]
    shared = {**case.layer, "unroll": unrolled(case), "dtype": case.dtype}
    if case.kind == "gru":
        layer = keras.layers.GRU(**cells[0], **shared)
    else:
        made = [keras.layers.GRUCell(**cell, dtype=case.dtype) for cell in cells]
        # Given a list, Keras' RNN stacks the cells in float32, whatever their dtype.
        stack = keras.layers.StackedRNNCells
        cell = made[0] if case.kind == "rnn" else stack(made, dtype=case.dtype)
        layer = keras.layers.RNN(cell, **shared)
    if case.merge_mode is not None:
        layer = keras.layers.Bidirectional(layer, merge_mode=_mode(case), dtype=case.dtype)
    if case.via == "keras_from_ours":
        layer = type(layer).from_config(ours.get_config())
    if case.merge_mode is not None:
        # Theirs raises TypeError for stateful with return_state; nobody reads the result here.
        layer.compute_mask = lambda inputs, mask=None: None
    for half in halves(layer):
        half.unroll = unrolled(case)
        if case.kind == "gru":
            half.use_cudnn = False
    return layer


def unrolled(case):
    """Which of Keras' two loops follows docs/semantics.md here; see the module's docstring."""
    if case.merge_mode is not None:
        return not case.layer.get("return_sequences", False)
    return not case.layer.get("zero_output_for_mask", False)


def _mode(case):
    return None if case.merge_mode == "none" else case.merge_mode


def halves(layer):
    """Return the layers that a Bidirectional runs, or the layer itself."""
    return [layer.forward_layer, layer.backward_layer] if hasattr(layer, "merge_mode") else [layer]


def cells_of(layer):
    """Return a layer's GRU cells in order, the forward layer's first."""
    cells = [half.cell for half in halves(layer)]
    return [inner for cell in cells for inner in getattr(cell, "cells", [cell])]


# ---- data ----------------------------------------------------------------------------------------


def make_mask(kind, batch, steps, rng):
    """Return a (B, T) bool mask of a kind, or None."""
    time = np.arange(steps)
    if kind == "none":
        return None
    if kind == "full":
        return np.ones((batch, steps), bool)
    if kind == "right":
        return time < rng.integers(1, steps + 1, (batch, 1))
    if kind == "left":
        return time >= rng.integers(0, steps, (batch, 1))
    mask = rng.random((batch, steps)) < 0.6
    if kind == "empty":
        mask[rng.integers(batch)] = False
    return mask


def make_states(case, rng):
    """Return an initial state as Keras nests it: one array per cell, a list each if stacked."""
    states = []
    for _ in range(1 if case.merge_mode is None else 2):
        for cell in case.cells:
            h = rng.uniform(-1, 1, (case.batch, cell["units"])).astype(case.dtype)
            states.append([h] if case.kind == "stacked" else h)
    return states


def hand_over_masks(dealer, layer, case):
    """Put the masks of ``dealer``'s next call where Keras' cells keep those that they have drawn.

    ``dealer`` is a twin of our layer: a draw depends on the seed and the call count alone, so the
    layer itself draws the same (docs/semantics.md 7).
    """
    sizes = [case.inputs, *(cell["units"] for cell in case.cells)]
    pairs = zip(cells_of(dealer), cells_of(layer), strict=True)
    for index, (ours, theirs) in enumerate(pairs):
        # Bidirectional rebuilds its layers from their configs, where Keras leaves this out.
        theirs.implementation = ours.implementation
        x = np.empty((case.batch, sizes[index % len(case.cells)]))
        h = np.empty((case.batch, ours.units))
        theirs._dropout_mask = ours.get_dropout_mask(x)
        theirs._recurrent_dropout_mask = ours.get_recurrent_dropout_mask(h)
        ours.reset_dropout_mask()
        ours.reset_recurrent_dropout_mask()


# ---- comparing -----------------------------------------------------------------------------------


def flatten(nested):
    """Return the leaves of nested tuples and lists."""
    if isinstance(nested, (list, tuple)):
        return [leaf for part in nested for leaf in flatten(part)]
    return [nested]


def assert_same(ours, theirs, dtype, what="output"):
    """Compare nested outputs: structure, shape, dtype and values."""
    if isinstance(theirs, (list, tuple)):
        assert isinstance(ours, (list, tuple)), f"{what}: {type(ours)} for {type(theirs)}"
        assert len(ours) == len(theirs), f"{what}: {len(ours)} parts for {len(theirs)}"
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, dtype, f"{what}[{index}]")
        return
    theirs = np.asarray(theirs)
    assert type(ours) is np.ndarray, f"{what}: {type(ours)}"
    assert ours.dtype == dtype, f"{what}: {ours.dtype}"
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} for {theirs.shape}"
    assert np.isfinite(theirs).all(), f"{what}: the case overflows, scale its weights"
    difference = np.abs(ours - theirs).max()
    assert difference <= ATOL[dtype], f"{what}: differs by {difference:.3g} from Keras"


def assert_same_losses(ours, theirs, dtype):
    """Compare ``layer.losses``, order included."""
    mine = [float(loss) for loss in ours]
    np.testing.assert_allclose(mine, [float(v) for v in theirs], **LOSS_TOLERANCE[dtype])


# ---- the check -----------------------------------------------------------------------------------


def check(case, judge_dtype=None):
    """Run a case on Keras and on each of our backends; AssertionError where they differ.

    ``judge_dtype`` lets Keras compute in another dtype, from the same numbers.
    """
    cells = [{**cell, "seed": case.seed + i} for i, cell in enumerate(case.cells)]
    case = replace(case, cells=tuple(cells))
    weights, calls = make_data(case)
    judge = replace(case, dtype=judge_dtype or case.dtype)
    theirs, judged = run_keras(judge, _cast(weights, judge.dtype), _cast(calls, judge.dtype))
    for context in backends():
        with context():
            ours = build_ours(case, theirs)
            _run_ours(ours, case, weights, calls, judged)


def _cast(nested, dtype):
    """Cast the float arrays among the leaves of nested lists and tuples."""
    if isinstance(nested, (list, tuple)):
        return [_cast(part, dtype) for part in nested]
    return nested if nested is None or nested.dtype == bool else nested.astype(dtype)


def make_data(case):
    """Return the weights and, for each call, the sequences, mask and initial state."""
    rng = np.random.default_rng(case.seed)
    ours = build_ours(case)
    ours.build((case.batch, case.steps, case.inputs))
    weights = [rng.uniform(-case.scale, case.scale, v.shape) for v in ours.weights]
    calls = []
    for call in range(case.calls):
        x = rng.normal(0, 1, (case.batch, case.steps, case.inputs)).astype(case.dtype)
        mask = make_mask(case.mask, case.batch, case.steps, rng)
        calls.append((x, mask, make_states(case, rng) if case.initial_state and not call else None))
    return [w.astype(case.dtype) for w in weights], calls


def run_keras(case, weights, calls):
    """Return Keras' layer and what it gave: a list of (outputs, losses, states)."""
    dealer = build_ours(case)
    theirs = build_keras(case, dealer)
    theirs.build((case.batch, case.steps, case.inputs))
    dealer.build((case.batch, case.steps, case.inputs))
    _compare_weights(dealer, theirs)
    dealer.set_weights(weights)
    theirs.set_weights(dealer.get_weights())
    results = []
    for index, (x, mask, state) in enumerate(calls):
        if case.reset and index == len(calls) - 1:
            for variable in flatten([half.states for half in halves(theirs)]):
                variable.assign(np.zeros(variable.shape, case.dtype))  # theirs fails on stacks
        if case.training:
            hand_over_masks(dealer, theirs, case)
        outputs = theirs(x, initial_state=state, mask=mask, training=case.training)
        results.append((outputs, [float(loss) for loss in theirs.losses], states_of(theirs)))
    return theirs, results


def _run_ours(ours, case, weights, calls, judged):
    ours.build(swap((case.batch, case.steps, case.inputs), case))
    ours.set_weights(weights)
    for index, ((x, mask, state), (outputs, losses, states)) in enumerate(
        zip(calls, judged, strict=True)
    ):
        if case.reset and index == len(calls) - 1:
            ours.reset_state()
        kwargs = {}
        if mask is not None and case.mask_as == "lengths":
            kwargs["lengths"] = mask.sum(1)
        elif mask is not None:
            kwargs["mask"] = (mask.T if case.time_major else mask).astype(case.mask_as)
        x = x.transpose(1, 0, 2) if case.time_major else x
        mine = ours(x, initial_state=state, training=case.training, **kwargs)
        what = f"call {index}"
        assert_same(batch_major(mine, case), outputs, case.dtype, what)
        assert_same_losses(ours.losses, losses, case.dtype)
        assert_same(states_of(ours), states, case.dtype, f"{what}: kept state")


def _compare_weights(ours, theirs):
    """Compare names, shapes and order, and the values where no random number makes them."""
    assert [v.name for v in ours.weights] == [v.name for v in theirs.weights]
    assert [v.shape for v in ours.weights] == [tuple(v.shape) for v in theirs.weights]
    for cell, judge in zip(cells_of(ours), cells_of(theirs), strict=True):
        for role in ("kernel", "recurrent", "bias"):
            name = "recurrent_kernel" if role == "recurrent" else role
            same = type(getattr(judge, f"{role}_initializer")).__name__ in DETERMINISTIC
            if same and getattr(judge, name) is not None:
                value = np.asarray(getattr(judge, name).value)
                np.testing.assert_array_equal(getattr(cell, name).value, value)


def states_of(layer):
    """Return copies of the states that a layer keeps between calls; [] if it keeps none."""
    states = flatten([half.states for half in halves(layer)])
    return [np.array(v.value) for v in states if v is not None]


def swap(shape, case):
    """Turn a shape (B, T, ...) into the case's order."""
    return (shape[1], shape[0], *shape[2:]) if case.time_major else shape


def batch_major(outputs, case):
    """Turn our time-major sequences into Keras' order."""
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(batch_major(part, case) for part in outputs)
    return outputs.transpose(1, 0, 2) if case.time_major and outputs.ndim == 3 else outputs


def backends():
    """Return the contexts to run fastgru in: by its own choice and, if another, the oracle."""
    contexts = [contextlib.nullcontext]
    if dispatch.available() != ["reference"]:
        contexts.append(lambda: fastgru.use_backend("reference"))
    return contexts
