"""Models of several files: no reader and no command leaves their folder, or waits for a pipe."""

import json
import os
import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import savedmodel_support as support

import fastgru
from fastgru.cli import main
from fastgru.io import from_keras, from_onnx, from_torch, load_keras_weights, read_arrays
from fastgru.io.torch_shards import refuse_shard

if os.name != "posix":
    pytest.skip("links and pipes of POSIX", allow_module_level=True)

# What readers tell users of a model without a config.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DATA = Path(__file__).parents[1] / "data"


# ---- a model of each format ----------------------------------------------------------------------


def built(units=3, name="first"):
    layer = fastgru.GRU(units, return_sequences=True, name=name)
    layer.build((None, None, 4))
    layer.set_weights([np.full(w.shape, 0.5, "float32") for w in layer.get_weights()])
    return layer


def copied(folder, names):
    folder.mkdir()
    for file in (DATA / "tensorflow").glob(names):
        shutil.copy(file, folder / file.name)


def savedmodel(folder):
    return support.write_gru(folder, support.random_weights(), support.CONFIG)


def checkpoint(folder):
    copied(folder, "keras2.*")
    return folder / "keras2.index"


def checkpoint_by_name(folder):
    return checkpoint(folder).with_suffix("")


def checkpoint_of_three(folder):
    copied(folder, "shards.*")
    return folder / "shards.index"


def latest_checkpoint(folder):
    copied(folder, "latest/*")
    return folder


def tensorflow_js(folder):
    copied(folder, "js_plain/*")
    return folder / "model.json"


def keras_folder(folder):
    pytest.importorskip("h5py", reason="it writes the file")
    folder.mkdir()
    layer = built()
    fastgru.io.to_keras_weights(layer, folder / "model.weights.h5")
    config = {"name": layer.name, "units": 3, "return_sequences": True}
    layers = [{"class_name": "GRU", "module": "keras.layers", "config": config}]
    model = {"class_name": "Sequential", "module": "keras", "config": {"layers": layers}}
    (folder / "config.json").write_text(json.dumps(model))
    return folder


