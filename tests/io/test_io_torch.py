"""from_torch and to_torch, against files that torch wrote and against its formula."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import subprocesses
import torch_files
from torch_files import state_dict, torch_gru

import fastgru
from fastgru import io
from fastgru.io.torch import find

DATA = Path(__file__).parents[1] / "data" / "torch"
EXPECTED = np.load(DATA / "expected.npz")
B, T, I, H = 3, 6, 5, 4
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def rng(seed=0):
    return np.random.default_rng(seed)


def check(layer, x, y, h):
    """The outputs are torch's, and the states the last layer's part of h_n."""
    got, *states = layer(x)
    assert got.dtype == x.dtype
    np.testing.assert_allclose(got, y, rtol=0, atol=TOLERANCE[x.dtype.name])
    np.testing.assert_allclose(states, h[-len(states) :], rtol=0, atol=TOLERANCE[x.dtype.name])
    assert len(states) == y.shape[2] // h.shape[2]


# ---- files that torch wrote ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "prefix", "expected", "kind"),
    [
        ("gru.pt", "", "gru.pt:", "Sequential"),
        ("gru.safetensors", "", "gru.pt:", "Sequential"),
        ("legacy.pt", "", "gru.pt:", "Sequential"),
        ("module.pt", "", "gru.pt:", "Sequential"),
        ("checkpoint.pth", "state_dict.encoder.gru", None, "Bidirectional"),
        ("checkpoint.pth", "state_dict.encoder", "checkpoint.pth:state_dict.encoder.gru", None),
        ("checkpoint.pth", "state_dict.decoder.", "checkpoint.pth:state_dict.decoder", "GRU"),
        ("parameters.pt", "", "parameters.pt:", "GRU"),
        ("half.pt", "", "half.pt:", "GRU"),
        ("half.safetensors", "", "half.pt:", "GRU"),
        ("bfloat16.pt", "", "bfloat16.pt:", "GRU"),
        ("bfloat16.safetensors", "", "bfloat16.pt:", "GRU"),
        ("one_storage.pt", "", "one_storage.pt:", "GRU"),
    ],
)
def test_files_of_torch(file, prefix, expected, kind):
    layer = io.from_torch(DATA / file, prefix)
    x, y, h = (EXPECTED[f"{expected or f'{file}:{prefix}'}:{what}"] for what in "xyh")
    check(layer, x, y, h)
    assert kind in (None, type(layer).__name__)


STATES = np.load(DATA / "states.npz")
MODULES = sorted({key.partition("/")[0] for key in STATES})


@pytest.mark.parametrize("module", MODULES)
def test_a_start_in_one_array_has_torchs_order(module):
    """h_0 is (layers * directions, B, H): of a layer forward and backward, then of the next."""
    found = {k.removeprefix(f"{module}/"): STATES[k] for k in STATES if k.startswith(f"{module}/")}
    x, h_0, y, h_n = (found.pop(name) for name in ("x", "h_0", "y", "h_n"))
    layer = io.from_torch(found)
    got, *states = layer(x, initial_state=h_0)
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(states, h_n[-len(states) :], rtol=0, atol=1e-6)
    (got, *_), _ = layer.forward(x, initial_state=h_0)
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-6)
    for count in (len(h_0) - 1, len(h_0) + 1):
        wrong = np.zeros((count, B, H), "float32")
        with pytest.raises(ValueError, match=r"initial_state.*expected .*got"):
            layer(x, initial_state=wrong)
    with pytest.raises(ValueError, match="initial_state"):
        layer(x, initial_state=h_0[:, :2])


def test_a_start_in_one_array_for_layers_of_keras():
    x, h_0 = np.ones((B, T, I), "float32"), rng().normal(size=(2, B, H)).astype("float32")
    for layer in (
        fastgru.Bidirectional(fastgru.GRU(H)),
        fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)]),
    ):
        np.testing.assert_array_equal(
            layer(x, initial_state=h_0), layer(x, initial_state=list(h_0))
        )
    # Keras has the forward stack's states first, torch the first layer's: no one order is right.
    both = fastgru.Bidirectional(fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)]))
    with pytest.raises(ValueError, match="expected a list of 4 states"):
        both(x, initial_state=np.zeros((4, B, H), "float32"))


def test_half_precision_is_widened_exactly():
    """Every weight of the float32 layer is one that the file's dtype has."""
    for file, dropped in (("half.pt", 13), ("bfloat16.pt", 16)):
        layer = io.from_torch(DATA / file)
        assert layer.dtype == "float32"
        bits = layer.kernel.value.view(np.uint32)
        assert not (bits & ((1 << dropped) - 1)).any()
        assert bits.all()


