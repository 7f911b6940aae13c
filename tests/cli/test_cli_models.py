"""The files that the command line reads: weights without a config, archives, foreign files."""

import importlib.util
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli_support import H, I, save_input
from savedmodel_support import unpack

import fastgru
from fastgru.cli import main
from fastgru.io import to_keras_weights, to_torch
from fastgru.io.named_arrays import find

DATA = Path(__file__).parents[1] / "data"
RNG = np.random.default_rng(2)


def built(layer, seed=1):
    rng = np.random.default_rng(seed)
    layer.build((None, None, I))
    layer.set_weights([rng.normal(size=w.shape).astype("float32") for w in layer.get_weights()])
    return layer


def keras_named(layer, place):
    return dict(
        zip(
            [f"{place}{role}" for role in ("kernel", "recurrent_kernel", "bias")],
            layer.get_weights(),
            strict=False,
        )
    )


def run(folder, model, *more):
    code = main(["run", str(model), str(folder / "IN.npy"), "-o", str(folder / "OUT.npy"), *more])
    return np.load(folder / "OUT.npy") if code == 0 else code


# ---- arrays in the names of PyTorch and of Keras -------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "encoder.gru."])
def test_npz_in_torchs_names(prefix, tmp_path, capsys):
    layer, x = built(fastgru.GRU(H, return_sequences=True)), save_input(tmp_path)
    np.savez(tmp_path / "m.npz", other=x, **{prefix + k: v for k, v in to_torch(layer).items()})
    np.testing.assert_array_equal(run(tmp_path, tmp_path / "m.npz"), layer(x))
    assert main(["inspect", str(tmp_path / "m.npz")]) == 0
    shown = capsys.readouterr().out
    assert "gates r z n in rows, two biases, reset after" in shown
    assert "known by weight_ih_l0 (3H, I)" in shown


def test_npz_of_two_layers_and_directions_in_torchs_names(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    gru = torch.nn.GRU(I, H, num_layers=2, bidirectional=True, batch_first=True)
    x = save_input(tmp_path)
    np.savez(tmp_path / "m.npz", **{k: v.numpy() for k, v in gru.state_dict().items()})
    expected = gru(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(run(tmp_path, tmp_path / "m.npz"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("", "gru"),
        ("gru/", "gru"),
        ("decoder.", "decoder"),
        ("model/gru/gru_cell/", "model/gru"),
        ("layers/gru/cell/", "layers/gru"),
    ],
)
@pytest.mark.parametrize("reset_after", [True, False])
def test_npz_in_keras_names(place, name, reset_after, tmp_path, capsys):
    layer, x = built(fastgru.GRU(H, reset_after=reset_after)), save_input(tmp_path)
    np.savez(tmp_path / "m.npz", embedding=x, **keras_named(layer, place))
    np.testing.assert_array_equal(run(tmp_path, tmp_path / "m.npz", "--name", name), layer(x))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "fastgru run: warning: " in said
    assert "assumed: activation='tanh', recurrent_activation='sigmoid'" in said
    assert main(["inspect", str(tmp_path / "m.npz")]) == 0
    shown = capsys.readouterr().out
    assert f"reset {'after' if reset_after else 'before'}" in shown
    assert re.search(r"known by names and shapes of .*; assumed: activation='tanh'", shown)


def test_weights_of_cells_keep_names_of_their_own(tmp_path):
    first, second = built(fastgru.GRU(H), 1), built(fastgru.GRU(H), 2)
    arrays = keras_named(first, "rnn/gru_cell/") | keras_named(second, "rnn/gru_cell_1/")
    np.savez(tmp_path / "m.npz", **arrays)
    found = {one.name: one.layer for one in find(tmp_path / "m.npz")}
    assert list(found) == ["rnn/gru_cell", "rnn/gru_cell_1"]
    for layer, one in zip((first, second), found.values(), strict=True):
        np.testing.assert_array_equal(layer.get_weights()[0], one.get_weights()[0])


def test_weights_alone_of_keras(tmp_path, capsys):
    pytest.importorskip("h5py", reason="it writes the file")
    layer, x = built(fastgru.GRU(H)), save_input(tmp_path)
    to_keras_weights(layer, tmp_path / "m.weights.h5")
    y = run(tmp_path, tmp_path / "m.weights.h5", "--name", "layers/gru")
    np.testing.assert_array_equal(y, layer(x))
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "m.weights.h5")]) == 0
    assert "assumed: activation='tanh'" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["before_weights.h5", "cudnn_weights.h5"])
