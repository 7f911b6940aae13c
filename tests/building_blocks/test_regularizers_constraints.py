"""Regularizers and constraints: values and configs against Keras, gradients by differences."""

import copy
import os
import pickle
import warnings

import numpy as np
import pytest

from fastgru import constraints, regularizers

REGULARIZERS = [
    ("L1", {}),
    ("L1", {"l1": 0.3}),
    ("L2", {}),
    ("L2", {"l2": 0.2}),
    ("L1L2", {}),
    ("L1L2", {"l1": 0.3, "l2": 0.2}),
    ("OrthogonalRegularizer", {}),
    ("OrthogonalRegularizer", {"factor": 0.4, "mode": "rows"}),
    ("OrthogonalRegularizer", {"factor": 0.4, "mode": "columns"}),
]
CONSTRAINTS = [
    ("MaxNorm", {}),
    ("MaxNorm", {"max_value": 1.1, "axis": 1}),
    ("MaxNorm", {"max_value": 1.1, "axis": [0, 1]}),
    ("NonNeg", {}),
    ("UnitNorm", {}),
    ("UnitNorm", {"axis": 1}),
    ("MinMaxNorm", {}),
    ("MinMaxNorm", {"min_value": 1.0, "max_value": 2.0, "rate": 0.3, "axis": 1}),
]


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "numpy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras' own imports
        return pytest.importorskip("keras", reason="Keras judges the values")


@pytest.fixture
def x():
    return np.random.default_rng(2).normal(0, 1, (5, 7))


@pytest.mark.parametrize(("name", "arguments"), REGULARIZERS)
def test_regularizer_is_keras(keras, x, name, arguments):
    ours = getattr(regularizers, name)(**arguments)
    theirs = getattr(keras.regularizers, name)(**arguments)
    if arguments.get("mode") == "columns":
        # Keras' NumPy backend divides columns by the wrong norms; its rows are right.
        theirs = keras.regularizers.OrthogonalRegularizer(arguments["factor"], "rows")
        expected = np.asarray(theirs(x.T.astype("f4")))
    else:
        expected = np.asarray(theirs(x.astype("f4")))
    for dtype in ("float32", "float64"):
        value = ours(x.astype(dtype))
        assert value.dtype == dtype
        assert value.shape == ()
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert (value > 0) == (arguments != {} or name != "L1L2")


@pytest.mark.parametrize(("name", "arguments"), REGULARIZERS)
def test_regularizer_gradient(x, name, arguments):
    regularizer = getattr(regularizers, name)(**arguments)
    h = 1e-6
    numeric = np.empty_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        numeric[index] = (regularizer(x + step) - regularizer(x - step)) / (2 * h)
    np.testing.assert_allclose(regularizer.gradient(x), numeric, rtol=1e-7, atol=1e-8)
    assert regularizer.gradient(x.astype("f4")).dtype == np.float32
    assert regularizer.gradient(x).shape == x.shape


def test_orthogonal_regularizer_at_its_edges():
    regularizer = regularizers.OrthogonalRegularizer(0.5)
    assert regularizer(np.ones((1, 4))) == 0  # no pairs
    assert regularizer(np.eye(3)) == 0
    zero_row = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    np.testing.assert_allclose(regularizer(zero_row), 0.5 * (4 / 5) / 3)
    assert np.isfinite(regularizer.gradient(zero_row)).all()
    with pytest.raises(ValueError, match=r"expected a matrix, got shape \(3,\)"):
        regularizer(np.ones(3))


@pytest.mark.parametrize(("name", "arguments"), CONSTRAINTS)
def test_constraint_is_keras(keras, x, name, arguments):
    x[:, 2] = 0.0
    ours = getattr(constraints, name)(**arguments)
    theirs = arguments
    if isinstance(arguments.get("axis"), list):
        theirs = {**arguments, "axis": tuple(arguments["axis"])}
    expected = getattr(keras.constraints, name)(**theirs)(x.astype("f4"))
    kept = x.copy()
    for dtype in ("float32", "float64"):
        value = ours(x.astype(dtype))
        assert value.dtype == dtype
        np.testing.assert_allclose(value, np.asarray(expected), rtol=1e-6, atol=1e-7)
    ours(x)
    np.testing.assert_array_equal(x, kept)


def both(keras):
    for name, arguments in REGULARIZERS:
        yield regularizers, keras.regularizers, name, arguments
    for name, arguments in CONSTRAINTS:
        yield constraints, keras.constraints, name, arguments


def assert_close(config, expected):
    """Compare configs; Keras rounds some factors to float32."""
    assert config.keys() == expected.keys()
    for key, value in expected.items():
        close = pytest.approx(value, rel=1e-7) if isinstance(value, float) else value
        assert config[key] == close


