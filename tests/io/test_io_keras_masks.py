"""Masks that a Keras model gives its GRUs: `from_keras` says how to make each."""

import warnings

import numpy as np
import pytest
from keras_support import keras

import fastgru
from fastgru.io import from_keras
from fastgru.io.budget import Budget
from fastgru.io.keras_masks import mask_notes

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


ENDS = {
    "permuted": lambda x: L.Permute((1, 2))(x),
    "einsum": lambda x: L.EinsumDense("abc,cd->abd", output_shape=(None, 4))(x),
    "rms": lambda x: L.RMSNormalization()(x),
    "operation": lambda x: keras.ops.tanh(x),
    "product": lambda x: x * 2.0,
    "sum": lambda x: L.Add()([x, L.Dense(4)(keras.ops.tanh(x))]),
    "other": lambda x: L.Maximum()([keras.ops.tanh(x), x]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ENDS)
def test_masks_that_end_before_the_gru(kind, form, tmp_path):
    ids = keras.Input((T,))
    layer = gru("it")
    given = []
    call = layer.call

    def seen(x, initial_state=None, mask=None, training=False):
        given.append(mask)
        return call(x, initial_state=initial_state, mask=mask, training=training)

    layer.call = seen
    model = keras.Model(ids, layer(ENDS[kind](embedded(ids))))
    model(np.ones((2, T)))
    assert given[-1] is None  # Keras gives none
    assert notes(saved(model.inputs, model.outputs, form, tmp_path)) == []


@pytest.mark.parametrize("form", FORMS)
def test_each_output_of_a_nested_model_has_its_mask(form, tmp_path):
    inside, ids = keras.Input((T,)), keras.Input((T,))
    words = embedded(inside)
    part = keras.Model(inside, [words, L.Reshape((T, 4))(words)], name="part")
    first, second = part(ids)
    source = saved(ids, [gru("masked")(first), gru("free")(second)], form, tmp_path)
    (note,) = notes(source)
    assert note.startswith("masked: ")


@pytest.mark.parametrize("form", FORMS)
def test_each_input_of_a_nested_model_has_its_mask(form, tmp_path):
    a, b, ids = keras.Input((T, 4)), keras.Input((T, 4)), keras.Input((T,))
    part = keras.Model([a, b], [gru("free")(a), gru("masked")(b)], name="part")
    free = L.Embedding(9, 4)(ids)
    (note,) = notes(saved(ids, part([free, embedded(ids)]), form, tmp_path))
    assert note.startswith("part/masked: ")


@pytest.mark.parametrize("form", FORMS)
def test_joined_masks(form, tmp_path):
    ids = keras.Input((T,))
    words, free = embedded(ids), L.Embedding(9, 4)(ids)
    others = L.Embedding(9, 4, mask_zero=True, name="f")(ids)
    outputs = [gru("two")(L.Concatenate(name="c")([words, others]))]
    outputs.append(gru("half")(L.Concatenate(name="d")([words, free])))
    two, half = notes(saved(ids, outputs, form, tmp_path))
    assert "'e'" in two
    assert "'f'" in two
    assert "Concatenate layer 'c' joins the masks" in two
    assert "one of which has none" in half


def test_keras_2_adds_a_masked_input_to_one_without():
    """tf.keras 2.21's Add gives the mask of the inputs that have one; Keras 3's gives none."""
    parts = [
        ("InputLayer", "x", {}, []),
        ("Masking", "m", {"mask_value": 0.0}, ["x"]),
        ("Add", "sum", {}, ["m", "x"]),
        ("GRU", "it", {"units": 3}, ["sum"]),
    ]
    layers = [
        {
            "class_name": kind,
            "config": {"name": name, "trainable": True, **config},
            "name": name,
            "inbound_nodes": [[[one, 0, 0, {}] for one in inputs]] if inputs else [],
        }
        for kind, name, config, inputs in parts
    ]
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [["it", 0, 0]]}
    model = {"class_name": "Functional", "config": {"name": "f", "layers": layers, **ends}}
    assert list(mask_notes(model, Budget("it"))) == ["it"]


@keras.saving.register_keras_serializable("tests", name="GRUCell")
class DoublingCell(L.GRUCell):
    """Somebody's own cell with the name of Keras'."""

    def call(self, inputs, states, training=False):
        output, _ = super().call(inputs, states, training)
        return output * 2, [output * 2]


@keras.saving.register_keras_serializable("tests", name="GRU")
class DoublingLayer(L.GRU):
    """Somebody's own layer with the name of Keras'."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return 2 * super().call(sequences, initial_state, mask, training)


@keras.saving.register_keras_serializable("tests", name="LeakyReLU")
class Halving(L.Layer):
    """Somebody's own activation with the name of Keras'."""

    def call(self, x):
        return 0.5 * keras.ops.tanh(x)


OWN = {
    "cell": (lambda: L.RNN(DoublingCell(3)), "found none"),
    "layer": (lambda: DoublingLayer(3), "found none"),
    "half": (lambda: L.Bidirectional(DoublingLayer(3)), "found none"),
    "activation": (lambda: L.GRU(3, activation=Halving()), "it is not one of Keras'"),
}


@pytest.mark.parametrize("form", [".h5", ".keras"])
@pytest.mark.parametrize("kind", OWN)
def test_registered_classes_with_names_of_keras_are_not_keras(kind, form, tmp_path):
    make, message = OWN[kind]
    x = keras.Input((T, 4))
    with pytest.raises(ValueError, match=message):
        from_keras(saved(x, make()(x), form, tmp_path))


def test_sparsemax_says_that_keras_computes_another(tmp_path):
    x = keras.Input((T, 4))
    (note,) = notes(saved(x, gru("it", activation="sparsemax")(x), ".keras", tmp_path))
    assert "sparsemax" in note


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
