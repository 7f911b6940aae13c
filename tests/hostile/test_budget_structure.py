"""Valid files that are large in one number: what one thing costs is counted for each of them."""

import json
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import structure_torch
from savedmodel_support import field
from structure_torch import Saved, dict_of
from torch_files import text

from fastgru import gates
from fastgru.cli import models
from fastgru.io import from_onnx, from_torch, read_arrays
from fastgru.io.bounded import Archive
from fastgru.io.budget import Budget
from fastgru.io.npy_header import header_of
from fastgru.io.torch_weights import resolved, unreadable

MB = 1 << 20
TOO_MUCH = "would take more than|more parts to visit"


# ---- headers of NumPy ----------------------------------------------------------------------------


def header(text, version=1):
    width = 2 if version == 1 else 4
    size = len(text).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode("latin-1")


def test_headers_are_read_as_numpy_reads_them(tmp_path):
    arrays = [np.ones(3), np.ones((2, 3), "<f2").T, np.array(1), np.ones((0, 4), ">c8")]
    arrays += [np.zeros(2, "?"), np.zeros(3, [("a", "<f4"), ("b", "<i2", 2)]), np.zeros(1, "U3")]
    for array in arrays:
        np.save(tmp_path / "a.npy", array)
        data = (tmp_path / "a.npy").read_bytes()
        got = header_of(data)
        numbers = array.dtype.kind in "fiubc"
        assert got.shape == array.shape
        assert got.dtype == (array.dtype if numbers else None)
        assert len(data) - got.start == array.nbytes
        assert got.fortran == (array.ndim == 2 and not array.flags.c_contiguous)


@pytest.mark.parametrize(
    "text",
    [
        '{"shape": (2L, 3L), "descr": "<f4", "fortran_order": False}',
        "{'fortran_order':False,'shape':(2,3),'descr':'<f4'}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3,), }   \n",
    ],
)
def test_headers_of_other_writers(text):
    got = header_of(header(text))
    assert (got.descr, got.shape, got.fortran) == ("<f4", (2, 3), False)


START = "{'descr': '<f4', 'fortran_order': False, 'shape': "


@pytest.mark.parametrize(
    "text",
    [
        START + "(3)}",
        START + "(-1,)}",
        START + "(1, 2,, 3)}",
        START + f"({1 << 63},)}}",
        START + "(3,), 'shape': (3,)}",
        START + "(3,), 'more': 1}",
        START + "(3,)} + {}",
        START + "(3,",
        "{'descr': '<f4', 'shape': (3,)}",
        "{'descr': True, 'fortran_order': False, 'shape': (3,)}",
        "[" * 5000,
        "",
    ],
)
def test_other_headers_are_refused(text):
    with pytest.raises(ValueError, match="expected an array in NumPy's format"):
        header_of(header(text))


def test_a_long_number_in_a_shape_takes_no_time(tmp_path):
    """Each digit can be read in one way: with two, sixty of them would take years."""
    for number in (10, 60, 4000):
        with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
            archive.writestr("weight_ih_l0.npy", header(f"{START}({'1' * number}, -1), }}"))
        for reader in (from_torch, read_arrays):
            with pytest.raises(ValueError, match="NumPy's format"):
                reader(tmp_path / "m.npz")


def test_reading_arrays_asks_no_parser_of_python(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("compiled")

    np.savez(tmp_path / "m.npz", w=np.ones((2, 3)))
    monkeypatch.setattr("ast.literal_eval", refuse)
    assert read_arrays(tmp_path / "m.npz")["w"].shape == (2, 3)


# ---- members, files and names --------------------------------------------------------------------


def test_members_of_an_archive_are_counted(tmp_path):
    data = structure_torch.npy_bytes((1,), b"1234")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}.npy", data)
    with pytest.raises(ValueError, match="more parts to visit"):
        read_arrays(tmp_path / "m.npz")
    with Archive(tmp_path / "m.npz", Budget("it")) as archive:
        assert len(archive.names) == 20_000


def index(path, names):
    path.write_text(json.dumps({"weight_map": names}))


def test_an_index_that_names_itself(tmp_path):
    path = tmp_path / "m.index.json"
    index(path, {"w": path.name})
    for reader in (read_arrays, from_torch, models.find):
        with pytest.raises(ValueError, match="got another index"):
            reader(path)