def keras_shards(folder):
    pytest.importorskip("h5py", reason="it writes the file")
    folder.mkdir()
    file = folder / "m_00000.weights.h5"
    fastgru.io.to_keras_weights(built(), file)
    names = {"/layers/gru/cell/vars": [file.name]}
    (folder / "m.weights.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / "m.weights.json"


def torch_shards(folder):
    safetensors = pytest.importorskip("safetensors.numpy", reason="it writes the files")
    folder.mkdir()
    arrays = fastgru.io.to_torch(built())
    names = {name: f"m-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(arrays)}
    for file in set(names.values()):
        safetensors.save_file({n: arrays[n] for n in arrays if names[n] == file}, folder / file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder / "m.safetensors.index.json"


def onnx(folder):
    package = pytest.importorskip("onnx", reason="it writes the file")
    folder.mkdir()
    fastgru.io.to_onnx(built(), folder / "m.onnx")
    model = package.load(folder / "m.onnx")
    model.graph.initializer.append(
        package.numpy_helper.from_array(np.ones(100, "float32"), "of_another_layer")
    )
    for tensor in model.graph.initializer:
        package.external_data_helper.set_external_data(tensor, f"{tensor.name[:20]}.bin")
    package.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def load_first(path):
    load_keras_weights(fastgru.GRU(3, name="first"), path)


def load_before(path):
    load_keras_weights(fastgru.GRU(3, name="first", reset_after=False), path)


KERAS = (from_keras, read_arrays)
WEIGHTS = (read_arrays, load_first)
ALL = (from_keras, read_arrays, load_first)
LATEST = (from_keras, read_arrays, load_before)
TF_DATA = "{}.data-00000-of-00001"
# Format -> how a model is made, and for each of its files, but the one that the user names, the
# readers that open it.
FORMATS = {
    "SavedModel": (
        savedmodel,
        {
            "variables/variables.index": KERAS,
            "variables/variables.data-00000-of-00001": KERAS,
            "variables": KERAS,
            "keras_metadata.pb": (from_keras,),
        },
    ),
    "checkpoint": (checkpoint, {TF_DATA.format("keras2"): ALL}),
    "checkpoint by name": (checkpoint_by_name, {TF_DATA.format("keras2"): ALL}),
    "checkpoint of three": (
        checkpoint_of_three,
        {f"shards.data-0000{n}-of-00003": (read_arrays,) for n in range(3)},
    ),
    "latest checkpoint": (
        latest_checkpoint,
        {"checkpoint": LATEST, "ckpt-1.index": LATEST, TF_DATA.format("ckpt-1"): LATEST},
    ),
    "TensorFlow.js": (
        tensorflow_js,
        {"group1-shard1of2.bin": ALL, "group1-shard2of2.bin": ALL},
    ),
    "Keras' folder": (
        keras_folder,
        {"config.json": (from_keras,), "model.weights.h5": KERAS},
    ),
    "Keras' shards": (keras_shards, {"m_00000.weights.h5": WEIGHTS}),
    "torch's shards": (
        torch_shards,
        {f"m-0000{n}-of-00002.safetensors": (from_torch, read_arrays) for n in (1, 2)},
    ),
    "ONNX": (onnx, {"first.W.bin": (from_onnx, read_arrays), "of_another_layer.bin": ()}),
}
# What `fastgru inspect` calls the GRU, if not "first".
LAYERS = {"SavedModel": "gru", "checkpoint of three": "one/gru", "Keras' shards": "gru"}
LAYERS["torch's shards"] = "."
MEMBERS = [(kind, member) for kind, (_, members) in FORMATS.items() for member in members]
READ = [(kind, member) for kind, member in MEMBERS if FORMATS[kind][1][member]]


def replaced(path, how, outside):
    """Move what is at a path outside of the model's folder, and put something else in its place."""
    path.rename(outside)
    if how == "a pipe":
        os.mkfifo(path)
    elif how == "a device":
        path.symlink_to("/dev/zero")
    elif how == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
    elif how == "a folder":
        path.mkdir()
    elif how == "a relative link":
        path.symlink_to(os.path.relpath(outside, path.parent))
    elif how == "a link over a link":
        (outside.parent / "between").symlink_to(outside)
        path.symlink_to(outside.parent / "between")
    elif how == "a link to nothing":
        path.symlink_to(outside.parent / "nothing")
    else:
        path.symlink_to(outside)


LINKS = ("a link", "a relative link", "a link over a link")
KINDS = (*LINKS, "a link to nothing", "a pipe", "a device", "a socket", "a folder")


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize(("kind", "member"), READ)
def test_no_reader_takes_another_thing_for_a_file_of_the_model(tmp_path, kind, member, how):
    make, members = FORMATS[kind]
    path = make(tmp_path / "model")
    replaced(inner(path, member), how, tmp_path / "out")
    for reader in members[member]:
        if how == "a link to nothing" and member == "keras_metadata.pb":
            continue  # which a SavedModel may be without
        with pytest.raises(ValueError, match=r"expected|cannot be read"):
            reader(path)


def inner(path, member):
    """Return the path of a file of a model that is a folder, or a checkpoint by its name."""
    return path / member if path.is_dir() else path.parent / member


@pytest.mark.parametrize("how", ["a link", "a pipe"])
@pytest.mark.parametrize("command", ["inspect", "convert", "run"])
@pytest.mark.parametrize("kind", FORMATS)
def test_no_command_does(tmp_path, capsys, kind, command, how):
    make, members = FORMATS[kind]
    path = make(tmp_path / "model")
    member = next(iter(members))
    if kind == "checkpoint of three":
        member = next(m for m in members if m.endswith("00001-of-00003"))
    replaced(inner(path, member), how, tmp_path / "out")
    assert main([command, *arguments(command, path, tmp_path, kind=kind)]) == 2
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "y.safetensors").exists()


def arguments(command, path, folder, output=None, kind=""):
    """Return the command line's arguments for a model, of several GRUs for one."""
    np.save(folder / "x.npy", np.zeros((2, 5, 4), "float32"))
    output = folder / "y.safetensors" if output is None else output
    more = {"inspect": [], "convert": [output], "run": [folder / "x.npy", "-o", output]}[command]
    name = [] if command == "inspect" or not kind else ["--name", LAYERS.get(kind, "first")]
    return [*map(str, (path, *more)), *name]


@pytest.mark.parametrize("kind", FORMATS)
def test_links_inside_of_the_folder_are_followed(tmp_path, kind):
    make, members = FORMATS[kind]
    path = make(tmp_path / "model")
    for member, readers in members.items():
        file = inner(path, member)
        expected = [reader(path) for reader in readers if reader is read_arrays]
        replaced(file, "a relative link", file.with_name(f"other_{file.name}"))
        got = [reader(path) for reader in readers]
        assert len(got) == len(readers)
        for arrays in expected:
            for name, array in read_arrays(path).items():
                np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    "make", [checkpoint, checkpoint_by_name, tensorflow_js, keras_shards, torch_shards]
)
def test_a_cache_of_links_is_read(tmp_path, make):
    """Downloaders keep files in one folder, and links to them by their names in another."""
    path = make(tmp_path / "blobs")
    before = read_arrays(path)
    cache = tmp_path / "cache"
    cache.mkdir()
    for file in path.parent.iterdir():
        (cache / file.name).symlink_to(file)
    after = read_arrays(cache / path.name)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])


