"""Trained models in packages of PyPI, against the libraries that they were made for.

Optional: `FASTGRU_MODELS=folder pytest tests/io/test_io_published_models.py`, with the packages as
`pip download --no-deps` leaves them. Nothing is downloaded here. Each GRU is compared with what
the library computed once (tests/data/published), and with the library itself where it is installed.
"""

import importlib.util
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import published_models as models
import pytest

import fastgru
from fastgru.cli.models import find
from fastgru.io import from_keras, from_torch, read_arrays

DATA = Path(__file__).parents[1] / "data" / "published"
# Absolute. All outputs are in [-1, 1], but for WebRTC's (relu), which are up to 6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Return a function that gives the folder of a package, or skips the test."""
    known = {}

    def fetch(name):
        if name not in known:
            try:
                known[name] = models.fetch(name, tmp_path_factory.mktemp(name))
            except models.Missing as error:
                known[name] = error
        if isinstance(known[name], models.Missing):
            pytest.skip(str(known[name]))
        return known[name]

    return fetch


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Return a function that runs a judge once, or skips the test without its library."""
    known = {}

    def run(key, library, judge):
        if library == "g++":
            if shutil.which("g++") is None:
                pytest.skip("needs g++")
        elif importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}: pip install {library}")
        if key not in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the judge's own
                known[key] = judge()
        return known[key]

    return run


def stored(kind, model):
    """Return the arrays of a model in one of the files that make.py wrote."""
    with np.load(DATA / f"{kind}.npz") as file:
        start = f"{model}/"
        return {key.removeprefix(start): file[key] for key in file if key.startswith(start)}


def check(layer, known, gru):
    """Compare a layer with a library's output for the same input; -rP shows the differences."""
    options = {part: known.get(f"{gru}:{part}") for part in ("mask", "lengths")}
    got = layer(known[f"{gru}:x"], **options)
    y = got[0] if isinstance(got, tuple) else got
    want = known[f"{gru}:y"]
    # Gates that are all 0 or 1 would give few numbers, and any formula of a GRU the same ones.
    assert len(np.unique(want)) > want.size / 3
    print(f"{gru}: largest difference {np.abs(y - want).max():.1e}")
    np.testing.assert_allclose(y, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("judge", ["stored", "live"])
@pytest.mark.parametrize("gru", ["bidirectional_1", "bidirectional_2"])
def test_crema(gru, judge, fetched, live):
    """Keras 2.2.2's .h5: hard_sigmoid of that time, reset before, both directions."""
    folder = fetched("crema")
    layer = from_keras(models.crema_file(folder), gru)
    for half in layer.halves:
        assert not half.reset_after
        assert half.recurrent_activation.name == "hard_sigmoid_keras2"
    known = (
        stored("keras2", "crema")
        if judge == "stored"
        else live("crema", "tf_keras", partial(models.crema_judge, folder))
    )
    check(layer, known, gru)


@pytest.mark.parametrize("judge", ["stored", "live"])
@pytest.mark.parametrize("name", models.CLASSIFIERS)
@pytest.mark.parametrize("version", ["0.5.5", "0.5.9"])
def test_sleepecg(version, name, judge, fetched, live, tmp_path):
    """The same networks as SavedModel and as .keras, with Masking, both directions, twice."""
    key = f"sleepecg_{version.replace('.', '_')}"
    kind, library = ("keras2", "tf_keras") if version == "0.5.5" else ("keras3", "keras")
    path = models.classifier_file(fetched(key), name, version, tmp_path)
    with pytest.warns(UserWarning, match=r"pass mask = \(x != -1\)\.any\(-1\)"):
        layers = from_keras(path)
    assert len(layers) == 2

    def run():
        return models.classifier_judge(importlib.import_module(library), path)

    known = stored(kind, f"{key}/{name}") if judge == "stored" else live((key, name), library, run)
    for gru, layer in layers.items():
        assert not known[f"{gru}:mask"].all()
        check(layer, known, gru)


E2K_GRUS = [
    *((name, g) for name in models.E2K for g in ("encoder", "pre_decoder", "post_decoder")),
    ("accent", "rnn"),
]


@pytest.mark.parametrize("judge", ["stored", "live"])
@pytest.mark.parametrize(("name", "gru"), E2K_GRUS)
def test_e2k(name, gru, judge, fetched, live):
    """Float16 in safetensors, with torch's names; several GRUs beside attention."""
    pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    folder = fetched("e2k")
    path = models.e2k_file(folder, name)
    layer = from_torch(path, gru)
    assert {weight.dtype for weight in layer.get_weights()} == {np.dtype("f4")}
    known = (
        stored("torch", f"e2k/{name}")
        if judge == "stored"
        else live(name, "torch", partial(models.e2k_judge, folder, name))
    )
    check(layer, known, gru)


@pytest.mark.parametrize("judge", ["stored", "live"])
@pytest.mark.parametrize("gru", ["encoder.rnn", "decoder.rnn"])
def test_persian(gru, judge, fetched, live):
    """A pickled dict of arrays in an .npy file, with torch's names."""
    folder = fetched("persian")
    layer = from_torch(models.persian_file(folder), gru)
    known = (
        stored("torch", "persian")
        if judge == "stored"
        else live("persian", "torch", partial(models.persian_judge, folder))
    )
    check(layer, known, gru)


@pytest.mark.parametrize("judge", ["stored", "live"])
@pytest.mark.parametrize("part", ["enc", "dec"])
def test_g2p_en(part, judge, fetched, live):
    """torch's layout under names of the package's own: renamed, or by the table of layouts."""
    folder = fetched("g2p_en")
    arrays = read_arrays(models.g2p_file(folder))
    layer = from_torch(models.g2p_state(arrays, part))
    own = (arrays[f"{part}_{name}"] for name in models.G2P_NAMES)
    for a, b in zip(layer.get_weights(), fastgru.gates.to_keras("torch", *own), strict=True):
        np.testing.assert_array_equal(a, b)
    known = (
        stored("torch", "g2p_en")
        if judge == "stored"
        else live("g2p_en", "torch", partial(models.g2p_judge, folder))
    )
    check(layer, known, part)


@pytest.mark.parametrize("judge", ["stored", "live"])
@pytest.mark.parametrize(
    ("kind", "approximate"), [("exact", False), ("table", False), ("table", True)]
)
def test_webrtc(kind, approximate, judge, fetched, live, tmp_path):
    """RNNoise's int8 arrays in C++: relu, reset before, a sigmoid out of a table.

    The table's sigmoid may be passed as a function; its distance from the sigmoid is below the
    bound too.
    """
    folder = fetched("webrtc")
    arrays = models.webrtc_arrays(folder)
    tansig = models.tansig(folder)

    def sigmoid(x):
        return (0.5 + 0.5 * tansig(0.5 * x)).astype(x.dtype)

    layer = fastgru.GRU(
        24,
        activation="relu",
        recurrent_activation=sigmoid if approximate else "sigmoid",
        reset_after=False,
        return_sequences=True,
    )
    layer.build((None, None, 24))
    matrices = (
        arrays[name].reshape(24, 72) for name in ("kHiddenGruWeights", "kHiddenGruRecurrentWeights")
    )
    layer.set_weights(fastgru.gates.to_keras("rnnoise", *matrices, arrays["kHiddenGruBias"]))
    known = (
        stored("webrtc", "webrtc")
        if judge == "stored"
        else live("webrtc", "g++", partial(models.webrtc_judge, folder, tmp_path))
    )
    check(layer, known, kind)


INSPECTED = {
    "crema": {"bidirectional_1", "bidirectional_2"},
    "e2k": {"encoder", "pre_decoder", "post_decoder"},
    "persian": {"encoder.rnn", "decoder.rnn"},
}


@pytest.mark.parametrize("name", INSPECTED)
def test_inspect_finds_every_gru(name, fetched):
    folder = fetched(name)
    path = {
        "crema": models.crema_file,
        "persian": models.persian_file,
        "e2k": partial(models.e2k_file, name="model-c2k"),
    }[name](folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {one.name for one in find(path)} == INSPECTED[name]
