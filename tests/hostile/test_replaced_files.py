"""Files that are written: nothing else is written to, no half file is left, permissions stay."""

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import subprocesses

import fastgru
from fastgru.cli import main
from fastgru.io import replacing as module
from fastgru.io.replacing import replacing

if os.name != "posix":
    pytest.skip("links and permissions of POSIX", allow_module_level=True)


def layer():
    made = fastgru.GRU(3, return_sequences=True)
    made.build((None, None, 2))
    return made


def write_safetensors(path):
    pytest.importorskip("safetensors", reason="needs safetensors")
    fastgru.save(layer(), path)


def write_onnx(path):
    pytest.importorskip("onnx", reason="needs onnx")
    fastgru.io.to_onnx(layer(), path)


def write_keras(path):
    pytest.importorskip("h5py", reason="needs h5py")
    fastgru.io.to_keras_weights(layer(), path)


def write_run(path):
    """`fastgru run`, on a model and an input beside the folder of the output."""
    write_safetensors(path.parent.parent / "model.safetensors")
    np.save(path.parent.parent / "x.npy", np.zeros((2, 5, 2), "float32"))
    command(path, "run", path.parent.parent / "model.safetensors", path.parent.parent / "x.npy")


def write_convert(path):
    write_safetensors(path.parent.parent / "model.safetensors")
    command(path, "convert", path.parent.parent / "model.safetensors", output=())


