"""Initializers: Keras' scales and shapes by statistics, configs both ways with Keras."""

import copy
import math
import os
import pickle
import re
import warnings

import numpy as np
import pytest

from fastgru import initializers

SHAPE = (200, 330)  # fans differ, so that a swap shows
N = math.prod(SHAPE)

# name -> (standard deviation, bound, constructor arguments); fan_in 200, fan_out 330.
SCALES = {
    "RandomNormal": (0.05, math.inf, {}),
    "RandomUniform": (0.05 / math.sqrt(3), 0.05, {}),
    "TruncatedNormal": (0.3 * 0.87962566103423978, 0.6, {"stddev": 0.3}),
    "VarianceScaling": (math.sqrt(1 / 200), 2 / 0.87962566103423978 * math.sqrt(1 / 200), {}),
    "GlorotUniform": (math.sqrt(2 / 530), math.sqrt(6 / 530), {}),
    "GlorotNormal": (math.sqrt(2 / 530), 2 / 0.87962566103423978 * math.sqrt(2 / 530), {}),
    "HeUniform": (math.sqrt(2 / 200), math.sqrt(6 / 200), {}),
    "HeNormal": (math.sqrt(2 / 200), 2 / 0.87962566103423978 * math.sqrt(2 / 200), {}),
    "LecunUniform": (math.sqrt(1 / 200), math.sqrt(3 / 200), {}),
    "LecunNormal": (math.sqrt(1 / 200), 2 / 0.87962566103423978 * math.sqrt(1 / 200), {}),
}
EVERY = [*SCALES, "Zeros", "Ones", "Constant", "Identity", "Orthogonal"]


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "numpy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras' own imports
        return pytest.importorskip("keras", reason="Keras judges scales and configs")


@pytest.mark.parametrize("name", SCALES)
def test_scale(name):
    stddev, bound, arguments = SCALES[name]
    x = getattr(initializers, name)(**arguments, seed=7)(SHAPE, "float64")
    # Five standard errors: of the mean, and of the standard deviation (kurtosis is at most 3).
    assert abs(x.mean()) < 5 * stddev / math.sqrt(N)
    assert abs(x.std() / stddev - 1) < 5 / math.sqrt(2 * N)
    assert np.abs(x).max() <= bound
    if bound < math.inf:
        assert np.abs(x).max() > 0.98 * bound


@pytest.mark.parametrize("name", SCALES)
def test_distribution_is_that_of_keras(keras, name):
    from scipy.stats import ks_2samp

    _, _, arguments = SCALES[name]
    ours = getattr(initializers, name)(**arguments, seed=7)(SHAPE)
    theirs = np.asarray(getattr(keras.initializers, name)(**arguments, seed=8)(SHAPE))
    assert ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 1e-3  # seeds are fixed: no flakes


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("distribution", ["normal", "Uniform", "untruncated_normal"])
@pytest.mark.parametrize(
    ("shape", "fan_in", "fan_out"),
    [((60, 90), 60, 90), ((5400,), 5400, 5400), ((3, 20, 90), 60, 270), ((), 1, 1)],
)
def test_variance_scaling(mode, distribution, shape, fan_in, fan_out):
    initializer = initializers.VarianceScaling(2.5, mode, distribution, seed=11)
    n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    x = initializer(shape, "float64")
    assert x.shape == shape
    if shape:
        assert abs(x.std() * math.sqrt(n / 2.5) - 1) < 5 / math.sqrt(2 * x.size)


def test_variance_scaling_axes():
    initializer = initializers.VarianceScaling(input_axes=[1], output_axes=[0, 2], seed=1)
    x = initializer((4, 300, 5), "float64")
    assert abs(x.std() * math.sqrt(300) - 1) < 5 / math.sqrt(2 * x.size)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (3, 4, 5), (2, 2, 9)])
def test_orthogonal(shape):
    gain = 1.5
    x = initializers.Orthogonal(gain, seed=3)(shape, "float64")
    assert x.shape == shape
    matrix = x.reshape(-1, shape[-1])
    rows, columns = matrix.shape
    product = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    np.testing.assert_allclose(product, gain**2 * np.eye(min(rows, columns)), atol=1e-14)


def test_orthogonal_is_uniform():
    # Without the sign fix, QR gives 1x1 "matrices" that are always -1, and a biased diagonal.
    signs = [initializers.Orthogonal(seed=seed)((1, 1))[0, 0] for seed in range(100)]
    assert 30 < sum(sign > 0 for sign in signs) < 70
    diagonal = [np.diag(initializers.Orthogonal(seed=seed)((3, 3))) for seed in range(300)]
    assert np.abs(np.mean(diagonal, 0)).max() < 5 * math.sqrt(1 / 3 / 300)


