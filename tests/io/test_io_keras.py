"""Models that Keras 3 saved, and live ones: fastgru's layers give what Keras' give."""

import json
import zipfile

import numpy as np
import pytest
from keras_support import keras

import fastgru
from fastgru.io import savedmodel
from fastgru.io.keras import find

# Keras' variables, where its NumPy backend saves them: their __array__ knows no copy=.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

L = keras.layers
B, T, I, H = 3, 6, 4, 5
X = np.random.default_rng(7).normal(0, 1, (B, T, I)).astype("float32")


def randomised(model):
    """Give all weights random values, biases included."""
    rng = np.random.default_rng(3)
    for variable in model.weights:
        variable.assign(rng.uniform(-0.7, 0.7, variable.shape))
    return model


def gru(units=H, **arguments):
    # Not cuDNN: see keras_support.
    return L.GRU(units, use_cudnn=False, **arguments)


def model_of(*layers):
    return randomised(keras.Sequential([keras.Input((T, I)), *layers]))


def saved(model, folder, form):
    """The model as one of the things that from_keras takes."""
    if form == "live":
        return model
    path = folder / f"model{'.keras' if form == 'folder' else form}"
    model.save(path)
    if form == "folder":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder / "unzipped")
        return folder / "unzipped"
    return path


FORMS = [".keras", ".h5", "folder", "live"]

KINDS = {
    "gru": lambda **o: gru(name="it", **o),
    # Keras' Bidirectional refuses a layer with go_backwards=True.
    "bidirectional": lambda go_backwards=False, **o: L.Bidirectional(gru(**o), name="it"),
    "rnn": lambda **o: L.RNN(L.GRUCell(H, **cell(o)), **layer(o), name="it"),
    "stacked": lambda **o: L.RNN(
        [L.GRUCell(2, **cell(o)), L.GRUCell(H, **cell(o)), L.GRUCell(3, **cell(o))],
        **layer(o),
        name="it",
    ),
    "both stacked": lambda go_backwards=False, **o: L.Bidirectional(
        L.RNN([L.GRUCell(2, **cell(o)), L.GRUCell(H)], **layer(o)), merge_mode="mul", name="it"
    ),
}
LAYER = {"return_sequences", "go_backwards"}


def cell(options):
    return {k: v for k, v in options.items() if k not in LAYER}


def layer(options):
    return {k: v for k, v in options.items() if k in LAYER}