def test_find_names_every_gru():
    found = {one.name: one for one in find(DATA / "checkpoint.pth")}
    assert sorted(found) == ["state_dict.decoder", "state_dict.encoder.gru"]
    assert "r z n" in found["state_dict.decoder"].convention
    assert "2 directions" in found["state_dict.encoder.gru"].recognised
    assert found["state_dict.decoder"].layer.count_params() == 3 * 8 * (3 + 8 + 2)


def test_what_find_calls_a_gru_is_its_prefix():
    for file in ("gru.pt", "checkpoint.pth"):
        for one in find(DATA / file):
            layer = io.from_torch(DATA / file, one.name)
            for a, b in zip(layer.get_weights(), one.layer.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)


def test_several_need_a_prefix():
    with pytest.raises(ValueError, match="several") as raised:
        io.from_torch(DATA / "checkpoint.pth")
    assert "'state_dict.encoder.gru', 'state_dict.decoder'" in str(raised.value)
    with pytest.raises(ValueError, match=r"LSTM.* under 'state_dict.tagger'"):
        io.from_torch(DATA / "checkpoint.pth", "state_dict.tagger")
    with pytest.raises(ValueError, match=r"a GRU under 'encoder'.*state_dict\.encoder\.gru"):
        io.from_torch(DATA / "checkpoint.pth", "encoder")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("script.pt", "TorchScript"),
        ("make.py", "begins with"),
    ],
)
def test_other_files_are_refused_with_the_way_out(file, message):
    with pytest.raises(ValueError, match=message) as raised:
        io.from_torch(DATA / file)
    assert file in str(raised.value)


def test_without_any_framework():
    """Files, dicts and back, where importing torch and the others fails."""
    pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    code = f"""
    import sys
    class Refuse:
        def find_spec(self, name, *rest):
            if name.partition(".")[0] in {{"tensorflow", "keras", "torch", "onnxruntime", "onnx"}}:
                raise ImportError(name)
    sys.meta_path.insert(0, Refuse())
    import fastgru
    assert "fastgru.io" not in sys.modules
    import fastgru.io
    assert "safetensors" not in sys.modules
    for file in ("gru.pt", "gru.safetensors"):
        layer = fastgru.io.from_torch("{DATA}/" + file)
        assert len(fastgru.io.to_torch(layer)) == 16
    print("read")
    """
    assert subprocesses.run_python(code) == "read\n"


# ---- files, dicts and modules made here ----------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_and_back(layers, directions, bias):
    weights = state_dict(rng(), I, H, layers, directions, bias)
    layer = io.from_torch(weights)
    x = rng(1).normal(size=(B, T, I)).astype("float32")
    check(layer, x, *torch_gru(weights, x))
    back = io.to_torch(layer)
    assert list(back) == list(weights)
    for name, w in weights.items():
        assert back[name].dtype == w.dtype
        np.testing.assert_array_equal(back[name], w)
        assert back[name].flags.c_contiguous
        assert back[name].flags.writeable  # as torch.from_numpy wants it


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_byte_orders(tmp_path, order, dtype):
    weights = state_dict(rng(), I, H, dtype=dtype)
    path = torch_files.write_state_dict(tmp_path / "gru.pt", weights, order)
    for name, w in io.to_torch(io.from_torch(path)).items():
        np.testing.assert_array_equal(w, weights[name])
        assert w.dtype == dtype