def test_a_model_of_one_file_may_be_a_link(tmp_path):
    """It is the user who names it."""
    (tmp_path / "m.h5").symlink_to(DATA / "keras" / "nested.h5")
    assert from_keras(tmp_path / "m.h5").keys() == from_keras(DATA / "keras" / "nested.h5").keys()
    (tmp_path / "folder").symlink_to(savedmodel(tmp_path / "model"))
    assert list(from_keras(tmp_path / "folder")) == ["gru"]


# ---- names in files ------------------------------------------------------------------------------

NAMES = ("../{}", "{absolute}", "below/../../{}", "below/{}", "..\\{}", "..", ".", "", "{}\0", 7)


def renamed(kind, path, name):
    """Let a model's index name another file in the place of the first."""
    index = json.loads(path.read_text())
    if kind == "TensorFlow.js":
        index["weightsManifest"][0]["paths"][0] = name
    else:
        first = next(iter(index["weight_map"]))
        several = isinstance(index["weight_map"][first], list)
        index["weight_map"][first] = [name] if several else name
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["TensorFlow.js", "Keras' shards", "torch's shards"])
def test_an_index_names_files_of_its_folder(tmp_path, kind, name):
    make, members = FORMATS[kind]
    path = make(tmp_path / "model")
    first = next(iter(members))
    shutil.copy(path.parent / first, tmp_path / first)
    (path.parent / "below").mkdir()
    shutil.copy(path.parent / first, path.parent / "below" / first)
    if isinstance(name, str):
        name = name.replace("{absolute}", str(tmp_path / first)).replace("{}", first)
    renamed(kind, path, name)
    for reader in members[first]:
        with pytest.raises(ValueError, match="expected"):
            reader(path)
    assert main(["inspect", str(path)]) == 2


def test_an_index_does_not_name_an_index(tmp_path):
    path = torch_shards(tmp_path / "model")
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    for reader in (from_torch, read_arrays):
        with pytest.raises(ValueError, match="expected names of files with weights, got another"):
            reader(path)


