"""Activations: values against Keras' NumPy backend, derivatives against central differences."""

import copy
import os
import pickle
import types
import warnings

import numpy as np
import pytest

from fastgru import activations
from fastgru.activations import Activation

# Every name with the parameters it is tested with; all of Keras' activations are here.
CASES = [
    ("tanh", {}),
    ("sigmoid", {}),
    ("linear", {}),
    ("relu", {}),
    ("relu", {"negative_slope": 0.1}),
    ("relu", {"max_value": 6.0}),
    ("relu", {"threshold": 0.7}),
    ("relu", {"negative_slope": 0.3, "max_value": 4.0, "threshold": 0.7}),
    ("relu", {"negative_slope": 0.3, "max_value": 4.0, "threshold": -0.7}),
    ("relu6", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": 0.05}),
    ("elu", {}),
    ("elu", {"alpha": 0.5}),
    ("selu", {}),
    ("celu", {}),
    ("celu", {"alpha": 2.5}),
    ("exponential", {}),
    ("softplus", {}),
    ("log_sigmoid", {}),
    ("softsign", {}),
    ("silu", {}),
    ("swish", {}),
    ("mish", {}),
    ("gelu", {}),
    ("gelu", {"approximate": True}),
    ("squareplus", {}),
    ("squareplus", {"b": 1.5}),
    ("tanh_shrink", {}),
    ("soft_shrink", {}),
    ("soft_shrink", {"threshold": 1.25}),
    ("hard_shrink", {}),
    ("hard_shrink", {"threshold": 1.25}),
    ("threshold", {"threshold": 0.4, "default_value": -1.5}),
    ("hard_tanh", {}),
    ("hard_sigmoid", {}),
    ("hard_silu", {}),
    ("hard_swish", {}),
    ("sparse_plus", {}),
    ("sparse_sigmoid", {}),
    ("softmax", {}),
    ("softmax", {"axis": 0}),
    ("log_softmax", {}),
    ("log_softmax", {"axis": 0}),
    ("glu", {}),
]
IDS = [f"{name}-{'-'.join(params)}" if params else name for name, params in CASES]
OWN = [("hard_sigmoid_keras2", {}), ("sparsemax", {}), ("sparsemax", {"axis": 0})]

# Relative error allowed, in units of the dtype's epsilon: both sides round, in another order.
ULPS = 4
# These subtract numbers of the size of x, so that Keras' own rounding error is relative to |x|.
CANCELLING = {"squareplus"}
EDGES = [-88.0, -30.0, -6.0, -3.0, -2.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.5, 3.0, 6.0, 30.0, 88.0]


def make(name, params):
    return activations.get(name) if name != "threshold" else Activation(name, params)


def values(dtype):
    """Give 6 x 602 values: a grid, a random sample and the places where pieces meet."""
    rng = np.random.default_rng(3)
    x = np.concatenate(
        [np.linspace(-12, 12, 2001), rng.normal(0, 2, 3612 - 2001 - len(EDGES)), EDGES]
    )
    return x.astype(dtype).reshape(6, 602)


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "numpy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras' own imports
        return pytest.importorskip("keras", reason="Keras judges the values")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def keras_in(keras, monkeypatch):
    """Give a function that runs Keras in a dtype.

    Its NumPy backend computes in float32 whatever comes; with TensorFlow's entry in this table the
    same functions compute in float64.
    """
    from keras.src.backend.common import dtypes

    def run(dtype, function, *args, **kwargs):
        with monkeypatch.context() as patch, np.errstate(over="ignore"):
            patch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
            keras.config.set_floatx(dtype)
            try:
                result = np.asarray(function(*args, **kwargs))
            finally:
                keras.config.set_floatx("float32")
        assert result.dtype == dtype
        return result

    return run


@pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)
def test_value_is_keras(keras, keras_in, name, params, dtype):
    x = values(dtype)
    expected = keras_in(dtype, getattr(keras.activations, name), x, **params)
    actual = make(name, params)(x, **params)
    assert actual.dtype == x.dtype
    eps = np.finfo(dtype).eps
    size = np.abs(expected) + (np.abs(x) if name in CANCELLING else 0)
    error = np.abs(actual - expected)
    assert (error <= ULPS * eps * size + np.finfo(dtype).tiny).all(), error.max() / eps


