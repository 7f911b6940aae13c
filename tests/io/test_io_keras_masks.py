"""Masks that a Keras model gives its GRUs: `from_keras` says how to make each."""

import warnings

import numpy as np
import pytest
from keras_support import keras

import fastgru
from fastgru.io import from_keras

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning"),
]

L = keras.layers
T, H = 5, 3
SEQUENCES = {"return_sequences": True}


def gru(name=None, **more):
    return L.GRU(H, name=name, use_cudnn=False, **more)


def masked(x):
    return L.Masking(-1.0, name="m")(x)


def embedded(x):
    return L.Embedding(9, 4, mask_zero=True, name="e")(x)


def saved(inputs, outputs, form, folder):
    model = keras.Model(inputs, outputs)
    if form == "live":
        return model
    model.save(folder / f"m{form}")
    return folder / f"m{form}"


def notes(source, name=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_keras(source, name)
    return [str(one.message) for one in caught if one.category is UserWarning]


FORMS = ["live", ".h5", ".keras"]


@pytest.mark.parametrize("form", FORMS)
def test_masking(form, tmp_path):
    x = keras.Input((T, 4))
    y = gru("second")(L.Dense(3)(L.Dropout(0.1)(gru("first", **SEQUENCES)(masked(x)))))
    source = saved(x, [y, gru("free")(x)], form, tmp_path)
    first, second = notes(source)
    assert first.startswith("first: the model gives it a mask")
    assert "Masking layer 'm': pass mask = (x != -1.0).any(-1)" in first
    assert second.startswith("second: ")
    assert notes(source, "free") == []
    assert len(notes(source, "second")) == 1


@pytest.mark.parametrize("form", FORMS)
def test_embedding(form, tmp_path):
    x = keras.Input((T,))
    y = L.Bidirectional(gru(**SEQUENCES), name="both")(embedded(x))
    z = gru("after")(L.GlobalMaxPooling1D(keepdims=True)(y))
    (note,) = notes(saved(x, z, form, tmp_path))
    assert note.startswith("both: ")
    assert "Embedding layer 'e': pass mask = ids != 0" in note


@pytest.mark.parametrize("form", FORMS)
def test_nested_models_and_sequentials(form, tmp_path):
    inside = keras.Input((T, 4))
    part = keras.Model(inside, gru("low")(inside), name="part")
    chain = keras.Sequential([keras.Input((T, 4)), L.Masking(), gru("g")], name="chain")
    x = keras.Input((T, 4))
    texts = notes(saved(x, [part(masked(x)), chain(x)], form, tmp_path))
    assert [text.partition(":")[0] for text in texts] == ["part/low", "chain/g"]
    assert "(x != 0.0).any(-1)" in texts[1]


@pytest.mark.parametrize("form", FORMS)
def test_no_mask(form, tmp_path):
    x, ids = keras.Input((T, 4)), keras.Input((T,))
    outputs = [
        gru("plain")(x),
        gru("free")(L.Embedding(9, 4)(ids)),
        gru("behind")(L.Reshape((H, 1))(gru("last")(L.Conv1D(5, 1)(x)))),
    ]
    assert notes(saved([x, ids], outputs, form, tmp_path)) == []


def test_the_advice_gives_keras_numbers(tmp_path):
    x, ids = keras.Input((T, 4)), keras.Input((T,))
    model = keras.Model([x, ids], [gru("a")(masked(x)), gru("b")(embedded(ids))])
    model.save(tmp_path / "m.keras")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, T, 4)).astype("float32")
    words = rng.integers(1, 9, (3, T))
    values[1, 2:] = -1
    words[:, 3:] = 0
    expected = model([values, words])
    with pytest.warns(UserWarning, match="the model gives it a mask"):
        layers = from_keras(tmp_path / "m.keras")
    got = layers["a"](values, mask=(values != -1).any(-1))
    np.testing.assert_allclose(got, np.asarray(expected[0]), rtol=0, atol=1e-5)
    table = model.get_layer("e").get_weights()[0]
    got = layers["b"](table[words], mask=words != 0)
    np.testing.assert_allclose(got, np.asarray(expected[1]), rtol=0, atol=1e-5)
    assert isinstance(layers["a"], fastgru.GRU)