def test_constants(keras):
    for ours, theirs in (
        (initializers.Zeros(), keras.initializers.Zeros()),
        (initializers.Ones(), keras.initializers.Ones()),
        (initializers.Constant(2.5), keras.initializers.Constant(2.5)),
        (initializers.Identity(1.5), keras.initializers.Identity(1.5)),
    ):
        np.testing.assert_array_equal(ours((3, 5)), np.asarray(theirs((3, 5))))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_and_shape(name, dtype):
    initializer = getattr(initializers, name)()
    x = initializer((4, 7), dtype)
    assert x.dtype == dtype
    assert x.shape == (4, 7)
    assert initializer([4, 7]).dtype == np.float32
    assert x.flags.writeable


@pytest.mark.parametrize("name", [*SCALES, "Orthogonal"])
def test_seed(name):
    cls = getattr(initializers, name)
    seeded = cls(seed=5)
    first = seeded((4, 7))
    np.testing.assert_array_equal(seeded((4, 7)), first)
    np.testing.assert_array_equal(cls(seed=np.int64(5))((4, 7)), first)
    np.testing.assert_array_equal(copy.deepcopy(seeded)((4, 7)), first)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(seeded))((4, 7)), first)
    assert (cls(seed=6)((4, 7)) != first).any()
    fresh = cls()
    assert (fresh((4, 7)) != fresh((4, 7))).any()
    going_on = cls(seed=np.random.default_rng(5))
    np.testing.assert_array_equal(going_on((4, 7)), first)
    assert (going_on((4, 7)) != first).any()
    assert going_on.get_config()["seed"] is None


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_wrong_seed(seed):
    with pytest.raises(ValueError, match="GlorotUniform: expected seed to be None, a non-negative"):
        initializers.GlorotUniform(seed=seed)


def test_names(keras):
    from keras.src.initializers import ALL_OBJECTS_DICT

    left_out = {"STFT", "stft", "STFTInitializer", "Initializer", "initializer"}
    for name in ALL_OBJECTS_DICT.keys() - left_out:
        ours = initializers.get(name)
        assert type(ours).__name__ == ALL_OBJECTS_DICT[name].__name__
        assert type(initializers.get({"class_name": name, "config": {}})) is type(ours)
    assert initializers.get(None) is None
    assert isinstance(initializers.get(initializers.HeNormal), initializers.HeNormal)


ARGUMENTS = [
    ("Constant", {"value": 0.5}),
    ("RandomNormal", {"mean": 0.5, "stddev": 0.2, "seed": 3}),
    ("RandomUniform", {"minval": -0.5, "maxval": 0.25, "seed": 3}),
    ("TruncatedNormal", {"mean": 0.5, "stddev": 0.2, "seed": 3}),
    ("VarianceScaling", {"scale": 2.0, "mode": "fan_out", "distribution": "uniform", "seed": 3}),
    ("Orthogonal", {"gain": 0.5, "seed": 3}),
    ("HeNormal", {"seed": 3}),
]


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS + [(name, {}) for name in EVERY])
def test_configs_both_ways(keras, name, arguments):
    ours = getattr(initializers, name)(**arguments)
    theirs = getattr(keras.initializers, name)(**arguments)
    config = initializers.serialize(ours)
    assert set(config) == {"module", "class_name", "config", "registered_name"}
    if name != "Identity":  # whose gain Keras forgets to write
        assert config == keras.initializers.serialize(theirs)
    assert type(keras.initializers.get(config)) is type(theirs)
    for identifier in (keras.initializers.serialize(theirs), config, theirs, type(theirs)):
        back = initializers.get(identifier)
        assert type(back) is type(ours)
        if identifier is not type(theirs):
            assert back.get_config() == ours.get_config()


def test_configs_of_keras_2():
    config = {"class_name": "GlorotUniform", "config": {"seed": 4, "dtype": "float32"}}
    assert initializers.get(config).seed == 4
    zeros = initializers.deserialize({"class_name": "Zeros", "config": {"dtype": "float32"}})
    assert isinstance(zeros, initializers.Zeros)
    old = {"scale": 1.0, "mode": "fan_avg", "distribution": "normal", "seed": None}
    scaling = initializers.get({"class_name": "VarianceScaling", "config": old})
    assert scaling.distribution == "truncated_normal"