def test_every_keras_activation_is_here(keras):
    skipped = {"get", "serialize", "deserialize"}
    theirs = {name for name in dir(keras.activations) if name[0] != "_"} - skipped
    ours = {name for name, _ in CASES + OWN}
    assert theirs <= ours
    for name in ours:
        assert isinstance(getattr(activations, name), Activation)


def test_parameter_names_and_defaults_are_keras(keras):
    import inspect

    for name in {name for name, _ in CASES}:
        signature = inspect.signature(getattr(keras.activations, name))
        theirs = {key: p.default for key, p in list(signature.parameters.items())[1:]}
        ours = getattr(activations, name).get_config()["params"]
        empty = inspect.Parameter.empty
        assert ours == {key: None if value is empty else value for key, value in theirs.items()}


def test_sparsemax_is_keras_where_keras_is_right(keras):
    x = np.diag([4.0, 5.0, 6.0]) + np.arange(9).reshape(3, 3) / 20  # a support of one element
    np.testing.assert_array_equal(activations.sparsemax(x), keras.activations.sparsemax(x))


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_sparsemax_projects_on_the_simplex(dtype, axis):
    x = np.random.default_rng(5).normal(0, 1, (4, 7, 5)).astype(dtype)
    y = activations.sparsemax(x, axis=axis)
    assert y.dtype == x.dtype
    assert (y >= 0).all()
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(y.sum(axis), 1, rtol=16 * eps)
    # Karush-Kuhn-Tucker: x - y is one number on the support, and x is not above it elsewhere.
    x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    tau = np.max(x - y, -1, keepdims=True)
    assert (np.abs(x - y - tau)[y > 0] <= 16 * eps).all()
    assert ((x - tau)[y == 0] <= 16 * eps).all()
    assert ((y > 0).sum(-1) > 1).any()  # the case that Keras gets wrong


def test_hard_sigmoids_of_keras_2_and_3():
    x = np.array([-3.1, -2.6, -1.0, 0.0, 2.0, 2.6, 3.1])
    np.testing.assert_allclose(activations.hard_sigmoid(x), np.clip((x + 3) / 6, 0, 1), atol=1e-16)
    np.testing.assert_array_equal(activations.hard_sigmoid_keras2(x), np.clip(0.2 * x + 0.5, 0, 1))


@pytest.mark.parametrize(("name", "params"), CASES + OWN)
def test_large_and_strange_numbers(name, params, dtype):
    act = Activation(make(name, params).name, params)
    x = np.array([[-1e30, 1e30], [-1e4, 1e4], [-100.0, 100.0], [-1.5, 0.0]], dtype)
    y = act(x)  # warnings are errors: no overflow may be reported
    assert y.dtype == dtype
    if name == "exponential":
        assert y[0, 1] == np.inf
    else:
        assert np.isfinite(y).all()
    gradient = act.vjp(x, y, np.full(y.shape, 0.5, dtype))
    assert gradient.dtype == dtype
    assert gradient.shape == x.shape
    assert np.isfinite(gradient).all() or name == "exponential"
    assert np.isnan(act(np.full((2, 4), np.nan, dtype))).all()
    empty = act(np.zeros((0, 4), dtype))
    assert empty.shape == (0, 2 if name == "glu" else 4)
    assert act.vjp(np.zeros((0, 4), dtype), empty, empty).shape == (0, 4)


@pytest.mark.parametrize(("name", "params"), CASES + OWN)
def test_derivative_is_central_difference(name, params):
    act = Activation(make(name, params).name, params)
    # Irrational steps keep clear of the kinks by more than the step of the difference.
    x = (np.arange(48) * np.sqrt(2) / 6 - 6.1).reshape(8, 6)
    h = 1e-6
    y = act(x)
    dy = np.random.default_rng(1).normal(size=y.shape)
    numeric = np.empty_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        numeric[index] = np.sum((act(x + step) - act(x - step)) * dy) / (2 * h)
    # Truncation is h**2, rounding eps * |y| / h; y reaches exp(6).
    tolerance = {"rtol": 1e-7, "atol": 1e-8 * max(1.0, np.abs(y).max())}
    np.testing.assert_allclose(act.vjp(x, y, dy), numeric, **tolerance)
    if act.elementwise:
        np.testing.assert_allclose(act.gradient(x, y) * dy, numeric, **tolerance)
    else:
        with pytest.raises(ValueError, match="not elementwise"):
            act.gradient(x, y)