@pytest.mark.parametrize("name", ["../other/ckpt-1", "{absolute}", "..", "../other", "/", "\0"])
def test_the_latest_checkpoint_is_in_its_folder(tmp_path, name):
    """A folder that was moved may have the old path: the file of that name in it is read."""
    latest_checkpoint(tmp_path / "other")
    path = latest_checkpoint(tmp_path / "model")
    name = name.replace("{absolute}", str(tmp_path / "other" / "ckpt-1"))
    (path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    if name.endswith("ckpt-1"):
        load_before(path)
        (path / "ckpt-1.index").unlink()
    for reader in LATEST:
        with pytest.raises(ValueError, match="expected the name of a checkpoint in its folder"):
            reader(path)


def test_an_index_that_happens_to_lie_beside_a_file_is_not_followed_out(tmp_path):
    """Beside a file of weights the reader looks for an index that names it."""
    path = torch_shards(tmp_path / "out")
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "m-00001-of-00002.safetensors"
    shutil.copy(path.parent / file.name, file)
    file = file.rename(file.with_name("alone.safetensors"))
    names = {"a": file.name, "b": "m-00002-of-00002.safetensors"}
    (path.parent / "x.index.json").write_text(json.dumps({"weight_map": names}))
    (path.parent / file.name).write_bytes(b"")
    (file.parent / "x.index.json").symlink_to(path.parent / "x.index.json")
    os.mkfifo(file.parent / "y.index.json")
    shutil.copy(path.parent / names["b"], file.parent / names["b"])
    refuse_shard(file)
    (file.parent / "x.index.json").unlink()
    shutil.copy(path.parent / "x.index.json", file.parent)
    with pytest.raises(ValueError, match="one of 2 files"):
        refuse_shard(file)


MEMBER_NAMES = ("../config.json", "/config.json", "a/../../config.json", "..\\config.json")


@pytest.mark.parametrize("name", MEMBER_NAMES)
@pytest.mark.parametrize("reader", [from_keras, from_torch, read_arrays, load_first])
def test_members_of_archives_have_plain_names(tmp_path, reader, name):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr(name, "{}")
        archive.writestr("model.weights.h5", b"")
        archive.writestr("m/data.pkl", b"")
    with pytest.raises(ValueError, match="expected plain unique member names"):
        reader(tmp_path / "m.keras")
    assert [file.name for file in tmp_path.iterdir()] == ["m.keras"]


@pytest.mark.parametrize("reader", [from_keras, read_arrays, load_first])
def test_a_link_in_an_archive_is_bytes(tmp_path, reader):
    (tmp_path / "secret.h5").write_bytes((DATA / "keras" / "nested.h5").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        link = zipfile.ZipInfo("model.weights.h5")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(tmp_path / "secret.h5"))
    with pytest.raises(ValueError, match="it would end beyond the file's"):
        reader(tmp_path / "m.keras")


# ---- files that users name -----------------------------------------------------------------------

ENDS = (".keras", ".h5", ".index", ".weights.json", ".index.json", ".json", ".pt", ".bin")
ENDS += (".safetensors", ".onnx", ".npz", ".npy")
PLACES = ("a pipe", "a device", "a socket")


@pytest.mark.parametrize("how", PLACES)
@pytest.mark.parametrize("end", ENDS)
def test_commands_open_plain_files_only(tmp_path, capsys, end, how):
    path = tmp_path / f"model{end}"
    path.write_bytes(b"")
    replaced(path, how, tmp_path / "out")
    for command in ("inspect", "convert", "run"):
        assert main([command, *arguments(command, path, tmp_path)]) == 2
        assert f"expected a plain file, got {how}" in capsys.readouterr().err
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("how", [*PLACES, "a folder"])
def test_functions_open_plain_files_only(tmp_path, how):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    replaced(path, how, tmp_path / "out")
    readers = [fastgru.load, from_torch, from_onnx]
    readers += [] if how == "a folder" else [from_keras, read_arrays, load_first]
    for reader in readers:
        with pytest.raises(ValueError, match="expected"):
            reader(path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_files_without_a_size_are_refused():
    """A file of the system says 0 bytes, and has as many as it likes."""
    path = Path("/proc/self/maps")
    for reader in (fastgru.load, from_keras, from_torch, from_onnx, read_arrays, load_first):
        with pytest.raises(ValueError, match="expected a plain file, got one of the system"):
            reader(path)


# ---- outputs over inputs -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["its name", "a hard link", "a folder's link"])
@pytest.mark.parametrize("command", ["convert", "run"])
@pytest.mark.parametrize(("kind", "member"), [(k, m) for k, m in MEMBERS if m != "variables"])
def test_no_output_over_a_file_of_the_model(
    tmp_path, capsys, monkeypatch, kind, member, command, how
):
    """Also over those that the GRU does not need; nothing is computed or written."""
    path = FORMATS[kind][0](tmp_path / "model")
    folder = tmp_path / "model"
    output = inner(path, member)
    if how == "a hard link" or (command == "convert" and output.suffix != ".safetensors"):
        output = tmp_path / "other.safetensors"
        output.hardlink_to(inner(path, member))
    elif how == "a folder's link":
        (tmp_path / "elsewhere").symlink_to(output.parent)
        output = tmp_path / "elsewhere" / output.name
    monkeypatch.setattr("fastgru.cli.run.run_file", None)
    monkeypatch.setattr("fastgru.save", None)
    before = contents(folder)
    assert main([command, *arguments(command, path, tmp_path, output, kind)]) == 2
    assert "expected the name of another file, got that of" in capsys.readouterr().err
    assert contents(folder) == before


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_output_beside_the_model_is_written_and_replaced(tmp_path, kind):
    path = FORMATS[kind][0](tmp_path / "model")
    before = contents(tmp_path / "model")
    for command, name in (("convert", "y.safetensors"), ("run", "y.npy")):
        (tmp_path / name).write_bytes(b"old")
        line = [command, *arguments(command, path, tmp_path, tmp_path / name, kind)]
        assert main(line) == 2  # it was not told to
        assert (tmp_path / name).read_bytes() == b"old"
        assert main([*line, "--force"]) == 0
        assert len((tmp_path / name).read_bytes()) > 100
    assert contents(tmp_path / "model") == before


WRITERS = {
    "m.safetensors": fastgru.save,
    "m.onnx": fastgru.io.to_onnx,
    "m.weights.h5": fastgru.io.to_keras_weights,
}


@pytest.mark.parametrize("how", [*LINKS, "a link to nothing", *PLACES, "a folder"])
@pytest.mark.parametrize("name", WRITERS)
def test_writers_refuse_what_is_no_file_before_they_begin(tmp_path, name, how):
    """A layer without weights is the next thing that they refuse."""
    path = tmp_path / name
    path.write_bytes(b"precious")
    replaced(path, how, tmp_path / "out")
    with pytest.raises(ValueError, match="expected a file or nothing there"):
        WRITERS[name](fastgru.GRU(3), path)
    assert (tmp_path / "out").read_bytes() == b"precious"


@pytest.mark.parametrize("how", [*LINKS, "a link to nothing", *PLACES, "a folder"])
@pytest.mark.parametrize("command", ["convert", "run", "bench"])
def test_commands_refuse_such_outputs_before_they_begin(
    tmp_path, capsys, monkeypatch, command, how
):
    output = tmp_path / "y.safetensors"
    output.write_bytes(b"precious")
    replaced(output, how, tmp_path / "out")
    monkeypatch.setattr("fastgru.cli.bench.measure", None)
    monkeypatch.setattr("fastgru.cli.models.find", None)
    if command == "bench":
        assert main(["bench", "--plot", str(output)]) == 2
    else:
        model = DATA / "keras" / "nested.h5"
        assert main([command, *arguments(command, model, tmp_path, output)]) == 2
    assert "expected a file or nothing there" in capsys.readouterr().err
    assert (tmp_path / "out").read_bytes() == b"precious"