def test_seed_generators_of_keras_go_on(keras):
    theirs = keras.initializers.GlorotUniform(seed=keras.random.SeedGenerator(4))
    for identifier in (theirs, keras.initializers.serialize(theirs)):
        ours = initializers.get(identifier)
        assert (ours((4, 7)) != ours((4, 7))).any()


def test_arrays():
    value = np.arange(6.0).reshape(2, 3)
    initializer = initializers.get(value)
    np.testing.assert_array_equal(initializer((2, 3)), value.astype("float32"))
    with pytest.raises(ValueError, match=r"Constant holds shape \(2, 3\); shape \(3, 2\)"):
        initializer((3, 2))
    back = initializers.get(initializers.serialize(initializer))
    np.testing.assert_array_equal(back((2, 3), "float64"), value)


def test_arrays_from_keras(keras):
    value = np.arange(6.0, dtype="float32").reshape(2, 3)
    config = keras.initializers.serialize(keras.initializers.Constant(value))
    np.testing.assert_array_equal(initializers.get(config)((2, 3)), value)
    config = initializers.serialize(initializers.Constant(value))
    np.testing.assert_array_equal(np.asarray(keras.initializers.get(config)((2, 3))), value)


def test_callables():
    def draw(shape, dtype=None):
        return np.full(shape, 3, dtype)

    assert initializers.get(draw) is draw
    assert initializers.deserialize(initializers.serialize(draw), {"draw": draw}) is draw


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: initializers.get("glorot"), "Unknown initializer 'glorot'. Did you mean"),
        (lambda: initializers.get(3), "Cannot use 3 as initializer: expected a name"),
        (lambda: initializers.get({"config": {}}), "Cannot read initializer config"),
        (
            lambda: initializers.get({"class_name": "Zeros", "config": {"gain": 1}}),
            "Cannot read initializer Zeros from config {'gain': 1}",
        ),
        (lambda: initializers.VarianceScaling(scale=0), "expected scale > 0, got 0"),
        (lambda: initializers.VarianceScaling(mode="fan"), "expected mode to be one of"),
        (lambda: initializers.VarianceScaling(distribution="x"), "expected distribution to be"),
        (lambda: initializers.Identity()((3,)), "Identity makes matrices"),
        (lambda: initializers.Orthogonal()((3,)), "Orthogonal: expected 2 axes or more"),
        (lambda: initializers.Constant({"x": 1}), "Constant: expected a number or an array"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_base_class_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="Initializer does not define"):
        initializers.Initializer()((2, 3))


def test_repr_shows_the_arguments():
    text = "RandomNormal(mean=0.0, stddev=0.05, seed=2)"
    assert repr(initializers.RandomNormal(seed=2)) == text


NUMBERS = [
    (initializers.RandomNormal, "mean"),
    (initializers.RandomNormal, "stddev"),
    (initializers.TruncatedNormal, "stddev"),
    (initializers.RandomUniform, "minval"),
    (initializers.RandomUniform, "maxval"),
    (initializers.VarianceScaling, "scale"),
    (initializers.Orthogonal, "gain"),
    (initializers.Identity, "gain"),
]


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
@pytest.mark.parametrize(
    "wrong", [np.nan, np.float32("nan"), np.inf, -np.inf, "1", [1.0], None, True], ids=repr
)
def test_what_is_no_finite_number_is_refused_at_construction(cls, name, wrong):
    """Also from a config. Else it would be found in the weights, or in the outputs."""
    message = f"{cls.__name__}: expected {name} to be a finite number"
    with pytest.raises(ValueError, match=message):
        cls(**{name: wrong})
    config = {"module": "keras.initializers", "class_name": cls.__name__, "config": {name: wrong}}
    with pytest.raises(ValueError, match=message):
        initializers.get(config)
    assert cls(**{name: np.float64(0.5)}).get_config()[name] == 0.5
    assert cls(**{name: 1}).get_config()[name] == 1


def test_a_constant_is_not_nan():
    """Infinity is allowed: as a bias it holds a gate open or shut."""
    array = np.array([[1.0, np.nan]])
    for wrong in (np.nan, np.float32("nan"), array):
        with pytest.raises(ValueError, match="Constant: expected numbers, got NaN"):
            initializers.get(wrong) if wrong is array else initializers.Constant(wrong)
    inner = {"class_name": "__numpy__", "config": {"value": [[1.0, np.nan]], "dtype": "float32"}}
    with pytest.raises(ValueError, match="Constant: expected numbers, got NaN"):
        initializers.get({"class_name": "Constant", "config": {"value": inner}})
    assert np.isposinf(initializers.Constant(np.inf)((2,))).all()