def test_gradient_keeps_float32():
    x = values("float32")
    for name, params in CASES + OWN:
        act = Activation(make(name, params).name, params)
        y = act(x)
        assert act.vjp(x, y, np.ones_like(y)).dtype == np.float32, name


def test_scalars_lists_integers_and_complex():
    assert type(activations.sigmoid(np.float32(0.3))) is np.float32
    assert type(activations.relu(np.float64(-0.3))) is np.float64
    assert activations.tanh([0.1, 0.2]).dtype == np.float32
    np.testing.assert_array_equal(activations.relu(np.array([-2, 3])), np.float32([0, 3]))
    assert activations.relu(np.array([-2, 3])).dtype == np.float32
    with pytest.raises(TypeError, match="'tanh' takes real numbers, got complex128"):
        activations.tanh(np.array([1j]))


def test_parameters():
    x = values("float64")
    half = activations.elu.with_params(alpha=0.5)
    np.testing.assert_array_equal(half(x), activations.elu(x, alpha=0.5))
    np.testing.assert_array_equal(half(x), activations.elu(x, 0.5))
    assert half.params == (0.5,)
    assert half != activations.elu
    assert activations.elu.with_params(alpha=1) == activations.elu
    assert activations.relu.with_params(max_value=6).params == (0.0, 6.0, 0.0)
    assert half.with_params() == half
    with pytest.raises(TypeError, match="'elu' takes parameters: alpha; got beta"):
        activations.elu.with_params(beta=1)
    with pytest.raises(TypeError, match="takes 0 parameters, got 1"):
        activations.tanh(x, 3)
    with pytest.raises(TypeError, match="alpha"):
        activations.elu(x, 1.0, alpha=1.0)
    for wrong in (np.nan, "1", None, [1.0, 2.0]):
        with pytest.raises(ValueError, match="alpha must be float"):
            activations.elu.with_params(alpha=wrong)
    with pytest.raises(ValueError, match="axis must be int"):
        activations.softmax.with_params(axis=0.5)


@pytest.mark.parametrize(("name", "params"), CASES + OWN)
def test_copies_are_equal(name, params):
    act = Activation(make(name, params).name, params)
    for other in (
        pickle.loads(pickle.dumps(act)),
        copy.deepcopy(act),
        copy.copy(act),
        Activation.from_config(act.get_config()),
        activations.deserialize(activations.serialize(act)),
    ):
        assert other == act
        assert hash(other) == hash(act)
        assert other.__name__ == act.name
    assert act != "tanh"
    with pytest.raises(AttributeError, match="immutable"):
        act.name = "other"


def test_get():
    assert activations.get(None) is activations.linear
    assert activations.get("swish") is activations.silu
    assert activations.get("hard_swish") is activations.hard_silu
    assert activations.get(activations.mish) is activations.mish
    assert activations.get("hard_sigmoid") is activations.hard_sigmoid
    assert activations.get("hard_sigmoid", keras2=True) is activations.hard_sigmoid_keras2
    assert activations.get("tanh", keras2=True) is activations.tanh

    def cube(x):
        return x**3

    assert activations.get(cube) is cube
    assert activations.get(np.tanh) is np.tanh
    assert activations.get("cube", {"cube": cube}) is cube
    assert activations.deserialize(activations.serialize(cube), {"cube": cube}) is cube
    with pytest.raises(ValueError, match=r"Unknown activation 'sigmiod'. Did you mean 'sigmoid'"):
        activations.get("sigmiod")
    with pytest.raises(ValueError, match="Cannot use 3 as an activation: expected None, a name"):
        activations.get(3)
    with pytest.raises(ValueError, match="'threshold' has no defaults"):
        activations.get("threshold")
    with pytest.raises(ValueError, match="'threshold' has no defaults"):
        activations.threshold(np.ones(3))
    with pytest.raises(ValueError, match="Unknown activation 'cube'"):
        Activation("cube")


