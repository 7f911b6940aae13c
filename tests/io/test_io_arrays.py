"""read_arrays: every array of a file, as the library that wrote it holds it."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import savedmodel_support
import subprocesses
from exhaustive import EVERYTHING

from fastgru.io import from_keras, from_onnx, from_torch, read_arrays

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*the model gives it a mask:UserWarning"),
]

DATA = Path(__file__).parents[1] / "data"
RNG = np.random.default_rng(3)
ARRAYS = {
    "emb.weight": RNG.normal(size=(7, 4)).astype("float32"),
    "half": RNG.normal(size=(3,)).astype("float16"),
    "double": RNG.normal(size=(2, 3, 2)),
    "ids": np.arange(-3, 3),
    "small": np.array([[1, 2], [3, 4]], "uint8"),
    "flag": np.array([True, False]),
    "one": np.array(5.5, "float32"),
    "none": np.zeros((0, 4), "float32"),
}


def same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


# ---- what each library wrote ---------------------------------------------------------------------


def keras_model():
    keras = pytest.importorskip("keras", reason="Keras is the judge; pip install fastgru[test]")
    model = keras.Sequential(
        [
            keras.layers.Input((None,)),
            keras.layers.Embedding(11, 4, mask_zero=True, name="ids"),
            keras.layers.Bidirectional(keras.layers.GRU(3), name="both"),
            keras.layers.Dropout(0.5, seed=3),
            keras.layers.Dense(2, name="head"),
        ]
    )
    model.compile("adam", "mse")
    return model


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_keras(name, tmp_path):
    h5py = pytest.importorskip("h5py", reason="the judge of HDF5")
    model = keras_model()
    path = tmp_path / name
    (model.save_weights if "weights" in name else model.save)(path)
    expected = {}

    def visit(place, node):
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "fiu":
            expected[place] = node[()]

    file = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5")) if "keras" in name else path
    with h5py.File(file) as opened:
        opened.visititems(visit)
    ours = read_arrays(path)
    same(ours, expected)
    assert len(ours) >= 9
    for weight in model.get_weights():
        assert any(np.array_equal(weight, array) for array in ours.values())


def test_keras_names_of_a_whole_model(tmp_path):
    model = keras_model()
    model.save(tmp_path / "m.keras")
    arrays = read_arrays(tmp_path / "m.keras")
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_array_equal(arrays["layers/dense/vars/0"], kernel)
    np.testing.assert_array_equal(arrays["layers/dense/vars/1"], bias)
    ids = np.array([[1, 2, 3]])
    states = from_keras(tmp_path / "m.keras", "both")(arrays["layers/embedding/vars/0"][ids])
    y = states @ arrays["layers/dense/vars/0"] + arrays["layers/dense/vars/1"]
    np.testing.assert_allclose(y, model.predict(ids, verbose=0), atol=1e-5)


def test_safetensors(tmp_path):
    from_numpy = pytest.importorskip("safetensors.numpy", reason="fastgru[safetensors]")
    from_numpy.save_file(ARRAYS, tmp_path / "m.safetensors", {"format": "pt"})
    same(read_arrays(tmp_path / "m.safetensors"), ARRAYS)


def test_tied_tensors_are_there_under_both_names(tmp_path):
    from_numpy = pytest.importorskip("safetensors.numpy", reason="fastgru[safetensors]")
    metadata = {"format": "pt", "head.weight": "emb.weight"}  # as save_model writes them
    from_numpy.save_file(ARRAYS, tmp_path / "m.safetensors", metadata)
    expected = ARRAYS | {"head.weight": ARRAYS["emb.weight"]}
    same(read_arrays(tmp_path / "m.safetensors"), expected)


def test_an_index_of_shards(tmp_path):
    from_numpy = pytest.importorskip("safetensors.numpy", reason="fastgru[safetensors]")
    places = {}
    for number, (name, array) in enumerate(ARRAYS.items()):
        file = f"model-{number % 2 + 1:05d}-of-00002.safetensors"
        places.setdefault(file, {})[name] = array
    for file, part in places.items():
        from_numpy.save_file(part, tmp_path / file)
    names = {name: file for file, part in places.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    same(read_arrays(index), ARRAYS)


def test_bfloat16_of_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="it writes the file")
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16, as Keras writes it")
    array = ARRAYS["double"].astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["w"] = array.view("V2")
    same(read_arrays(tmp_path / "m.h5"), {"w": array.astype("float32")})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save, tmp_path):
    arrays = ARRAYS | {
        "columns": np.asfortranarray(ARRAYS["double"]),
        "big": np.arange(3, dtype=">i4"),
    }
    save(tmp_path / "m.npz", **arrays)
    same(read_arrays(tmp_path / "m.npz"), arrays)


def test_npy(tmp_path):
    np.save(tmp_path / "m.npy", ARRAYS["double"])
    same(read_arrays(tmp_path / "m.npy"), {"array": ARRAYS["double"]})


def test_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    model = torch.nn.Sequential()
    model.emb = torch.nn.Embedding(7, 4)
    model.gru = torch.nn.GRU(4, 3)
    model.norm = torch.nn.BatchNorm1d(3)
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    torch.save(model.state_dict(), tmp_path / "m.pt")
    same(read_arrays(tmp_path / "m.pt"), expected)
    nested = {"epoch": 3, "model": model.state_dict(), "more": {"t": torch.ones(2, 3).T}}
    torch.save(nested, tmp_path / "n.pth")
    expected = {f"model.{name}": array for name, array in expected.items()}
    same(read_arrays(tmp_path / "n.pth"), expected | {"more.t": np.ones((3, 2), "float32")})
    bfloat16 = torch.randn(4, 5).to(torch.bfloat16)
    torch.save({"b": bfloat16}, tmp_path / "b.pt")
    same(read_arrays(tmp_path / "b.pt"), {"b": bfloat16.float().numpy()})


def test_the_stored_files_of_torch():
    for name in ("gru.pt", "gru.safetensors", "checkpoint.pth"):
        arrays = read_arrays(DATA / "torch" / name)
        assert any("weight_ih_l0" in key for key in arrays)
    assert from_torch(DATA / "torch" / "gru.pt") is not None


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install fastgru[onnx]")
    model = onnx.load(DATA / "onnx" / "script_stack.onnx")
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            expected[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    same(read_arrays(DATA / "onnx" / "script_stack.onnx"), expected)
    values = onnx.numpy_helper.from_array(np.array([2.0, 3.0], "float32"), "thin")
    at = onnx.numpy_helper.from_array(np.array([1, 4]), "at")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, at, [2, 3]))
    model.graph.initializer.append(onnx.helper.make_tensor("text", 8, [1], [b"x"]))
    (tmp_path / "other_suffix").write_bytes(model.SerializeToString())
    thin = {"thin": np.array([[0, 2, 0], [0, 3, 0]], "float32")}
    same(read_arrays(tmp_path / "other_suffix"), expected | thin)
    assert from_onnx(model)


def test_savedmodel(tmp_path):
    weights = savedmodel_support.random_weights(3)
    folder = savedmodel_support.write_gru(tmp_path / "model", weights, savedmodel_support.CONFIG)
    found = list(read_arrays(folder).values())
    for weight in weights:
        assert any(np.array_equal(weight, array) for array in found)
    index = read_arrays(Path(folder) / "variables" / "variables.index")
    assert len(index) == len(found)


# ---- what is refused -----------------------------------------------------------------------------


def npy(header, data=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got an empty file"),
        (b"text of some kind", "got a file that begins with"),
        (b"\x1f\x8b\x08" + b"\0" * 20, "a compressed file; unpack it"),
        (b"\x93NUMPY", "expected an array in NumPy's format"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"\0" * 7), "got 7 bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40,)}"), "NumPy's format"),
        (npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 40},)}}"), "got 0 bytes"),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -2)}", b"\0" * 8),
            "NumPy's format",
        ),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", b"\0" * 8), "Python objects"),
        (npy("{'descr': '<U0', 'fortran_order': False, 'shape': (9,)}"), "expected an array of"),
        (npy("(" * 5000), "expected an array in NumPy's format"),
        (npy("[" * 9000 + "]" * 9000), "expected an array in NumPy's format"),
    ],
)
def test_what_is_no_model(data, message, tmp_path):
    path = tmp_path / "m.npy"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_arrays(path)


def test_objects_are_not_executed(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    np.save(tmp_path / "m.npy", np.array({"w": Harm()}, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "m.npz", w=np.array([Harm()], dtype=object))
    (tmp_path / "m.pt").write_bytes(pickle.dumps({"w": Harm()}))
    for name in ("m.npy", "m.npz", "m.pt"):
        with pytest.raises(ValueError, match=r"m\.np|m\.pt"):
            read_arrays(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_an_archive_of_a_model_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(DATA / "onnx" / "script.onnx", "inner/script.onnx")
    with pytest.raises(ValueError, match=r"an archive with inner/script.onnx in it; unpack it"):
        read_arrays(tmp_path / "m.zip")


def test_a_tensor_that_is_named_many_times(tmp_path):
    torch = pytest.importorskip("torch", reason="it writes the file")
    one = torch.zeros(1 << 20)
    torch.save({f"w{i}": one for i in range(60)}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"would take more than .* bytes of memory"):
        read_arrays(tmp_path / "m.pt")


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="found nothing"):
        read_arrays(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"variables\.index"):
        read_arrays(tmp_path)


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is set as Linux does it")
def test_altered_files(tmp_path):
    """10,000 of each file with FASTGRU_EXHAUSTIVE=1."""
    pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    pytest.importorskip("onnx", reason="pip install 'fastgru[onnx]'")
    files, scratch = tmp_path / "files", tmp_path / "scratch"
    files.mkdir(), scratch.mkdir()
    weights = {"gru/kernel": np.ones((4, 9), "f4"), "gru/recurrent_kernel": np.ones((3, 9), "f4")}
    np.savez(files / "plain.npz", **ARRAYS, **weights)
    np.savez_compressed(files / "small.npz", **weights)
    np.save(files / "one.npy", ARRAYS["double"])
    np.save(files / "dict.npy", ARRAYS, allow_pickle=True)
    stored = ["keras/nested.h5", "keras/before.keras", "keras/before_weights.h5", "torch/gru.pt"]
    stored += ["torch/checkpoint.pth", "torch/bfloat16.safetensors", "onnx/script_stack.onnx"]
    paths = [*sorted(files.iterdir()), *(DATA / name for name in stored)]
    count = 10_000 * len(paths) if EVERYTHING else 600
    script = subprocesses.SUPPORT / "arrays_fuzz.py"
    result = subprocess.run(
        [sys.executable, "-P", str(script), str(count), "5", str(scratch), *map(str, paths)],
        env={**subprocesses.environment(), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=count,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    ends = json.loads(result.stdout)
    print(f"\n{count} files: {ends}")
    assert min(ends["read"], ends["refused"]) > count / 20  # both ends are tested
