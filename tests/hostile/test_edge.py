"""The command line's edge: what it prints of a file, which files it opens, what they may cost."""

import os
import socket
import unicodedata

import limited_process
import numpy as np
import pytest
from limited_process import MB

import fastgru
from fastgru.cli import main
from fastgru.cli.terminal import columns, printable

pytest.importorskip("safetensors", reason="needs safetensors")

EVIL = "enc\x1b]0;owned\x07\x1b[2K\r\n\x9b31m\u202egru\u2066\u2028\x7f\u200b"


def refuse_to_steer(text):
    """No character but newlines between lines may be anything but a visible sign or a space."""
    assert text
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)


# ---- what is printed -----------------------------------------------------------------------------


def test_every_character_that_is_no_sign_is_escaped():
    for code in range(0x110000):
        sign = chr(code)
        if unicodedata.category(sign)[0] in "CZ" and sign != " ":
            shown = printable(sign)
            assert shown.isascii() and shown.isprintable() and len(shown) > 1, ascii(sign)  # noqa: PT018
    seen = "".join(s for s in map(chr, range(0x110000)) if s.isprintable())
    assert printable(seen) == seen


def test_what_people_write_is_shown_as_it_is():
    for text in ("encoder/gru", "кодер", "編碼器", "a b", "C:\\models\\x.npy", "(B, T, 4) -> é"):
        assert printable(text) == text


def test_columns_are_aligned_by_what_is_shown():
    assert columns([("name", "x"), ("a\nb", "1"), ("\x1b", "2")]) == [
        "name  x",
        r"a\nb  1",
        r"\x1b  2",
    ]


def torch_file(path, *prefixes):
    """Arrays in PyTorch's names, which the command line finds GRUs in."""
    rng = np.random.default_rng(0)
    shapes = {"weight_ih_l0": (12, 3), "weight_hh_l0": (12, 4), "bias_ih_l0": (12,)}
    shapes["bias_hh_l0"] = (12,)
    arrays = {
        f"{prefix}.{name}": rng.normal(size=shape).astype("float32")
        for prefix in prefixes
        for name, shape in shapes.items()
    }
    from safetensors.numpy import save_file

    save_file(arrays, path)
    return str(path)


@pytest.mark.parametrize("command", ["inspect", "convert", "run"])
def test_names_in_a_file_are_escaped(tmp_path, capsys, command):
    """In the table on stdout, and in the error that lists them."""
    path = torch_file(tmp_path / "m.safetensors", f"a{EVIL}", f"b{EVIL}")
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 3), "float32"))
    more = {
        "inspect": [],
        "convert": [str(tmp_path / "out.safetensors")],
        "run": [str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")],
    }[command]
    assert main([command, path, *more]) == (0 if command == "inspect" else 2)
    out, err = capsys.readouterr()
    refuse_to_steer(out + err)
    shown = out if command == "inspect" else err
    assert r"aenc\x1b]0;owned\x07\x1b[2K" in shown
    assert r"\x9b31m\u202egru\u2066" in shown


def test_a_layers_name_in_a_file_is_refused_and_escaped(tmp_path, capsys):
    """The layer would be made with that name, so the file is refused."""
    layer = fastgru.GRU(3, name="placeholder")
    layer.build((None, None, 2))
    path = tmp_path / "m.safetensors"
    fastgru.save(layer, path)
    data = path.read_bytes()
    escaped = "".join(f"\\\\u{ord(sign):04x}" for sign in "\x1b\n").encode()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b"placeholder", b"place" + escaped)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    assert main(["inspect", str(path)]) == 2
    shown = capsys.readouterr().err
    refuse_to_steer(shown)
    assert r"name: expected no control characters, got 'place\x1b\n'" in shown