@pytest.mark.parametrize("call", ["keyword", "position", "with mask"])
@pytest.mark.parametrize("form", FORMS)
def test_keras_gives_no_mask_to_a_call_with_an_initial_state(form, call, tmp_path):
    x, state = keras.Input((T, 4)), keras.Input((H,))
    a = masked(x)
    layer = gru("decoder", **SEQUENCES)
    if call == "position":
        y = layer(a, state)
    elif call == "keyword":
        y = layer(a, initial_state=state)
    else:
        y = layer(a, initial_state=state, mask=keras.ops.any(keras.ops.not_equal(x, -1.0), -1))
    model = keras.Model([x, state], [y, gru("behind")(y)])
    source = saved([x, state], model.outputs, form, tmp_path)
    rng = np.random.default_rng(0)
    values, start = (rng.normal(size=s).astype("float32") for s in ((3, T, 4), (3, H)))
    values[1, 2:] = -1
    mask = (values != -1).any(-1)
    expected = [np.asarray(one) for one in model([values, start])]

    names = [text.partition(":")[0] for text in notes(source)]
    assert names == (["decoder", "behind"] if call == "with mask" else ["behind"])
    with pytest.warns(UserWarning, match="the model gives it a mask"):
        layers = from_keras(source)
    given = dict.fromkeys(names, mask)
    zeroed = values * mask[..., None]
    got = layers["decoder"](zeroed, initial_state=start, mask=given.get("decoder"))
    np.testing.assert_allclose(got, expected[0], rtol=0, atol=1e-5)
    got = layers["behind"](got, mask=given["behind"])
    np.testing.assert_allclose(got, expected[1], rtol=0, atol=1e-5)


# ---- what is said of wrappers and of models without a config -------------------------------------


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.layers.Wrapper):
    """A wrapper that computes something of its own."""

    def call(self, x):
        return 2 * self.layer(3 * x)

    def compute_output_shape(self, shape):
        return self.layer.compute_output_shape(shape)


WRAPPED = {
    "gru": lambda: Scaled(keras.layers.GRU(3, name="inner"), name="it"),
    "bidirectional": lambda: Scaled(keras.layers.Bidirectional(keras.layers.GRU(3)), name="it"),
    "around": lambda: keras.layers.TimeDistributed(Scaled(keras.layers.GRU(3)), name="it"),
    "inside": lambda: Scaled(keras.layers.TimeDistributed(keras.layers.GRU(3)), name="it"),
}


@pytest.mark.parametrize("form", [".keras", ".h5", None])
@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_of_which_nothing_is_known(kind, form, tmp_path):
    shape = (5, 4, 2) if kind in ("around", "inside") else (4, 2)
    model = keras.Sequential([keras.Input(shape), WRAPPED[kind]()])
    source = model
    if form:
        source = tmp_path / f"m{form}"
        model.save(source)
    with pytest.warns(
        UserWarning, match=r"Scaled, of which nothing is known.*is not in this layer"
    ):
        (layer,) = fastgru.io.from_keras(source).values()
    assert sum(w.size for w in layer.get_weights()) == model.count_params()


class Subclassed(keras.Model):
    """A model without a config, as most classes of users."""

    def __init__(self, **embedding):
        super().__init__()
        self.embedding = keras.layers.Embedding(9, 4, **embedding)
        self.gru = keras.layers.GRU(3, name="gru")
        self(np.ones((2, 5), "int32"))

    def call(self, ids):
        return self.gru(self.embedding(ids))

    def get_config(self):
        raise NotImplementedError


def test_a_live_model_without_a_config_says_that_masks_cannot_be_told():
    with pytest.warns(UserWarning, match=r"cannot be told .*mask = ids != 0"):
        fastgru.io.from_keras(Subclassed(mask_zero=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fastgru.io.from_keras(Subclassed())