def test_layers_refuse_glu():
    assert activations.get("glu") is activations.glu
    assert not activations.glu.shape_preserving
    assert activations.for_gate("relu", "activation") is activations.relu
    with pytest.raises(ValueError, match=r"recurrent_activation: expected .* keeps the shape"):
        activations.for_gate("glu", "recurrent_activation")
    with pytest.raises(ValueError, match="'glu' expects an even length"):
        activations.glu(np.ones((2, 3)))


def test_live_keras_functions_become_ours(keras):
    for name, _ in CASES:
        if name == "threshold":
            continue
        assert activations.get(getattr(keras.activations, name)) is activations.get(name)
        theirs = keras.activations.serialize(getattr(keras.activations, name))
        assert activations.get(theirs) is activations.get(name)
    with pytest.raises(ValueError, match="has no defaults"):
        activations.get(keras.activations.threshold)


@pytest.mark.parametrize("module", ["keras.src.activations", "tf_keras.src.activations"])
def test_live_keras_2_hard_sigmoid(module):
    function = types.FunctionType((lambda x: x).__code__, {}, "hard_sigmoid")
    function.__module__ = module
    assert activations.get(function) is activations.hard_sigmoid_keras2


def test_live_keras_layers_become_ours(keras):
    layers = keras.layers
    cases = [
        (layers.LeakyReLU(0.1), activations.leaky_relu.with_params(negative_slope=0.1)),
        (layers.LeakyReLU(), activations.leaky_relu.with_params(negative_slope=0.3)),
        (layers.ReLU(), activations.relu),
        (layers.ReLU(max_value=5.0), activations.relu.with_params(max_value=5.0)),
        (layers.ELU(alpha=0.4), activations.elu.with_params(alpha=0.4)),
        (layers.Softmax(axis=-1), activations.softmax),
        (layers.Activation("mish"), activations.mish),
    ]
    x = values("float32")
    for layer, ours in cases:
        assert activations.get(layer) == ours
        assert activations.get(keras.activations.serialize(layer)) == ours
        np.testing.assert_allclose(ours(x), np.asarray(layer(x)), rtol=4 * np.finfo("f4").eps)


def test_keras_reads_ours(keras):
    x = values("float32")
    for act in (
        activations.tanh,
        activations.silu,
        activations.elu.with_params(alpha=0.5),
        activations.leaky_relu.with_params(negative_slope=0.1),
        activations.relu.with_params(max_value=3.0),
        activations.softmax.with_params(axis=0),
    ):
        theirs = keras.activations.get(activations.serialize(act))
        np.testing.assert_allclose(np.asarray(theirs(x)), act(x), rtol=4 * np.finfo("f4").eps)


def test_configs_of_keras_2():
    read = activations.deserialize
    assert read({"class_name": "LeakyReLU", "config": {"alpha": 0.1}}) == Activation(
        "leaky_relu", {"negative_slope": 0.1}
    )
    assert read({"class_name": "ELU", "config": {"name": "elu", "alpha": 0.5}}) == Activation(
        "elu", {"alpha": 0.5}
    )
    activation = {"class_name": "Activation", "config": {"activation": "hard_sigmoid"}}
    assert read(activation, keras2=True) is activations.hard_sigmoid_keras2
    assert read(activation) is activations.hard_sigmoid


class Scaled:
    """A custom activation as an object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x

    def gradient(self, x, y):
        return np.full_like(x, self.factor)

    def get_config(self):
        return {"factor": self.factor}


def test_custom_objects():
    act = activations.get(Scaled(3.0))
    config = activations.serialize(act)
    assert config["class_name"] == config["registered_name"] == "Scaled"
    other = activations.deserialize(config, {"Scaled": Scaled})
    assert other.factor == 3.0
    with pytest.raises(ValueError, match=r"'Scaled' of module .*custom_objects"):
        activations.deserialize(config)


def test_repr_names_the_parameters():
    assert repr(activations.tanh) == "<fastgru activation tanh>"
    assert "{'alpha': 0.5}" in repr(activations.elu.with_params(alpha=0.5))