def test_one_name_of_the_file_is_one_line(tmp_path, capsys):
    path = torch_file(tmp_path / "m.safetensors", "gru\nfake  GRU 9  (B, T, 1) -> (B, 9)")
    assert main(["inspect", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(r"gru\nfake  GRU 9  (B, T, 1)")
    assert len(lines) == 4


def test_warnings_and_errors_are_escaped(tmp_path, capsys):
    weights = {
        f"{EVIL}/kernel": np.zeros((3, 12), "float32"),
        f"{EVIL}/recurrent_kernel": np.zeros((4, 12), "float32"),
        f"{EVIL}/bias": np.zeros((2, 12), "float32"),
    }
    np.savez(tmp_path / "m.npz", **weights)
    assert main(["convert", str(tmp_path / "m.npz"), str(tmp_path / "o.safetensors")]) == 0
    warned = capsys.readouterr().err
    refuse_to_steer(warned)
    assert "assumed" in warned
    assert main(["inspect", str(tmp_path / EVIL.replace("/", ""))]) == 2
    refuse_to_steer(capsys.readouterr().err)


def test_wrong_usage_with_the_names_of_files_is_escaped(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "a.onnx", EVIL])
    shown = capsys.readouterr().err
    refuse_to_steer(shown)
    assert "owned" in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_terminal_does_not_have(tmp_path, encoding):
    """They are escaped, and the command does not end with a traceback."""
    path = torch_file(
        tmp_path / "m.safetensors", "編碼器\udcff".encode("utf-8", "replace").decode()
    )
    code = "import sys; from fastgru.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = limited_process.run(
        *(limited_process.sys.executable, "-P", "-X", "utf8=0", "-c", code, "inspect", path),
        variables={"PYTHONIOENCODING": encoding, "LC_ALL": "C"},
    )
    assert ended.code == 0, ended.err
    shown = "編碼器".encode(encoding, "backslashreplace")
    assert shown in ended.out


@pytest.mark.parametrize("kind", [fastgru.GRU, fastgru.GRUCell])
@pytest.mark.parametrize(
    "name", ["a\x1b[2K", "a\nb", "a\r", "\x00", "\x7f", "\x85", "a\u2028b", "\u202egru", "\ud800"]
)
def test_layers_refuse_names_with_control_characters(kind, name):
    with pytest.raises(ValueError, match="name: expected no control characters") as caught:
        kind(3, name=name)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    layer = kind(3, name="編碼器 1/gru\u200d")
    with pytest.raises(ValueError, match="name: expected no control characters"):
        layer.name = name
    assert layer.name == "編碼器 1/gru\u200d"
    with pytest.raises(ValueError, match="no control characters"):
        kind.from_config({**layer.get_config(), "name": name})


# ---- which files are opened ----------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    layer = fastgru.GRU(64, return_sequences=True)
    layer.build((None, None, 4))
    fastgru.save(layer, tmp_path / "m.safetensors")
    return layer, tmp_path / "m.safetensors"


@pytest.mark.skipif(os.name != "posix", reason="no such files on this system")
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a socket", "a folder"])
@pytest.mark.parametrize("role", ["input", "lengths"])
def test_only_plain_files_are_opened(tmp_path, model, kind, role):
    """A pipe without a writer would hang, a device may do anything when it is opened."""
    wrong = tmp_path / "wrong"
    if kind == "a pipe":
        os.mkfifo(wrong)
    elif kind == "a device":
        wrong.symlink_to("/dev/zero")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(wrong))
    else:
        wrong.mkdir()
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4), "float32"))
    files = [wrong, "-o", tmp_path / "y.npy"]
    if role == "lengths":
        files = [tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--lengths", wrong]
    ended = limited_process.fastgru("run", model[1], *files, timeout=30)
    assert ended.code == 2
    said = ended.err.decode()
    assert f"expected a plain file, got {kind}" in said or "expected a .npy file" in said
    assert not (tmp_path / "y.npy").exists()


def header(path, shape, descr="<f4", data=b""):
    with open(path, "wb") as file:
        what = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, what)
        file.write(data)
    return path


# ---- what they may cost --------------------------------------------------------------------------

