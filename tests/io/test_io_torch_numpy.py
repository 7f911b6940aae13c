"""State dicts of NumPy's arrays: in pickles of torch.save and numpy.save, and in .npz files."""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastgru
from fastgru.io import from_keras, from_torch, load_keras_weights, read_arrays
from fastgru.io.budget import Budget
from fastgru.io.torch_pickle import load_pickle

DATA = Path(__file__).parents[1] / "data" / "torch"
STATES = np.load(DATA / "states.npz")
CASE = "2x2"
STATE = {
    key.partition("/")[2]: STATES[key]
    for key in STATES
    if key.startswith(f"{CASE}/") and "_l" in key
}
X, Y = STATES[f"{CASE}/x"], STATES[f"{CASE}/y"]


def as_saved_by(pickled, path):
    """Write a file as torch.save does of an object without tensors."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/byteorder", "little")
    return path


def close(layer):
    np.testing.assert_allclose(layer(X)[0], Y - late(), rtol=0, atol=1e-6)


def late():
    """Torch's outputs start from h_0: what that start gives is taken out by running it here too."""
    reference = from_torch(STATE)
    h_0 = STATES[f"{CASE}/h_0"]
    np.testing.assert_allclose(reference(X, initial_state=h_0)[0], Y, rtol=0, atol=1e-6)
    return Y - reference(X)[0]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_in_a_file_of_torch_save(protocol, tmp_path):
    odd = {
        **STATE,
        "weight_hh_l0": np.asfortranarray(STATE["weight_hh_l0"]),
        "bias_ih_l0": STATE["bias_ih_l0"].astype(">f4"),
        "epoch": np.float32(3),
        "mask": np.array([True, False]),
        "names": np.array(["a"], object),
    }
    path = as_saved_by(pickle.dumps(odd, protocol), tmp_path / "m.pt")
    close(from_torch(path))
    arrays = read_arrays(path)
    for name in (*STATE, "mask"):
        np.testing.assert_array_equal(arrays[name], odd[name])
    assert "names" not in arrays


def test_a_dict_in_an_npy_file(tmp_path):
    np.save(tmp_path / "m.npy", {f"net.{k}": v for k, v in STATE.items()}, allow_pickle=True)
    close(from_torch(tmp_path / "m.npy"))
    close(from_torch(tmp_path / "m.npy", "net"))
    arrays = read_arrays(tmp_path / "m.npy")
    assert list(arrays) == [f"net.{k}" for k in STATE]


@pytest.mark.parametrize("kind", [list, tuple])
def test_state_dicts_in_a_list(kind, tmp_path):
    """As checkpoints of several models have them."""
    other = {name: 2 * array for name, array in STATE.items()}
    tree = {"models": kind([other, STATE]), "history": [1.5, {"loss": 2}], "epoch": 3}
    path = as_saved_by(pickle.dumps(tree, 2), tmp_path / "m.pt")
    close(from_torch(path, "models.1"))
    close(from_torch(tree, "models.1"))
    with pytest.raises(ValueError, match=r"pass as prefix one of 'models.\d', 'models.\d'"):
        from_torch(path)