def test_weights_alone_of_keras_2(name, capsys):
    assert main(["inspect", str(DATA / "keras" / name)]) == 0
    shown = capsys.readouterr().out
    assert "assumed: activation='tanh'" in shown
    assert ("reset after" if "cudnn" in name else "reset before") in shown


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones(3)}, r"got a \(3,\); read_arrays and fastgru.gates.to_keras convert"),
        ({"kernel": np.ones((4, 9)), "recurrent_kernel": np.ones((3, 8))}, "expected arrays named"),
        ({"kernel": np.ones((4, 12)), "recurrent_kernel": np.ones((3, 12))}, "expected arrays"),
        ({"kernel": np.ones((4, 9))}, "expected arrays named"),
        (
            {"kernel": np.ones((4, 9)), "recurrent_kernel": np.ones((3, 9)), "bias": np.ones(8)},
            "expected arrays named",
        ),
        ({"kernel": np.ones((4, 9)), "kernel:0": np.ones((4, 9))}, "expected one kernel under"),
        ({"weight_hh_l0": np.ones((9, 3))}, "weight_ih_l0"),
    ],
)
def test_arrays_that_are_no_gru(arrays, message, tmp_path, capsys):
    np.savez(tmp_path / "m.npz", **arrays)
    assert main(["inspect", str(tmp_path / "m.npz")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_numbers_of_other_arrays_are_not_a_gru(tmp_path):
    layer = built(fastgru.GRU(H))
    names = [f"cell/vars/{n}" for n in range(4)]
    arrays = dict(zip(names, [*layer.get_weights(), np.ones(3)], strict=True))
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(ValueError, match="expected arrays named"):
        find(tmp_path / "m.npz")


# ---- archives and foreign files ------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "convert", "run"])
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_an_archive_of_one_model_is_not_read(command, kind, tmp_path, capsys):
    path = tmp_path / f"m.{kind}"
    model = DATA / "onnx" / "script.onnx"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(model, "script.onnx")
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(model, "script.onnx")
    more = {"convert": ["o.safetensors"], "run": ["i", "-o", "o"]}.get(command, [])
    assert main([command, str(path), *more]) == 2
    assert "got an archive; unpack it" in capsys.readouterr().err


def test_an_archive_under_the_name_of_a_model(tmp_path):
    pytest.importorskip("onnx", reason="pip install 'fastgru[onnx]'")
    for start in (b"PK\3\4", b"\x1f\x8b\x08"):
        (tmp_path / "m.onnx").write_bytes(start + b"\0" * 50)
        with pytest.raises(ValueError, match="expected an ONNX model, got an archive; unpack it"):
            fastgru.io.from_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("keras/before.h5", "an HDF5 file; fastgru.io.from_keras or load_keras_weights reads it"),
        ("keras/before.keras", "a zip file; fastgru.io.from_keras reads it"),
        ("torch/gru.pt", "a zip file; fastgru.io.from_torch reads it"),
        ("torch/legacy.pt", "a pickle; fastgru.io.from_torch reads those of PyTorch"),
        ("onnx/script.onnx", "an ONNX model; fastgru.io.from_onnx reads it"),
        ("onnx/outputs.npz", "a zip file; fastgru.io.read_arrays reads it"),
        ("torch/gru.safetensors", "weights of PyTorch are read by fastgru.io.from_torch"),
        ("keras", "a folder; fastgru.io.from_keras reads SavedModels"),
    ],
)
def test_load_names_the_reader_of_a_foreign_file(file, message):
    pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    with pytest.raises(ValueError, match=re.escape(message)):
        fastgru.load(DATA / file)


