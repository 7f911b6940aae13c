"""A file of another program: the message of the wrong reader names the right one."""

import pickle
import zipfile
from pathlib import Path

import pytest

import fastgru

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(
    ("name", "data", "reader"),
    [
        ("a.pt", b"PK\3\4" + bytes(20), r"fastgru\.io\.from_torch"),
        ("a.keras", b"PK\3\4" + bytes(20), r"fastgru\.io\.from_keras"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(20), r"fastgru\.io\.from_keras"),
        ("old.pt", b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", r"fastgru\.io\.from_torch"),
        ("a.onnx", b"\x08\x0a" + bytes(20), r"fastgru\.io\.from_onnx"),
        ("a.index.json", b'{"weight_map": {}}', r"fastgru\.io\.from_torch"),
        ("model.json", b'{"format": "layers-model"}', r"fastgru\.io\.from_keras"),
        ("a.npy", b"\x93NUMPY" + bytes(20), r"fastgru\.io\.read_arrays"),
    ],
)
def test_files_of_other_programs_name_their_reader(tmp_path, name, data, reader):
    pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=reader) as raised:
        fastgru.load(tmp_path / name)
    assert "expected a .safetensors file of fastgru.save" in str(raised.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="SavedModels"):
        fastgru.load(tmp_path / "folder")


@pytest.mark.parametrize(
    ("read", "name", "reader"),
    [
        (fastgru.io.from_keras, "torch/gru.pt", r"torch\.save; fastgru\.io\.from_torch"),
        (fastgru.io.from_keras, "onnx/script.onnx", r"ONNX model; fastgru\.io\.from_onnx"),
        (fastgru.io.from_torch, "keras/nested.h5", r"HDF5 file; fastgru\.io\.from_keras"),
        (fastgru.io.from_keras, "tensorflow/js_plain", r"give its model\.json"),
        (
            fastgru.io.from_onnx,
            "torch/gru.pt",
            r"ONNX model, got a zip file; fastgru\.io\.from_torch",
        ),
        (fastgru.io.from_onnx, "keras/nested.h5", r"HDF5 file; fastgru\.io\.from_keras"),
        (fastgru.io.from_onnx, "whole/outputs.npz", r"zip file; fastgru\.io\.read_arrays"),
    ],
)
def test_a_wrong_reader_names_the_right_one(read, name, reader):
    with pytest.raises(ValueError, match=reader):
        read(DATA / name)


READERS = (fastgru.io.from_keras, fastgru.io.from_torch, fastgru.load, fastgru.io.read_arrays)


@pytest.mark.parametrize(
    ("name", "data", "readers", "message"),
    [
        ("w.pkl", pickle.dumps([1.0]), READERS, r"a pickle; .* another one.* numpy\.savez"),
        ("empty.pt", b"", READERS, r"an empty file; write or copy it again"),
        (
            "cut.keras",
            b"PK\3\4" + bytes(99),
            READERS[:2],
            r"expected a zip file, got a part of one",
        ),
        ("model.json", b'{"class_name": "GRU"}', READERS[:1], r"to_json.*load_keras_weights"),
        (
            "gru.safetensors",
            b"\x02\0\0\0\0\0\0\0{}",
            (fastgru.io.from_keras, fastgru.io.from_onnx),
            r"a safetensors file; fastgru\.load .* fastgru\.io\.from_torch",
        ),
        ("gru.safetensors", b"\x02\0\0\0\0\0\0\0{}", READERS[2:3], r"got one with metadata none; "),
    ],
)
def test_a_file_that_no_reader_takes_says_what_to_do(tmp_path, name, data, readers, message):
    pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    pytest.importorskip("onnx", reason="pip install 'fastgru[onnx]'")
    (tmp_path / name).write_bytes(data)
    for read in readers:
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_weights_of_a_saved_model_are_set_from_its_layers(tmp_path):
    with zipfile.ZipFile(DATA / "savedmodel" / "exported.zip") as archive:
        archive.extractall(tmp_path)
    (folder,) = (path.parent for path in tmp_path.rglob("saved_model.pb"))
    with pytest.warns(UserWarning, match=r"use build and set_weights, with get_weights\(\)"):
        layers = fastgru.io.from_keras(folder)
    source = next(iter(layers.values()))
    kernel, _, _ = source.get_weights()
    layer = fastgru.GRU(source.units, activation="relu", reset_after=source.cell.reset_after)
    with pytest.raises(ValueError, match=r"folder; from_keras reads SavedModels"):
        fastgru.io.load_keras_weights(layer, folder)
    layer.build((None, None, len(kernel)))
    layer.set_weights(source.get_weights())
    assert (layer.get_weights()[0] == kernel).all()