def write_plot(path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from fastgru.cli.bench import Result, plot

    assert plot([Result(1, 64, 1, 0.1, 3), Result(8, 64, 1, 0.2, 3)], str(path))


def command(path, *arguments, output=("-o",)):
    """Run the command line; what it refuses is raised, as by the functions."""
    program = f"""
        import sys
        from fastgru.cli import main
        sys.exit(main({[*map(str, (*arguments, *output, path, "--force"))]!r}) * 10)
    """
    try:
        subprocesses.run_python(program)
    except AssertionError as error:
        raise ValueError(str(error)) from None


WRITERS = {
    "layer.safetensors": write_safetensors,
    "layer.onnx": write_onnx,
    "layer.weights.h5": write_keras,
    "y.npy": write_run,
    "converted.safetensors": write_convert,
    "plot.png": write_plot,
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_replaces_a_file_and_refuses_a_link(folder, name):
    """The one function serves all: a link is refused, and what it leads to is as it was."""
    victim = folder.parent / "victim"
    victim.write_bytes(b"precious")
    path = folder / name
    path.symlink_to(victim)
    with pytest.raises(ValueError, match="expected a file or nothing there, got a link to"):
        WRITERS[name](path)
    assert victim.read_bytes() == b"precious"
    assert path.is_symlink()
    path.unlink()
    path.write_bytes(b"old")
    path.chmod(0o640)
    with path.open("rb") as old:
        WRITERS[name](path)
        assert old.read() == b"old"
    assert len(path.read_bytes()) > 100
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [*folder.iterdir()] == [path]


def test_what_keras_writers_wrote_is_read(folder):
    made = layer()
    pytest.importorskip("h5py", reason="needs h5py")
    fastgru.io.to_keras_weights(made, folder / "a.weights.h5")
    other = layer()
    fastgru.io.load_keras_weights(other, folder / "a.weights.h5")
    for one, two in zip(made.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_name_that_somebody_has_guessed_is_not_written_to(folder, monkeypatch):
    victim = folder.parent / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(module.secrets, "token_hex", lambda size: "guessed")
    planted = folder / ".fastgru-guessed.part"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(folder / "new"):
        pass
    planted.unlink()
    planted.symlink_to(folder.parent / "nothing")
    with pytest.raises(FileExistsError), replacing(folder / "new"):
        pass
    assert victim.read_bytes() == b"precious"
    assert [*folder.iterdir()] == [planted]
    assert not (folder.parent / "nothing").exists()


def test_a_link_that_is_made_meanwhile_is_replaced(folder):
    victim = folder.parent / "victim"
    victim.write_bytes(b"precious")
    path = folder / "new"
    with replacing(path) as file:
        path.symlink_to(victim)
        file.write(b"content")
    assert victim.read_bytes() == b"precious"
    assert not path.is_symlink()
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_the_umask(folder, umask):
    before = os.umask(umask)
    try:
        with replacing(folder / "new") as file:
            file.write(b"content")
        (folder / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    mode = (folder / "new").stat().st_mode
    assert stat.S_IMODE(mode) == 0o666 & ~umask
    assert mode == (folder / "plain").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o751, 0o440])
def test_a_file_keeps_its_permissions_and_is_never_more_open(folder, mode):
    path = folder / "old"
    path.write_bytes(b"old")
    path.chmod(mode)
    with replacing(path) as file:
        (beside,) = (one for one in folder.iterdir() if one != path)
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


def test_a_group_that_cannot_be_kept_leaves_its_rights_to_nobody(folder, monkeypatch):
    path = folder / "old"
    path.write_bytes(b"old")
    path.chmod(0o664)
    before = path.stat()

    def refused(*arguments):
        raise PermissionError

    monkeypatch.setattr(module.os, "fchown", refused)
    fields = [*before]
    fields[5] = before.st_gid + 1  # st_gid
    monkeypatch.setattr(module, "expect_replaceable", lambda path: os.stat_result(fields))
    with replacing(path) as file:
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_after_an_error_all_is_as_it_was(folder, error):
    path = folder / "old"
    path.write_bytes(b"old")

    def fail():
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert [*folder.iterdir()] == [path]


def test_what_is_no_file_is_refused(folder):
    os.mkfifo(folder / "pipe")
    (folder / "inner").mkdir()
    for wrong in (folder / "pipe", folder / "inner", Path("/dev/null")):
        with pytest.raises(ValueError, match="expected a file or nothing there"), replacing(wrong):
            pass
    with (
        pytest.raises(ValueError, match="expected its folder to exist"),
        replacing(folder / "no" / "file"),
    ):
        pass
    for wrong in ("", "a\0b", "/"):
        with pytest.raises(ValueError, match="expected"), replacing(wrong):
            pass
    assert sorted(one.name for one in folder.iterdir()) == ["inner", "pipe"]


def test_a_long_name_leaves_room_for_the_temporary_one(folder):
    path = folder / ("x" * 250)
    with replacing(path) as file:
        file.write(b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("which", ["x.npy", "LEN.npy", "model.safetensors"])
@pytest.mark.parametrize("how", ["name", "spelling", "hard link", "folder's link"])
def test_run_does_not_replace_its_own_input(folder, capsys, how, which):
    pytest.importorskip("safetensors", reason="needs safetensors")
    fastgru.save(layer(), folder / "model.safetensors")
    np.save(folder / "x.npy", np.zeros((2, 5, 2), "float32"))
    np.save(folder / "LEN.npy", np.array([5, 3]))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    output = folder / which
    if how == "spelling":
        output = folder / ".." / folder.name / which
    elif how == "hard link":
        output = folder.parent / "other"
        output.hardlink_to(folder / which)
    elif how == "folder's link":
        (folder.parent / "elsewhere").symlink_to(folder)
        output = folder.parent / "elsewhere" / which
    arguments = ["run", folder / "model.safetensors", folder / "x.npy", "-o", output]
    assert main([*map(str, arguments), "--lengths", str(folder / "LEN.npy")]) == 2
    assert "expected the name of another file, got that of the input" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_convert_does_not_replace_its_own_input(folder, capsys):
    path = folder / "model.safetensors"
    write_safetensors(path)
    before = path.read_bytes()
    assert main(["convert", str(path), str(path)]) == 2
    assert "got that of the input" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc/self/fd")
def test_no_file_stays_open(folder):
    count = len(os.listdir("/proc/self/fd"))
    for name in ("a", "b"):
        with replacing(folder / name) as file:
            file.write(b"content")
    assert len(os.listdir("/proc/self/fd")) == count