def test_other_npy_files(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ValueError, match="expected weights with names, got one array of NumPy"):
        from_torch(tmp_path / "one.npy")
    np.save(tmp_path / "two.npy", np.array([STATE, STATE], object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected weights with names, got one array of NumPy"):
        from_torch(tmp_path / "two.npy")


WRONG = {
    "shape": lambda a: (1, (9, 9), a.dtype, False, a.tobytes()),
    "negative": lambda a: (1, (-12, -2), a.dtype, False, a.tobytes()),
    "huge": lambda a: (1, (2**62, 2**62), a.dtype, False, a.tobytes()),
    "no bytes": lambda a: (1, a.shape, a.dtype, False, 7),
    "dtype": lambda a: (1, a.shape, np.dtype("V4"), False, a.tobytes()),
    "strings": lambda a: (1, a.shape, np.dtype("S4"), False, a.tobytes()),
    "short": lambda a: (1, a.shape, a.dtype, False, a.tobytes()[:-1]),
}


class Forged:
    """An array whose pickle says something else of it."""

    def __init__(self, array, state):
        self.array, self.state = array, state

    def __reduce__(self):
        function, arguments, _ = self.array.__reduce__()
        return function, arguments, self.state


@pytest.mark.parametrize("what", WRONG)
def test_forged_arrays(what, tmp_path):
    array = STATE["weight_ih_l0"]
    forged = {**STATE, "weight_ih_l0": Forged(array, WRONG[what](array))}
    path = as_saved_by(pickle.dumps(forged, 2), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"weight_ih_l0|got shapes|expected"):
        from_torch(path)
    assert "weight_ih_l0" not in read_arrays(path)


def test_nothing_is_called(monkeypatch):
    """No array is made while the pickle is read, and its functions are only names."""
    data = pickle.dumps(STATE, 2)
    assert b"_reconstruct" in data
    monkeypatch.setattr(np, "ndarray", None)
    monkeypatch.setattr(np, "frombuffer", None)
    tree = load_pickle(data, "here", Budget("here"))
    assert list(tree) == list(STATE)
    assert {op.name for op, *_ in pickletools.genops(data)} >= {"REDUCE", "BUILD"}


# ---- .npz with Keras' names ----------------------------------------------------------------------


def keras_arrays(layer, place):
    names = ("kernel", "recurrent_kernel", "bias")
    return dict(zip((f"{place}{name}" for name in names), layer.get_weights(), strict=True))


def layer_of(units, name=None):
    layer = fastgru.GRU(units, name=name, return_sequences=True)
    layer.build((None, None, 3))
    rng = np.random.default_rng(units)
    layer.set_weights([rng.normal(size=v.shape).astype("float32") for v in layer.weights])
    return layer


@pytest.mark.parametrize("place", ["", "encoder/gru_cell/", "model/encoder/"])
def test_npz_with_names_of_keras(place, tmp_path):
    theirs = layer_of(4, "encoder")
    np.savez(tmp_path / "m.npz", **keras_arrays(theirs, place), other=np.ones(3))
    ours = fastgru.GRU(4, name="encoder")
    load_keras_weights(ours, tmp_path / "m.npz")
    with pytest.warns(UserWarning, match="assumed: activation='tanh'"):
        (found,) = from_keras(tmp_path / "m.npz").values()
    for layer in (ours, found):
        for a, b in zip(layer.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_npz_of_several_layers_goes_by_names(tmp_path):
    a, b = layer_of(4, "a"), layer_of(5, "b")
    np.savez(tmp_path / "m.npz", **keras_arrays(b, "b/"), **keras_arrays(a, "a/"))
    ours = fastgru.GRU(4, name="a")
    load_keras_weights(ours, tmp_path / "m.npz")
    np.testing.assert_array_equal(ours.get_weights()[0], a.get_weights()[0])
    with pytest.raises(ValueError, match=r"expected 1 cells, got 2|give the layer the name"):
        load_keras_weights(fastgru.GRU(4, name="c"), tmp_path / "m.npz")


def test_a_cell_with_more_variables_than_a_gru_is_none(tmp_path):
    arrays = keras_arrays(layer_of(4, "encoder"), "encoder/gru_cell/")
    np.savez(tmp_path / "m.npz", **arrays, **{"encoder/gru_cell/gamma": np.ones(12, "float32")})
    with pytest.raises(ValueError, match="expected arrays named as Keras does"):
        from_keras(tmp_path / "m.npz")


def test_npz_without_a_gru(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"expected arrays named as Keras does.*a \(3, 4\)"):
        from_keras(tmp_path / "m.npz")
    buffer = io.BytesIO()
    np.savez(buffer, **STATE)
    (tmp_path / "t.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="from_torch reads PyTorch's names"):
        from_keras(tmp_path / "t.npz")