HUGE = {
    "rows without steps": (4_000_000, 0, 4),
    "more rows than memory": (1 << 40, 0, 4),
    "numbers that are not there": (4_000_000, 16, 4),
    "beyond 64 bits": (1 << 60, 1 << 60, 4),
    "beyond 64 bits, without steps": (1 << 100, 0, 4),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_small_file_becomes_no_large_one(tmp_path, model, kind):
    """128 bytes of input: no gigabyte of memory, of output, no minute."""
    x = header(tmp_path / "x.npy", HUGE[kind])
    ended = limited_process.fastgru(
        *("run", model[1], x, "-o", tmp_path / "y.npy"), address_space=1 << 30, timeout=30
    )
    assert ended.code == 2, ended.err
    assert b"expected" in ended.err
    assert ended.peak < 120 * MB
    assert not (tmp_path / "y.npy").exists()


def test_steps_without_features(tmp_path):
    """Rows of a thousand million steps that have no bytes; the layer is built for none of it."""
    layer = fastgru.GRU(64, return_sequences=True)
    layer.build((None, None, 4))
    fastgru.save(layer, tmp_path / "m.safetensors")
    x = header(tmp_path / "x.npy", (4, 1_000_000_000, 0))
    ended = limited_process.fastgru(
        *("run", tmp_path / "m.safetensors", x, "-o", tmp_path / "y.npy"),
        address_space=1 << 30,
        timeout=30,
    )
    assert ended.code == 2, ended.err
    assert ended.peak < 120 * MB


def test_batches_of_rows_without_steps_are_counted_by_their_outputs(tmp_path, capsys):
    """What is small enough is computed, in batches: it is zeros, and no row is forgotten."""
    layer = fastgru.GRU(64)
    layer.build((None, None, 4))
    fastgru.save(layer, tmp_path / "m.safetensors")
    x = header(tmp_path / "x.npy", (50_000, 0, 4))
    arguments = ["run", tmp_path / "m.safetensors", x, "-o", tmp_path / "y.npy", "--force"]
    assert main([*map(str, arguments)]) == 0
    y = np.load(tmp_path / "y.npy")
    assert y.shape == (50_000, 64)
    assert not y.any()
    header(x, (80_000, 0, 4))
    assert main([*map(str, arguments)]) == 2
    assert "expected numbers, got the shape (80000, 0, 4)" in capsys.readouterr().err


WRONG = {
    "cut short": ((2, 3, 4), "<f4", bytes(95)),
    "negative": ((-2, -3, 4), "<f4", bytes(96)),
    "objects": ((2, 3, 4), "|O", bytes(192)),
    "objects in fields": ((2, 3, 4), [("a", "|O")], bytes(192)),
    "text": ((2, 3, 4), "<U1", bytes(96)),
    "times": ((2, 3, 4), "<M8[s]", bytes(192)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_forged_arrays_are_refused(tmp_path, model, capsys, kind):
    shape, descr, data = WRONG[kind]
    x = header(tmp_path / "x.npy", shape, descr, data)
    assert main(["run", str(model[1]), str(x), "-o", str(tmp_path / "y.npy")]) == 2
    assert "expected a .npy file of numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x09\x00"]
)
def test_headers_that_are_cut_or_unknown_are_refused(tmp_path, model, capsys, data):
    (tmp_path / "x.npy").write_bytes(data)
    assert main(["run", str(model[1]), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 2
    assert "expected a .npy file of numbers" in capsys.readouterr().err
    nested = b"[" * 4000 + b"]" * 4000
    (tmp_path / "x.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(nested).to_bytes(2, "little") + nested
    )
    assert main(["run", str(model[1]), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 2
    assert "expected a .npy file of numbers" in capsys.readouterr().err


def test_fortrans_order_and_the_second_version_are_read(tmp_path, model):
    layer, path = model
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32"))
    for version in ((1, 0), (2, 0)):
        with open(tmp_path / "x.npy", "wb") as file:
            np.lib.format.write_array(file, x, version)
        files = (path, tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--force")
        assert main(["run", *map(str, files)]) == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), layer(x))