def test_a_file_without_byteorder_is_little_endian(tmp_path):
    weights = state_dict(rng(), I, H)
    path = torch_files.write_state_dict(tmp_path / "gru.pt", weights)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "old.pt", "w") as new:
        for name in old.namelist():
            if not name.endswith("byteorder"):
                new.writestr(name, old.read(name))
    back = io.to_torch(io.from_torch(tmp_path / "old.pt"))
    np.testing.assert_array_equal(back["weight_ih_l0"], weights["weight_ih_l0"])


def test_options_prefixes_and_numpys_files(tmp_path):
    weights = state_dict(rng(), I, H, prefix="a.b.") | state_dict(rng(1), I, H + 1)
    weights["a.b.other"] = np.zeros(3, int)
    layer = io.from_torch(weights, "a.b", return_sequences=False, return_state=False)
    assert (layer.units, layer.return_sequences, layer.return_state) == (H, False, False)
    assert layer(np.ones((B, T, I), "float32")).shape == (B, H)
    assert io.from_torch(weights, "a.").units == H
    assert io.from_torch(weights, ".").units == H + 1  # the one without a prefix
    assert io.from_torch({"model": weights}, "model.a").units == H
    np.savez(tmp_path / "weights.npz", **state_dict(rng(), I, H))
    with np.load(tmp_path / "weights.npz") as loaded:
        assert io.from_torch(loaded).units == H


def test_mixed_precision_widens_to_the_widest():
    weights = state_dict(rng(), I, H)
    weights["weight_hh_l0"] = weights["weight_hh_l0"].astype("float64")
    assert io.from_torch(weights).dtype == "float64"
    halves = {name: w.astype("float16") for name, w in weights.items()}
    layer = io.from_torch(halves)
    assert layer.dtype == "float32"
    np.testing.assert_array_equal(io.to_torch(layer)["bias_hh_l0"], halves["bias_hh_l0"])


def test_bfloat16_arrays_of_ml_dtypes():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    weights = {name: w.astype(bfloat16) for name, w in state_dict(rng(), I, H).items()}
    for name, w in io.to_torch(io.from_torch(weights)).items():
        np.testing.assert_array_equal(w, weights[name].astype("float32"))


def test_the_layer_has_weights_of_its_own():
    weights = state_dict(rng(), I, H)
    layer = io.from_torch(weights)
    before = layer.get_weights()
    for w in weights.values():
        w += 1
    for value, kept in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)
    with pytest.raises(ValueError, match="read-only"):
        layer.kernel.value[0] = 0
    layer.kernel.assign(np.ones((I, 3 * H), "float32"))
    assert (layer.kernel.value == 1).all()


def test_verify():
    weights = state_dict(rng(), I, H)
    x = rng(1).normal(size=(B, T, I)).astype("float32")
    y, _ = torch_gru(weights, x)
    io.from_torch(weights, verify=(x, y))
    with pytest.raises(ValueError, match="differ from the expected ones by up to"):
        io.from_torch(weights, verify=(x, y + 0.01))
    with pytest.raises(ValueError, match="shape"):
        io.from_torch(weights, verify=(x, y[:, 0]))


