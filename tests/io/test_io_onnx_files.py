"""from_onnx on weights that are in other files: beside the model, outside, behind links."""

import os

import numpy as np
import pytest

from fastgru.io import from_onnx

onnx = pytest.importorskip(
    "onnx", reason="the package that reads models; pip install fastgru[onnx]"
)
from onnx import TensorProto  # noqa: E402
from onnx_support import one_node_model, random_weights  # noqa: E402

I, H = 5, 4


def same_weights(model, weights, **options):
    expected = from_onnx(one_node_model(weights), "g").get_weights()
    for ours, theirs in zip(from_onnx(model, "g", **options).get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def external(folder, **entries):
    """A model in a folder, its W and R in a file beside it; ``entries`` are said of W instead."""
    folder.mkdir(exist_ok=True)
    weights = random_weights(4, 1, I, H)
    model = one_node_model(weights)
    data = b"before"
    for tensor, w in zip(model.graph.initializer[:2], weights, strict=False):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        said = {"location": "weights.bin", "offset": len(data), "length": w.nbytes}
        if tensor.name == "W":
            said |= entries
        for key, value in said.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
        data += w.tobytes()
    (folder / "weights.bin").write_bytes(data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx", model, weights


def test_weights_in_a_file_beside_the_model(tmp_path):
    same_weights(external(tmp_path / "model", length=None)[0], random_weights(4, 1, I, H))
    path, model, weights = external(tmp_path / "model")
    same_weights(path, weights)
    same_weights(onnx.load(path), weights)
    for source in (model, path.read_bytes()):
        with pytest.raises(ValueError, match=r"in another file, 'weights.bin'; give the model's"):
            from_onnx(source)


def test_weights_in_a_folder_beside_the_model(tmp_path):
    path, _, weights = external(tmp_path / "model", location="inner/w.bin")
    (path.parent / "inner").mkdir()
    (path.parent / "inner" / "w.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    same_weights(path, weights)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "../weights.bin",
        "inner/../../weights.bin",
        "/weights.bin",
        "//host/weights.bin",
        "C:/weights.bin",
        "C:weights.bin",
        "..\\weights.bin",
        "\\weights.bin",
        "weights.bin\0",
        "{absolute}",
    ],
)
def test_files_outside_of_the_folder_are_not_read(location, tmp_path):
    location = location.replace("{absolute}", str(tmp_path / "weights.bin"))
    path, _, _ = external(tmp_path / "model", location=location)
    (tmp_path / "weights.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    with pytest.raises(ValueError, match="value 'W': expected the name of a file in the model's"):
        from_onnx(path)


def test_links_that_lead_out_are_not_followed(tmp_path):
    path, _, weights = external(tmp_path / "model", location="link.bin")
    (tmp_path / "outside.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    link = path.parent / "link.bin"
    link.symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ValueError, match=r"leads out of the model.s folder.*follow_links=True"):
        from_onnx(path)
    same_weights(path, weights, follow_links=True)
    link.unlink()
    link.symlink_to(path.parent / "weights.bin")
    same_weights(path, weights)
    link.unlink()
    link.symlink_to(link)
    for follow_links in (False, True):
        with pytest.raises(ValueError, match=r"value 'W': .*(cannot be read|found none)"):
            from_onnx(path, follow_links=follow_links)


def test_a_download_is_a_folder_of_links(tmp_path):
    """Hugging Face's cache: the model and its weights are links to files of other names."""
    path, _, weights = external(tmp_path / "blobs", location="model.onnx_data")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.onnx").symlink_to(path)
    for name in ("model.onnx_data", "weights.bin"):
        (snapshot / name).symlink_to(path.parent / "weights.bin")
    with pytest.raises(ValueError, match="follow_links=True"):
        from_onnx(snapshot / "model.onnx")
    same_weights(snapshot / "model.onnx", weights, follow_links=True)


def test_followed_links_do_not_open_names_that_lead_out(tmp_path):
    for location in ("../weights.bin", str(tmp_path / "weights.bin"), "..\\weights.bin"):
        path, _, _ = external(tmp_path / "model", location=location)
        (tmp_path / "weights.bin").write_bytes((path.parent / "weights.bin").read_bytes())
        with pytest.raises(ValueError, match="expected the name of a file in the model's"):
            from_onnx(path, follow_links=True)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "missing.bin"}, "expected a file 'missing.bin' beside the model"),
        ({"location": "."}, r"expected a file '\.' beside"),
        ({"location": "x" * 5000}, "cannot be read|found none"),
        ({"location": None}, "expected the name of a file"),
        ({"offset": "-6"}, "expected offset to be a number of bytes"),
        ({"offset": "six"}, "expected offset to be a number of bytes"),
        ({"offset": "9" * 30}, "expected offset to be a number of bytes"),
        ({"offset": 1 << 60}, "a file is damaged"),
        ({"offset": 300}, r"takes 240 bytes, got 240 from byte 300 .*a file is damaged"),
        ({"length": 239}, "takes 240 bytes, got 239"),
        ({"length": 1 << 50}, "got 1125899906842624"),
    ],
)
def test_files_that_are_not_as_the_model_says(entries, message, tmp_path):
    path, _, _ = external(tmp_path / "model", **entries)
    with pytest.raises(ValueError, match=message):
        from_onnx(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in this system's folders")
def test_a_pipe_is_not_waited_for(tmp_path):
    path, _, _ = external(tmp_path / "model", location="pipe")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ValueError, match="expected a file 'pipe' beside the model, found none"):
        from_onnx(path)