def test_an_index_of_many_files(tmp_path):
    for number in range(501):
        (tmp_path / f"{number}.safetensors").symlink_to("0.safetensors")
    path = tmp_path / "m.safetensors.index.json"
    index(path, {f"w{number}": f"{number}.safetensors" for number in range(501)})
    with pytest.raises(ValueError, match="expected at most 500 files"):
        from_torch(path)


def safetensors(path, header, data=b""):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_very_many_tensors_without_numbers(tmp_path):
    pytest.importorskip("safetensors", reason="it reads the file")
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = safetensors(tmp_path / "m.safetensors", {f"e{n}": entry for n in range(60_000)})
    tracemalloc.start()
    with pytest.raises(ValueError, match="its header would take more than"):
        read_arrays(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MB  # the header's text, no object for each tensor


def test_very_many_tied_weights(tmp_path):
    pytest.importorskip("safetensors", reason="it reads the file")
    entry = {"dtype": "F32", "shape": [3, 1], "data_offsets": [0, 12]}
    names = {f"g{n}.weight_hh_l0": "kept.weight_hh_l0" for n in range(20_000)}
    header = {"__metadata__": names, "kept.weight_hh_l0": entry}
    path = safetensors(tmp_path / "m.safetensors", header, bytes(12))
    with pytest.raises(ValueError, match="at most 20000 recurrent weights"):
        from_torch(path)


# ---- pickles -------------------------------------------------------------------------------------


def pickled(tmp_path, saved):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("a/data.pkl", saved.pickled())
        for key, data in saved.storages.items():
            archive.writestr(f"a/data/{key}", data)
    return tmp_path / "m.pt"


def test_very_many_layers_of_one_tensor(tmp_path):
    """They take little memory, but building each takes half a millisecond."""
    saved = Saved(None)
    w, again = saved.kept(saved.tensor(np.ones((3, 1), "f4")))
    for number in range(1200):
        inner = [(text("weight_ih_l0"), w), (text("weight_hh_l0"), again)]
        saved.add(f"g{number}", dict_of(inner))
        w = again
    path = pickled(tmp_path, saved)
    with pytest.raises(ValueError, match="more parts to visit"):
        models.find(path)
    assert from_torch(path, "g7").units == 1


def test_very_many_layers_with_the_names_of_keras(tmp_path):
    arrays = {}
    for number in range(1200):
        arrays[f"g{number}/kernel"] = arrays[f"g{number}/recurrent_kernel"] = np.ones((1, 3), "f4")
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(ValueError, match="more parts to visit"):
        models.find(tmp_path / "m.npz")


def test_a_long_name_of_a_class(tmp_path):
    """Its text and its copies take more memory than the file is large."""
    saved = Saved(None)
    saved.add("object", b"cmodule\n" + "\N{GRINNING FACE}".encode() + b"C" * MB + b"\n)R")
    with pytest.raises(ValueError, match="longer than a name"):
        from_torch(pickled(tmp_path, saved))


@pytest.mark.alone
def test_prefixes_of_many_parts_beside_weight_drop():
    tensor = unreadable("nothing")
    names = [f"{'a.' * 500}{number}.weight_hh_l0" for number in range(10_000)]
    start = time.process_time()
    _, problems = resolved(dict.fromkeys([*names, "b.weight_hh_l0_raw"], tensor))
    assert time.process_time() - start < 1
    assert not problems


def test_weight_drop_counts_for_the_modules_inside_its_own():
    names = ["a.b.weight_hh_l0", "ab.weight_hh_l0", "c.weight_hh_l0", "a.weight_hh_l0_raw"]
    _, problems = resolved(dict.fromkeys(names, unreadable("nothing")))
    assert problems.keys() == {"a.b"}
    names[-1] = "weight_hh_l0_raw"
    _, problems = resolved(dict.fromkeys(names, unreadable("nothing")))
    assert problems.keys() == {"a.b", "ab", "c"}


def test_large_instructions_count_twice(tmp_path):
    """Names of classes and calls take as long as two others."""
    saved = Saved(None)
    saved.add("small", b"](" + b"ca\nb\n)R" * 110_000 + b"e")
    with pytest.raises(ValueError, match="its pickle has more parts to visit"):
        from_torch(pickled(tmp_path, saved))


@pytest.mark.parametrize("layout", ["torch", "onnx_lbr1", "cudnn"])
def test_weights_are_copied_once(layout):
    w = np.ones((3 * 300, 300), "f4")
    biases = gates.from_keras(layout, w.T.copy(), w.T.copy(), np.ones((2, 900), "f4"))[2:]
    given = gates.from_keras(layout, w.T.copy(), w.T.copy(), np.ones((2, 900), "f4"))[:2]
    tracemalloc.start()
    gates.to_keras(layout, *given, *biases)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.1 * w.nbytes  # the two that are returned


# ---- ONNX ----------------------------------------------------------------------------------------


@pytest.fixture
def graph():
    """A graph to fill, of which `from_onnx` and `read_arrays` read the bytes."""
    pytest.importorskip("onnx", reason="it reads the file; pip install fastgru[onnx]")
    from structure_onnx import Graph

    graph = Graph(None)
    graph.w = graph.constant(np.ones((1, 3, 1), "f4"))
    return graph


def model(graph, more=b""):
    opset = field(8, field(1, "") + field(2, 14))
    return field(1, 8) + opset + field(7, graph.message()) + more


@pytest.mark.parametrize(
    "kind", ["value_info", "functions", "attributes", "lists", "floats", "inputs", "numbers"]
)
def test_onnx_objects_are_counted_before_they_are_made(graph, kind):
    """Two bytes in the file are a hundred in memory, and a number of one byte is of eight."""
    graph.gru(graph.w, graph.w)
    more = b""
    if kind == "value_info":
        graph.fields.append(field(13, b"") * 800_000)
    elif kind == "functions":
        more = field(25, b"") * 600_000
    elif kind == "attributes":
        graph.fields.append(field(1, field(4, "Foo") + field(5, b"") * 400_000))
    elif kind == "lists":
        integers = field(8, bytes(2 * MB)) + field(20, 7)
        graph.fields.append(field(1, field(4, "Foo") + field(5, field(1, "a") + integers)))
    elif kind == "floats":
        floats = field(7, bytes(8 * MB)) + field(20, 6)
        graph.fields.append(field(1, field(4, "Foo") + field(5, field(1, "a") + floats)))
    elif kind == "inputs":
        graph.fields.append(field(1, field(4, "Foo") + field(1, b"") * 3_000_000))
    else:
        graph.fields.append(field(5, field(1, 6 * MB) + field(2, 7) + field(7, bytes(6 * MB))))
    data = model(graph, more)
    with pytest.raises(ValueError, match=f"its graph ({TOO_MUCH})|its graph has more parts"):
        from_onnx(data)


@pytest.mark.parametrize("number", [1, 2])
def test_onnx_names_are_counted(graph, number):
    """A name of four bytes takes fifty in a set of names, and as much again for its place there."""
    names = b"".join(field(number, f"n{n:x}") for n in range(300_000))
    graph.fields.append(field(1, field(4, "Foo") + names))
    tracemalloc.start()
    with pytest.raises(ValueError, match=TOO_MUCH):
        from_onnx(model(graph))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MB


def test_onnx_sparse_tensors_are_counted(graph):
    graph.fields.append(field(15, b"") * 200_000)
    with pytest.raises(ValueError, match=TOO_MUCH):
        from_onnx(model(graph))


def test_onnx_messages_that_are_cut_or_nested(graph):
    graph.gru(graph.w, graph.w)
    data = model(graph)
    assert from_onnx(data)
    nested = b""
    for _ in range(120):
        nested = field(1, field(5, field(6, nested)))
    beyond = field(7, b"\x58\x80")  # a number that goes on in the next field
    cut = (data[:-1], data + b"\x3a", data + b"\x08\x80", data + beyond, data + beyond + b"\1")
    for wrong in (*cut, data + field(7, nested), data + b"\x3b"):
        with pytest.raises(ValueError, match="expected an ONNX model"):
            from_onnx(wrong)


def test_onnx_values_that_are_not_constant_are_asked_once(graph, monkeypatch):
    """A thousand GRUs have one initial state, at the end of many nodes."""
    from fastgru.io.onnx_graph import Scope

    start = graph.op("Concat", *[graph.integers(1)] * 100, "X", axis=0)
    for _ in range(60):
        start = graph.op("Identity", start)
    for _ in range(100):
        graph.gru(graph.w, graph.w, start)
    calls = []
    find = Scope.find
    monkeypatch.setattr(Scope, "find", lambda *args: calls.append(0) or find(*args))
    assert len(from_onnx(model(graph))) == 100
    assert len(calls) < 5000  # 300,000 if each GRU went the whole way


def test_onnx_names_that_are_equal(graph):
    from fastgru.io.onnx_graph import Names

    class Counting(set):
        asked = 0

        def __contains__(self, name):
            self.asked += 1
            return super().__contains__(name)

    names = Names()
    names._taken = Counting()
    got = [names.add(name) for name in ["a"] * 1000 + ["a_1", "a_1000"]]
    assert got[:3] == ["a", "a_1", "a_2"]
    assert got[-2:] == ["a_1_1", "a_1000"]
    assert len(set(got)) == 1002
    assert names._taken.asked < 4000


@pytest.mark.parametrize("use", ["weight", "state"])
def test_onnx_expand_is_counted(graph, use):
    """It takes no memory itself, but a copy of it does, and looking at it takes time."""
    one = graph.constant(np.zeros((1, 1), "f4"))
    large = graph.op("Expand", one, graph.integers(1 << 13, 1 << 13))
    if use == "weight":
        graph.gru(graph.op("Reshape", large, graph.integers(1, -1, 1)), graph.w)
    else:
        graph.gru(graph.w, graph.w, large)
    tracemalloc.start()
    with pytest.raises(ValueError, match="would take more than"):
        from_onnx(model(graph))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MB


def test_onnx_files_of_one_name_are_looked_for_once(graph, tmp_path, monkeypatch):
    from structure_onnx import external

    from fastgru.io import onnx_tensors

    numbers = np.arange(40, dtype="f4")
    (tmp_path / "w.bin").write_bytes(numbers.tobytes())
    for number in range(30):
        message = external(f"e{number}", (5,), "./././w.bin", 4 * number, 20)
        graph.fields.append(field(5, message))
    (tmp_path / "m.onnx").write_bytes(model(graph))
    calls = []
    beside = onnx_tensors._beside
    monkeypatch.setattr(onnx_tensors, "_beside", lambda *a: calls.append(0) or beside(*a))
    arrays = read_arrays(tmp_path / "m.onnx")
    assert len(calls) == 1
    for number in range(30):
        np.testing.assert_array_equal(arrays[f"e{number}"], numbers[number : number + 5])


def test_onnx_names_of_many_folders(graph, tmp_path):
    from structure_onnx import external

    (tmp_path / "w.bin").write_bytes(bytes(4))
    for number in range(300):
        location = f"{'./' * (1000 + number)}w.bin"
        graph.fields.append(field(5, external(f"e{number}", (1,), location)))
    (tmp_path / "m.onnx").write_bytes(model(graph))
    with pytest.raises(ValueError, match="more parts to visit"):
        read_arrays(tmp_path / "m.onnx")


@pytest.mark.parametrize("axis", [1, 2])
def test_onnx_scales_of_blocks_are_not_repeated(graph, axis):
    from fastgru.io.onnx_folds import FOLDS

    rng = np.random.default_rng(3)
    x = rng.integers(-100, 100, (3, 1030, 1030)).astype("i1")
    shape = [3, 1030, 1030]
    shape[axis] = -(-1030 // 16)
    scale, zero = rng.normal(size=shape).astype("f4"), rng.integers(-9, 9, shape).astype("i1")
    tracemalloc.start()
    got = FOLDS["DequantizeLinear"]({"axis": axis, "block_size": 16}, x, scale, zero)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * x.size
    times = np.arange(1030) // 16
    expected = (x.astype("f4") - zero.take(times, axis)) * scale.take(times, axis)
    np.testing.assert_array_equal(got, expected)


def test_onnx_weights_of_integers(graph):
    """As float32 they are four times the file, and so is what the layer keeps of them."""
    from structure_onnx import FLOAT, INT8

    x = graph.constant(np.zeros((1, 3 * 700, 700), "i1"), INT8)
    scale = graph.constant(np.ones(2100, "f4"), FLOAT)
    w = graph.op("DequantizeLinear", x, scale, axis=1)
    graph.gru(w, w)
    data = model(graph)
    wide = 4 * 3 * 700 * 700
    tracemalloc.start()
    from_onnx(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.2 * wide + 2 * len(data)