def test_configs_both_ways(keras):
    for ours, theirs, name, arguments in both(keras):
        mine = getattr(ours, name)(**arguments)
        keras_object = getattr(theirs, name)(**arguments)
        config = ours.serialize(mine)
        expected = theirs.serialize(keras_object)
        assert config.keys() == expected.keys()
        assert config["module"] == expected["module"]
        assert config["class_name"] == expected["class_name"] == name
        assert config["registered_name"] is None
        assert_close(config["config"], expected["config"])
        assert type(theirs.get(config)).__name__ == name
        for identifier in (config, expected, keras_object, {**config, "module": None}):
            back = ours.get(identifier)
            assert type(back) is type(mine)
            assert_close(back.get_config(), mine.get_config())
        plain = {"class_name": name, "config": arguments}  # Keras 2
        assert ours.deserialize(plain).get_config() == mine.get_config()
        for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
            assert copied.get_config() == mine.get_config()


def test_names(keras):
    from keras.src.constraints import ALL_OBJECTS_DICT as THEIR_CONSTRAINTS
    from keras.src.regularizers import ALL_OBJECTS_DICT as THEIR_REGULARIZERS

    for ours, theirs, names in (
        (regularizers, keras.regularizers, THEIR_REGULARIZERS),
        (constraints, keras.constraints, THEIR_CONSTRAINTS),
    ):
        for name in names.keys() - {"Regularizer", "regularizer", "Constraint", "constraint"}:
            assert type(ours.get(name)).__name__ == type(theirs.get(name)).__name__
            assert_close(ours.get(name).get_config(), theirs.get(name).get_config())
        assert ours.get(None) is None
        assert ours.serialize(None) is None
        assert ours.get(max) is max
    assert regularizers.get("l1_l2").get_config() == {"l1": 0.01, "l2": 0.01}
    config = {"class_name": "l1_l2", "config": {"l1": 0.5, "l2": 0.25}}
    assert regularizers.get(config).get_config() == {"l1": 0.5, "l2": 0.25}
    assert isinstance(constraints.get(constraints.UnitNorm), constraints.UnitNorm)


def test_none_is_the_default_factor():
    assert regularizers.L1(None).l1 == 0.01
    assert regularizers.L2(None).l2 == 0.01
    assert regularizers.L1L2(None, None).get_config() == {"l1": 0.0, "l2": 0.0}
    assert regularizers.L2(np.float32(0.5)).get_config() == {"l2": 0.5}


@pytest.mark.parametrize("wrong", [-1, np.nan, np.inf, "0.1", [0.1], True])
def test_wrong_factors(wrong):
    for cls, name in (
        (regularizers.L1, "l1"),
        (regularizers.L2, "l2"),
        (regularizers.L1L2, "l2"),
        (regularizers.OrthogonalRegularizer, "factor"),
    ):
        message = f"{cls.__name__}: expected {name} to be a finite number >= 0"
        with pytest.raises(ValueError, match=message):
            cls(**{name: wrong})


def test_errors():
    with pytest.raises(ValueError, match="expected mode 'rows' or 'columns', got 'row'"):
        regularizers.OrthogonalRegularizer(mode="row")
    with pytest.raises(ValueError, match=r"Unknown regularizer 'l3'. Did you mean '"):
        regularizers.get("l3")
    with pytest.raises(ValueError, match=r"Cannot use 0\.1 as regularizer"):
        regularizers.get(0.1)
    with pytest.raises(ValueError, match=r"Unknown constraint 'maxnorm'. Did you mean 'max_norm'"):
        constraints.get("maxnorm")
    with pytest.raises(NotImplementedError, match="Regularizer does not define"):
        regularizers.Regularizer()(np.ones(3))
    with pytest.raises(NotImplementedError, match="Constraint does not define"):
        constraints.Constraint()(np.ones(3))


def test_custom_subclass(x):
    class Half(regularizers.Regularizer):
        def __call__(self, x):
            return 0.5 * np.sum(x)

    config = regularizers.serialize(Half())
    assert config["registered_name"] == "Half"
    back = regularizers.deserialize(config, {"Half": Half})
    assert back(x) == 0.5 * np.sum(x)
    assert regularizers.get("l1_l2", {"l1_l2": Half})(x) == 0.5 * np.sum(x)


@pytest.mark.parametrize("wrong", [np.nan, np.float32("nan"), -np.inf, "1", [1.0], None, True])
def test_wrong_norms(wrong):
    for cls, name in (
        (constraints.MinMaxNorm, "min_value"),
        (constraints.MinMaxNorm, "rate"),
        (constraints.MinMaxNorm, "max_value"),
        (constraints.MaxNorm, "max_value"),
    ):
        if not (name == "max_value" and wrong == -np.inf):
            with pytest.raises(ValueError, match=f"{cls.__name__}: expected {name} to be a"):
                cls(**{name: wrong})
    for name in ("min_value", "rate"):
        with pytest.raises(ValueError, match=f"MinMaxNorm: expected {name} to be a finite number"):
            constraints.MinMaxNorm(**{name: np.inf})


def test_a_norm_without_an_upper_end():
    w = np.array([[3.0], [4.0]])
    np.testing.assert_array_equal(
        constraints.MinMaxNorm(1, np.inf)(w), constraints.MinMaxNorm(1, 9)(w)
    )