def changed(**changes):
    """State dict of two layers in both directions with some arrays replaced, or taken out."""
    weights = state_dict(rng(), I, H, layers=2, directions=2)
    for name, value in changes.items():
        if value is None:
            del weights[name]
        else:
            weights[name] = np.zeros(value, "float32") if isinstance(value, tuple) else value
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (changed(weight_hh_l1=None), r"weight_hh_l1 of shape \(12, 4\), got nothing"),
        (changed(bias_ih_l0_reverse=None), "bias_ih_l0_reverse of shape .* got nothing"),
        (changed(weight_ih_l0=None), r"expected weight_ih_l0 \(3H, I\) and weight_hh_l0"),
        (changed(weight_ih_l1=(12, 4)), r"weight_ih_l1 of shape \(12, 8\), got \(12, 4\)"),
        (changed(bias_hh_l1=(13,)), r"bias_hh_l1 of shape \(12,\), got \(13,\)"),
        (changed(weight_hh_l0=(12, 5)), r"weight_ih_l0 of shape \(15, 5\)"),
        (changed(weight_ih_l3=(12, 8)), "weight_ih_l2 of shape .* got nothing"),
        (changed(weight_hh_l0=np.zeros((12, 4), "int8")), "got int8; dequantise"),
        (changed(weight_hh_l0=(12,)), r"\(3H, H\), got shapes"),
        ({"weight_ih": np.zeros((16, 3)), "weight_hh": np.zeros((16, 4))}, "an LSTM"),
        ({"weight_ih_l0": np.zeros((4, 3)), "weight_hh_l0": np.zeros((4, 4))}, "a plain RNN"),
        ({"weight_hh_l0": np.zeros((16, 2)), "weight_hr_l0": np.zeros((2, 4))}, "projection"),
        (
            {
                "weight_ih_l0": np.zeros((12, 3)),
                "weight_hh_l0": np.zeros((12, 4)),
                "bias_hh_l0": np.zeros(12),
            },
            "expected bias_hh_l0 beside weight_ih and weight_hh and bias_ih",
        ),
        ({"kernel": np.zeros((3, 12))}, "got no weight_ih_l0"),
        ({}, "got no weight_ih_l0"),
    ],
)
def test_what_is_no_gru_is_refused_with_its_reason(weights, message):
    with pytest.raises(ValueError, match=message):
        io.from_torch(weights)


def test_other_sources():
    with pytest.raises(TypeError, match="path, a state dict or a module"):
        io.from_torch(3)
    with pytest.raises(TypeError, match="prefix"):
        io.from_torch({}, prefix=0)
    with pytest.raises(FileNotFoundError):
        io.from_torch("no such file.pt")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (fastgru.GRU(H, reset_after=False), "reset_after=True"),
        (fastgru.GRU(H, activation="relu"), "has tanh as activation, got"),
        (fastgru.GRU(H, recurrent_activation="hard_sigmoid"), "sigmoid as recurrent_activation"),
        (fastgru.GRU(H, go_backwards=True), "go_backwards"),
        (fastgru.Bidirectional(fastgru.GRU(H), merge_mode="sum"), "merge_mode='sum'"),
        (fastgru.Bidirectional(fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)])), "2 and 2"),
        (fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H + 1)]), "one by one"),
    ],
)
def test_what_torch_cannot_hold(layer, message):
    layer.build((None, None, I))
    with pytest.raises(ValueError, match=message):
        io.to_torch(layer)


def test_to_torch_of_unbuilt_and_of_strangers():
    with pytest.raises(ValueError, match="no weights yet"):
        io.to_torch(fastgru.GRU(H))
    with pytest.raises(ValueError, match="expected GRU"):
        io.to_torch("gru")


def test_cells_and_stacks_of_cells_to_torch():
    layer = fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(H)], return_sequences=True)
    x = rng().normal(size=(B, T, I)).astype("float32")
    y = layer(x)
    for cell in layer.cell.cells:
        cell.bias.assign(rng(2).normal(size=(2, 3 * H)).astype("float32"))
    y = layer(x)
    np.testing.assert_allclose(torch_gru(io.to_torch(layer), x)[0], y, rtol=0, atol=1e-5)
    weights = io.to_torch(layer.cell.cells[0])
    assert list(weights) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    again = io.from_torch(weights)
    for a, b in zip(again.get_weights(), layer.cell.cells[0].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
