"""Small files that ask for the same costly work again and again, or for work that grows faster."""

import json
import struct
import sys
import zipfile

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("memory is measured by Linux' /proc", allow_module_level=True)

import structure_fuzz
from structure_configs import inspect
from test_structure_found import check

import fastgru
from fastgru.cli import main
from fastgru.io import from_keras, from_torch, read_arrays

pytestmark = pytest.mark.alone  # they measure time and memory
MAGIC = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def torch_file(folder, pickled):
    with zipfile.ZipFile(folder / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x04" + pickled + b".")
        archive.writestr("m/version", "3\n")
    return folder / "m.pt"


def keys_of_one_hash(folder):
    """Multiples of Python's modulus for the hashes of integers."""
    numbers = ((k * (2**61 - 1)).to_bytes(11, "little") for k in range(1, 40_000))
    return torch_file(folder, b"}(" + b"".join(b"\x8a\x0b" + n + b"N" for n in numbers) + b"u")


def equal_long_keys(folder):
    """Two objects of one long text; each use of the second compares it with the first."""
    keys = text("a" * 4_000_000) + b"q\1" + text("a" * 4_000_000) + b"q\2"
    return torch_file(folder, keys + b"}h\1Ns" + b"h\2Ns" * 60_000 + b"\x87")


def text_encoded_again_and_again(folder):
    start = b"c_codecs\nencode\nq\0" + text("a" * 1_000_000) + text("latin1") + b"\x86q\1"
    return torch_file(folder, start + b"(" + b"h\0h\1R" * 3_000 + b"t\x87")


def long_names_of_classes(folder):
    start = text("\U0001f600" * 798) + b"q\1" + text("b") + b"q\2"
    return torch_file(folder, start + b"(" + b"h\1h\2\x93" * 120_000 + b"t\x87")


def legacy(folder, protocol):
    about = b"\x80\2}" + text("little_endian") + b"\x88s."
    (folder / "m.pt").write_bytes(MAGIC + b"\x80\2" + protocol + b"." + about + b"\x80\2}.\x80\2].")
    return folder / "m.pt"


def a_list_twice_in_a_list(folder):
    """32 times: its text would have four thousand million brackets."""
    levels = (b"0]q%ch%cah%ca" % (i + 1, i, i) for i in range(32))
    return legacy(folder, b"]q\0" + b"".join(levels))


def deep_tuples(folder):
    return legacy(folder, b")" + b"\x85" * 5_000)


def js(folder, groups):
    (folder / "model.json").write_text(json.dumps({"weightsManifest": groups}))
    return folder / "model.json"


def many_groups_without_files(folder):
    return js(folder, [{"paths": [], "weights": []}] * 40_000)


def number_beyond_floats(key, folder):
    (folder / "w").write_bytes(bytes(4))
    how = {"dtype": "uint8", "scale": 1, "min": 0, key: 10**400}
    weight = {"name": "a", "shape": [4], "dtype": "float32", "quantization": how}
    return js(folder, [{"paths": ["w"], "weights": [weight]}])


def scale_beyond_floats(folder):
    return number_beyond_floats("scale", folder)


def minimum_beyond_floats(folder):
    return number_beyond_floats("min", folder)


def many_layers(folder):
    """Of one unit each, which are built before a weight is looked for."""
    from safetensors.numpy import save

    layer = {"class_name": "GRU", "config": {"units": 1, "return_sequences": True}}
    config = {"layers": [layer] * 7_000}
    model = {"module": "fastgru", "class_name": "Sequential", "config": config}
    about = {"format_version": 1, "fastgru_version": "1", "layer": model}
    metadata = {"fastgru": json.dumps(about, separators=(",", ":"))}
    path = folder / "m.safetensors"
    path.write_bytes(save({"a": np.zeros(1, np.float32)}, metadata))
    return path


def one_large_initial_state(folder):
    """Of 30 million numbers, and 700 layers that begin with it, each by a name of its own."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    helper, number = onnx.helper, onnx.numpy_helper.from_array
    constants = {
        "W": np.zeros((1, 3, 1), np.float32),
        "R": np.zeros((1, 3, 1), np.float32),
        "zero": np.zeros((1, 1, 1), np.int8),
        "shape": np.array([1, 30_000_000, 1]),
    }
    nodes = [helper.make_node("Expand", ["zero", "shape"], ["zeros"])]
    for i in range(700):
        inputs = ["x", "W", "R", "", "", f"h{i}"]
        nodes.append(helper.make_node("Identity", ["zeros"], [f"h{i}"]))
        nodes.append(helper.make_node("GRU", inputs, [f"y{i}"], hidden_size=1))
    x, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, None, 1])
        for n in ("x", "y0")
    )
    stored = [number(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


CASES = [
    (keys_of_one_hash, from_torch, "expected a GRU"),
    (equal_long_keys, from_torch, "more parts to visit"),
    (text_encoded_again_and_again, from_torch, "more than .* bytes of memory"),
    (long_names_of_classes, from_torch, "would take more than"),
    (a_list_twice_in_a_list, from_torch, "protocol 1001, got list"),
    (deep_tuples, from_torch, "protocol 1001, got tuple"),
    (many_groups_without_files, from_keras, "expected a layers model"),
    (scale_beyond_floats, read_arrays, "expected float32"),
    (minimum_beyond_floats, read_arrays, "expected float32"),
    (one_large_initial_state, inspect, "more parts to visit"),
    (many_layers, fastgru.load, "more parts to visit"),
]


@pytest.mark.parametrize(
    ("make", "reader", "said"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_work_is_in_proportion_to_the_file(make, reader, said, tmp_path):
    path = make(tmp_path)
    got = check(reader, path)
    assert len(got) <= structure_fuzz.LONGEST_MESSAGE
    with pytest.raises(ValueError, match=said):
        raise ValueError(got)


@pytest.mark.parametrize("place", ["a function", "training", "a graph in a function"])
def test_no_output_over_a_file_that_the_graph_does_not_name(place, tmp_path, capsys):
    """An ONNX model's tensors are also in its functions and in what it has for training."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    helper = onnx.helper
    layer = fastgru.GRU(2)
    layer.build((None, None, 3))
    fastgru.io.to_onnx(layer, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[3], data_location=1)
    tensor.external_data.add(key="location", value="other.safetensors")
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    if place == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    else:
        if place != "a function":
            inner = helper.make_graph([constant], "inner", [], [])
            constant = helper.make_node("If", ["x"], ["y"], then_branch=inner)
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [constant], opsets))
        model.opset_import.append(helper.make_opsetid("own", 1))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    output = tmp_path / "other.safetensors"
    output.write_bytes(bytes(12))
    assert main(["convert", "--force", str(tmp_path / "m.onnx"), str(output)]) == 2
    assert "expected the name of another file, got that of" in capsys.readouterr().err
    assert output.read_bytes() == bytes(12)