OPTIONS = {
    "default": {},
    "before": {"reset_after": False, "return_sequences": True},
    "no bias": {"use_bias": False, "go_backwards": True},
    "before, no bias": {"use_bias": False, "reset_after": False},
    "activations": {"activation": "elu", "recurrent_activation": "hard_sigmoid"},
    "sequences": {"return_sequences": True, "go_backwards": True, "recurrent_dropout": 0.25},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_keras_own(kind, options, form, tmp_path):
    theirs = model_of(KINDS[kind](**OPTIONS[options]))
    ours = fastgru.io.from_keras(saved(theirs, tmp_path, form))
    assert list(ours) == ["it"]
    assert type(ours["it"]).__name__ == type(theirs.layers[0]).__name__
    np.testing.assert_allclose(ours["it"](X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


def nested():
    """GRUs at the top, in a model, in a model's model, and in a wrapper; other layers between."""
    inner = keras.Sequential([keras.Input((T, 2)), gru(3, name="low")], name="inner")
    middle = keras.Sequential(
        [
            keras.Input((T, H)),
            L.Bidirectional(gru(1, return_sequences=True), name="both"),
            L.Dense(2),
            inner,
        ],
        name="middle",
    )
    x = keras.Input((T, I))
    first = gru(H, return_sequences=True, name="first")(x)
    second = L.RNN([L.LSTMCell(2), L.GRUCell(2)])(L.LSTM(2, return_sequences=True)(first))
    lines = L.TimeDistributed(gru(2), name="rows")(L.Reshape((T, H, 1))(first))
    outputs = [first, middle(first), second, gru(2, name="last")(lines)]
    return randomised(keras.Model(x, outputs, name="outer"))


@pytest.mark.parametrize("form", FORMS)
def test_nested_models(form, tmp_path):
    theirs = nested()
    ours = fastgru.io.from_keras(saved(theirs, tmp_path, form))
    assert set(ours) == {"first", "middle/both", "middle/inner/low", "rows", "last"}
    middle = theirs.get_layer("middle")
    pairs = {
        "first": theirs.get_layer("first"),
        "middle/both": middle.get_layer("both"),
        "middle/inner/low": middle.get_layer("inner").get_layer("low"),
        "rows": theirs.get_layer("rows").layer,
        "last": theirs.get_layer("last"),
    }
    for name, judge in pairs.items():
        x = np.random.default_rng(1).normal(0, 1, (B, T, ours[name].weights[0].shape[0]))
        x = x.astype("float32")
        np.testing.assert_allclose(ours[name](x), np.asarray(judge(x)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", [".keras", ".h5"])
def test_frozen_parts(form, tmp_path):
    """Keras' older files have what is trainable first, whatever its place."""
    stack = L.RNN([L.GRUCell(H), L.GRUCell(H), L.GRUCell(H)], name="stack", return_sequences=True)
    both = L.Bidirectional(gru(), backward_layer=gru(go_backwards=True), name="both")
    theirs = model_of(stack, both)
    stack.cell.cells[0].trainable = False
    both.forward_layer.trainable = False
    ours = fastgru.io.from_keras(saved(theirs, tmp_path, form))
    y = ours["stack"](X)
    np.testing.assert_allclose(y, np.asarray(stack(X)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours["both"](y), np.asarray(theirs(X)), rtol=0, atol=1e-5)


def test_frozen_models(tmp_path):
    """Where a model is not trainable nothing in it is, and the order is again that of places."""
    both = L.Bidirectional(gru(), backward_layer=gru(go_backwards=True), name="both")
    part = keras.Sequential([keras.Input((T, I)), both], name="part")
    theirs = model_of(part)
    part.trainable = False
    both.trainable, both.forward_layer.trainable = True, False
    ours = fastgru.io.from_keras(saved(theirs, tmp_path, ".h5"), "part/both")
    np.testing.assert_allclose(ours(X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_layers_of_one_name_in_different_models(form, tmp_path):
    def part(name):
        return keras.Sequential([keras.Input((T, I)), gru(name="it")], name=name)

    x = keras.Input((T, I))
    whole = keras.Model(x, [part("a")(x), part("b")(x)], name="whole")
    theirs = randomised(keras.Model(x, whole(x)))
    ours = fastgru.io.from_keras(saved(theirs, tmp_path, form))
    assert list(ours) == ["whole/a/it", "whole/b/it"]
    for layer, y in zip(ours.values(), theirs(X), strict=True):
        np.testing.assert_allclose(layer(X), np.asarray(y), rtol=0, atol=1e-5)


def without_numbers(config):
    """Leave out the numbers by which Keras knows objects that it writes twice."""
    if isinstance(config, dict):
        items = config.items()
        return {k: without_numbers(v) for k, v in items if k != "shared_object_id"}
    return [without_numbers(v) for v in config] if isinstance(config, list) else config


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_models_share(form, tmp_path):
    """Keras 3 writes it once, for the model that comes first."""
    shared = gru(name="shared")
    x = keras.Input((T, I))
    other = keras.Model(x, gru(name="shared")(x), name="other")  # of the same name and arguments
    part = keras.Model(x, shared(x), name="part")
    x = keras.Input((T, I))
    theirs = randomised(keras.Model(x, [other(x), part(x), shared(x)]))
    ours = fastgru.io.from_keras(saved(theirs, tmp_path, form))
    assert list(ours) == ["other/shared", "part/shared", "shared"]
    for layer, y in zip(ours.values(), theirs(X), strict=True):
        np.testing.assert_allclose(layer(X), np.asarray(y), rtol=0, atol=1e-5)


def test_nobody_guesses_which_layer_is_shared(tmp_path):
    shared = gru(name="shared")
    x = keras.Input((T, I))
    other = keras.Model(x, gru(name="shared")(x), name="other")
    part = keras.Model(x, shared(x), name="part")
    theirs = randomised(keras.Model(x, [other(x), part(x), shared(x)]))

    def edit(layers):
        layers[:] = without_numbers(layers)

    path = changed(saved(theirs, tmp_path, ".keras"), tmp_path / "new.keras", edit)
    ours = fastgru.io.from_keras(path, "part/shared")
    np.testing.assert_allclose(ours(X), np.asarray(theirs(X)[1]), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="shared: expected weights at layers/gru/cell/vars"):
        fastgru.io.from_keras(path, "shared")


def test_a_lambda_is_passed_over(tmp_path):
    theirs = model_of(L.Lambda(lambda x: x * 2, output_shape=(T, I)), gru(name="it"))
    theirs.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert "__lambda__" in archive.read("config.json").decode()
    ours = fastgru.io.from_keras(tmp_path / "m.keras", "it")
    np.testing.assert_allclose(ours(2 * X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


def test_a_live_layer_by_itself():
    theirs = L.Bidirectional(gru(), name="it")
    with pytest.raises(ValueError, match="no weights yet"):
        fastgru.io.from_keras(theirs)
    theirs.build((B, T, I))
    randomised(theirs)
    ours = fastgru.io.from_keras(theirs, "it")
    np.testing.assert_allclose(ours(X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


class Everything(keras.Model):
    """A model that no config describes."""

    def __init__(self):
        super().__init__()
        self.encoder = gru(name="encoder")

    def call(self, x):
        return self.encoder(x)


def test_a_live_subclass_of_model():
    theirs = Everything()
    theirs(X)
    randomised(theirs)
    ours = fastgru.io.from_keras(theirs)["encoder"]
    np.testing.assert_allclose(ours(X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("float64", "float64"), ("mixed_bfloat16", "float32"), ("mixed_float16", "float32")],
)
def test_dtypes(policy, dtype, tmp_path):
    """A mixed policy keeps its variables in float32, which is what there is to compute in."""
    theirs = model_of(gru(name="it", dtype=policy))
    ours = fastgru.io.from_keras(saved(theirs, tmp_path, ".keras"), "it")
    assert ours.dtype == dtype
    for mine, judge in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(mine, judge)


def test_stateful_layers_are_read(tmp_path):
    theirs = keras.Sequential([keras.Input(batch_shape=(B, T, I)), gru(name="it", stateful=True)])
    ours = fastgru.io.from_keras(saved(randomised(theirs), tmp_path, ".h5"), "it")
    for _ in range(2):
        np.testing.assert_allclose(ours(X), np.asarray(theirs(X)), rtol=0, atol=1e-5)


def steep(x):
    return keras.ops.tanh(3 * x)


def test_custom_objects(tmp_path):
    theirs = model_of(gru(name="it", activation=steep, return_sequences=True), gru(name="plain"))
    path = saved(theirs, tmp_path, ".keras")
    with pytest.raises(ValueError, match=r"m.*: it: .*custom_objects"):
        fastgru.io.from_keras(path)
    assert fastgru.io.from_keras(path, "plain").units == H  # it alone is made
    ours = fastgru.io.from_keras(path, custom_objects={"steep": lambda x: np.tanh(3 * x)})
    y = ours["plain"](ours["it"](X))
    np.testing.assert_allclose(y, np.asarray(theirs(X)), rtol=0, atol=1e-5)


def test_verify(tmp_path):
    theirs = model_of(gru(name="a", return_sequences=True), gru(name="b"))
    path = saved(theirs, tmp_path, ".keras")
    expected = np.asarray(theirs.layers[0](X))
    fastgru.io.from_keras(path, "a", verify=(X, expected))
    with pytest.raises(ValueError, match=r"verify: .* differ"):
        fastgru.io.from_keras(path, "a", verify=(X, expected + 0.01))
    with pytest.raises(ValueError, match="expected one layer, got a, b"):
        fastgru.io.from_keras(path, verify=(X, expected))


def test_other_folders_are_saved_models(tmp_path, monkeypatch):
    theirs = model_of(gru(name="it"))
    found = find(theirs)
    monkeypatch.setattr(
        savedmodel, "find", lambda folder, budget: found if folder == tmp_path else []
    )
    assert fastgru.io.from_keras(tmp_path, "it") is found[0].layer
    assert fastgru.io.from_keras(str(tmp_path)) == {"it": found[0].layer}
    fastgru.io.from_keras(tmp_path, verify=(X, np.asarray(theirs(X))))


def test_what_was_found_is_said(tmp_path):
    theirs = model_of(L.Bidirectional(gru(reset_after=False), name="it"))
    path = saved(theirs, tmp_path, ".keras")
    (one,) = find(path)
    assert one.convention == "gates z r h in columns, bias (3H,), reset before"
    assert one.recognised == f"{path}: config.json: Bidirectional"


def changed(path, to, edit):
    """Copy a .keras file with its config changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                edit(config["config"]["layers"])
                data = json.dumps(config)
            new.writestr(name, data)
    return to


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["config"].update(units=2**40), "units=1099511627776"),
        (lambda c: c["config"].update(units=H - 1), f"units={H - 1}.*bias"),
        (lambda c: c["config"].update(units="many"), "units: expected a positive integer"),
        (lambda c: c["config"].update(reset_after=False), r"expected a bias of shape \(15,\)"),
        (lambda c: c["config"].update(use_bias=False), "expected 2 arrays .* got 3"),
        (lambda c: c["config"].update(dtype="int8"), "dtype: expected"),
        (lambda c: c["config"].update(activation="tanhh"), "Did you mean 'tanh'"),
        (lambda c: c["config"].update(surprise=1), "surprise"),
        (lambda c: c["config"].update(activation={"class_name": "__lambda__"}), "executed"),
        (lambda c: c.update(class_name="LSTM"), "found none"),
        (lambda c: c.update(module="somewhere.else"), "found none"),
        (lambda c: c.update(class_name="RNN"), "found none"),
    ],
)
def test_configs_that_do_not_fit(edit, message, tmp_path):
    path = saved(model_of(gru(name="it")), tmp_path, ".keras")
    new = changed(path, tmp_path / "new.keras", lambda layers: edit(layers[1]))
    with pytest.raises(ValueError, match=message) as error:
        fastgru.io.from_keras(new)
    assert str(error.value).startswith(str(new))


def test_names_are_unique(tmp_path):
    path = saved(model_of(gru(name="it")), tmp_path, ".keras")
    new = changed(path, tmp_path / "new.keras", lambda layers: layers.append(layers[1]))
    with pytest.raises(ValueError, match="a name of its own"):
        fastgru.io.from_keras(new)


def test_wrong_sources(tmp_path):
    path = saved(model_of(gru(name="it")), tmp_path, ".keras")
    with pytest.raises(ValueError, match="expected one of it, got name='that'"):
        fastgru.io.from_keras(path, "that")
    with pytest.raises(ValueError, match="found none"):
        fastgru.io.from_keras(saved(model_of(L.Dense(2)), tmp_path, ".h5"))
    (tmp_path / "text.keras").write_text("no zip file")
    with pytest.raises(ValueError, match=r"expected a \.keras or .h5 file"):
        fastgru.io.from_keras(tmp_path / "text.keras")
    with pytest.raises(FileNotFoundError):
        fastgru.io.from_keras(tmp_path / "absent.keras")
    with pytest.raises(TypeError, match="expected a path, or a live Keras model"):
        fastgru.io.from_keras(3)