def test_inspect_shows_the_mask_that_the_model_gives(capsys):
    assert main(["inspect", str(DATA / "whole" / "classifier.keras")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("    mask: ") == 2
    assert "ids != 0" in shown


def test_run_reminds_of_the_mask(tmp_path, capsys):
    x = np.zeros((2, 3, 5), "float32")
    np.save(tmp_path / "IN.npy", x)
    assert run(tmp_path, DATA / "whole" / "classifier.keras", "--name", "both").shape == (2, 3, 8)
    said = capsys.readouterr().err
    assert said.startswith("fastgru run: warning: ")
    assert "pass mask = ids != 0" in said
    assert said.count("\n") == 1


def test_warnings_of_a_reader_are_lines(tmp_path, capsys):
    layer = built(fastgru.GRU(H))
    np.savez(tmp_path / "m.npz", **keras_named(layer, "gru/"))
    assert main(["convert", str(tmp_path / "m.npz"), str(tmp_path / "o.safetensors")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("fastgru convert: warning: ")
    assert said.count("\n") == 1
    assert "models.py" not in said


# ---- every kind of file --------------------------------------------------------------------------

KINDS = {
    "tensorflow/keras2.index": "both/forward_gru",
    "tensorflow/keras2": "both/forward_gru",
    "tensorflow/latest": "both/forward_gru",
    "tensorflow/js_uint8/model.json": "both",
    "torch/model.safetensors.index.json": "GRU",
    "keras/before.keras": "GRU",
    "savedmodel": "GRU",
}


@pytest.mark.parametrize("path", KINDS)
def test_inspect_reads_every_kind_of_file(path, capsys, tmp_path):
    model = DATA / path
    if path == "savedmodel":
        model = unpack("nested", tmp_path)
    if "safetensors" in path:
        pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    assert main(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    assert KINDS[path] in shown
    assert "known by" in shown


@pytest.mark.parametrize("end", [".bin", ".ckpt", ".PT"])
def test_files_of_torch_save_by_other_names(end, capsys, tmp_path):
    (tmp_path / f"model{end}").write_bytes((DATA / "torch" / "gru.pt").read_bytes())
    assert main(["inspect", str(tmp_path / f"model{end}")]) == 0
    assert "gates r z n in rows" in capsys.readouterr().out


def test_named_arrays_say_what_is_assumed(capsys, tmp_path):
    layer = fastgru.GRU(3)
    layer.build((None, None, 2))
    names = ("kernel", "recurrent_kernel", "bias")
    arrays = {f"enc/{n}": w for n, w in zip(names, layer.get_weights(), strict=True)}
    np.savez(tmp_path / "m.npz", **arrays)
    assert main(["inspect", str(tmp_path / "m.npz")]) == 0
    shown = capsys.readouterr().out
    assert "names and shapes of enc" in shown
    assert "assumed: activation='tanh'" in shown


def test_links_of_onnx_are_followed_only_when_asked(capsys, tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install 'fastgru[onnx]'")
    layer = fastgru.GRU(3)
    layer.build((None, None, 2))
    fastgru.io.to_onnx(layer, tmp_path / "whole.onnx")
    model = onnx.load(tmp_path / "whole.onnx")
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save_model(
        model, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (folder / "w.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "w.bin").symlink_to(tmp_path / "elsewhere.bin")
    assert main(["inspect", str(folder / "m.onnx")]) == 2
    assert "--follow-links on the command line" in capsys.readouterr().err
    assert main(["inspect", "--follow-links", str(folder / "m.onnx")]) == 0
    target = tmp_path / "out.safetensors"
    if importlib.util.find_spec("safetensors"):
        assert main(["convert", "--follow-links", str(folder / "m.onnx"), str(target)]) == 0
