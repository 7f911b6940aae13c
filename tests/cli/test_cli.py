"""The command line, called in this process: results, exit codes, files left behind."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import savedmodel_support as support
from cli_support import B, H, I, T, left_in, save_input, save_model
from grad_support import fill

import fastgru
from fastgru.cli import main, models
from fastgru.io.imported_layer import ImportedLayer


def layer_of(kind, **arguments):
    if kind == "bidirectional":
        return fill(fastgru.Bidirectional(fastgru.GRU(H, **arguments)), features=I)
    if kind == "sequential":
        first = fastgru.GRU(6, return_sequences=True)
        return fill(fastgru.Sequential([first, fastgru.GRU(H, **arguments)]), features=I)
    return fill(fastgru.GRU(H, dtype="float32", **arguments), features=I)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Register a reader of .fake files: whatever layers the test gives."""

    def register(**layers):
        found = [
            ImportedLayer(name, layer, "as it is", "the test") for name, layer in layers.items()
        ]
        module = types.SimpleNamespace(find=lambda path, budget: found)
        monkeypatch.setitem(sys.modules, "fastgru.io.fake", module)
        monkeypatch.setitem(models.READERS, ".fake", "fake")
        path = tmp_path / "model.fake"
        path.touch()
        return str(path)

    return register


@pytest.fixture
def saved(tmp_path):
    return save_model(tmp_path)


@pytest.fixture
def x(tmp_path):
    return save_input(tmp_path)


def run(tmp_path, model, *more):
    return main(["run", model, str(tmp_path / "IN.npy"), "-o", str(tmp_path / "OUT.npy"), *more])


# ---- run -----------------------------------------------------------------------------------------

LAYERS = {
    "last": lambda: layer_of("gru"),
    "sequences": lambda: layer_of("gru", return_sequences=True),
    "state": lambda: layer_of("gru", return_sequences=True, return_state=True),
    "bidirectional": lambda: layer_of("bidirectional", return_sequences=True),
    "sequential": lambda: layer_of("sequential", go_backwards=True),
}


@pytest.mark.parametrize(
    "more", [[], ["--batch-size", "3"], ["--batch-size", "1", "--threads", "2"]]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_run_is_the_call(tmp_path, fake, x, kind, more):
    layer = LAYERS[kind]()
    assert run(tmp_path, fake(only=layer), *more) == 0
    expected = layer(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    written = np.load(tmp_path / "OUT.npy")
    assert written.dtype == expected.dtype
    np.testing.assert_array_equal(written, expected)
    assert left_in(tmp_path) == ["OUT.npy"]


@pytest.mark.parametrize("return_sequences", [True, False])
def test_run_time_major(tmp_path, fake, x, return_sequences):
    layer = layer_of("gru", time_major=True, return_sequences=return_sequences)
    np.save(tmp_path / "IN.npy", x.transpose(1, 0, 2))
    assert run(tmp_path, fake(only=layer), "--batch-size", "3") == 0
    expected = layer(x.transpose(1, 0, 2))
    np.testing.assert_array_equal(np.load(tmp_path / "OUT.npy"), expected)


def test_run_with_lengths(tmp_path, fake, x):
    layer = layer_of("gru", return_sequences=True)
    lengths = np.array([5, 0, 2, 3, 1, 4, 5])
    np.save(tmp_path / "LEN.npy", lengths)
    assert (
        run(tmp_path, fake(only=layer), "--batch-size", "3", "--lengths", str(tmp_path / "LEN.npy"))
        == 0
    )
    np.testing.assert_array_equal(np.load(tmp_path / "OUT.npy"), layer(x, lengths=lengths))


def test_rows_of_a_stateful_layer_are_sequences_of_their_own(tmp_path, fake, x):
    layer, plain = layer_of("gru", stateful=True), layer_of("gru")
    assert run(tmp_path, fake(only=layer), "--batch-size", "3") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "OUT.npy"), plain(x))


@pytest.mark.parametrize("shape", [(0, T, I), (B, 0, I)])
def test_run_without_rows_or_steps(tmp_path, fake, shape):
    layer = layer_of("gru", return_sequences=True)
    np.save(tmp_path / "IN.npy", np.zeros(shape, "float32"))
    assert run(tmp_path, fake(only=layer)) == 0
    assert np.load(tmp_path / "OUT.npy").shape == (*shape[:2], H)


def test_run_on_a_savedmodel(tmp_path, saved, x):
    folder, layer = saved
    assert run(tmp_path, folder) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "OUT.npy"), layer(x))


def test_one_layer_of_several(tmp_path, fake, x, capsys):
    first, second = layer_of("gru"), layer_of("gru", return_sequences=True)
    model = fake(**{"encoder.gru": first, "decoder.gru": second})
    assert run(tmp_path, model) == 2
    assert "choose one with --name: encoder.gru, decoder.gru" in capsys.readouterr().err
    assert run(tmp_path, model, "--name", "gru") == 2
    assert "one of encoder.gru, decoder.gru, got gru" in capsys.readouterr().err
    assert left_in(tmp_path) == []
    for option in ("--name", "--prefix", "--node"):
        assert run(tmp_path, model, option, "decoder.gru", "--force") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "OUT.npy"), second(x))


WRONG_INPUT = {
    "features": (np.zeros((B, T, I + 1), "float32"), "5"),
    "dimensions": (
        np.zeros((B, T), "float32"),
        r"expected an array \(B, T, I\), got shape \(7, 5\)",
    ),
    "objects": (np.array([{}]), "expected a .npy file of numbers"),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_input_is_one_sentence_and_2(tmp_path, saved, capsys, case):
    array, message = WRONG_INPUT[case]
    np.save(tmp_path / "IN.npy", array)
    assert run(tmp_path, saved[0]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("fastgru run: ")
    assert re.search(message, said)
    assert left_in(tmp_path) == []


def test_input_that_is_no_npy_file(tmp_path, saved, capsys):
    for content in (b"", b"\x93NUMPY", b"PK\x03\x04 a .npz", b"text\n" * 30):
        (tmp_path / "IN.npy").write_bytes(content)
        assert run(tmp_path, saved[0]) == 2
        assert "IN.npy: expected a .npy file" in capsys.readouterr().err
    np.save(tmp_path / "IN.npy", np.zeros((B, T, I), "float32"))
    whole = (tmp_path / "IN.npy").read_bytes()
    (tmp_path / "IN.npy").write_bytes(whole[:-1])
    assert run(tmp_path, saved[0]) == 2
    assert "IN.npy: expected a .npy file" in capsys.readouterr().err
    (tmp_path / "IN.npy").unlink()
    assert run(tmp_path, saved[0]) == 2
    assert "IN.npy: expected a .npy file" in capsys.readouterr().err
    assert left_in(tmp_path) == []


def test_wrong_lengths(tmp_path, saved, x, capsys):
    for lengths, message in (([5] * 6, r"expected shape \(7,\)"), ([9] * 7, "lengths")):
        np.save(tmp_path / "model" / "LEN.npy", np.array(lengths))
        path = str(tmp_path / "model" / "LEN.npy")
        assert run(tmp_path, saved[0], "--lengths", path) == 2
        assert re.search(message, capsys.readouterr().err)
    assert left_in(tmp_path) == []


def test_two_outputs_have_no_one_file(tmp_path, fake, x, capsys):
    layer = fill(fastgru.Bidirectional(fastgru.GRU(H), merge_mode=None), features=I)
    assert run(tmp_path, fake(only=layer)) == 2
    assert "its merge_mode is None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "message"), [("absent/OUT.npy", "expected its folder"), ("model", "something else")]
)
def test_where_nothing_can_be_written(tmp_path, saved, x, capsys, target, message):
    code = main(["run", saved[0], str(tmp_path / "IN.npy"), "-o", str(tmp_path / target)])
    assert code == 2
    assert message in capsys.readouterr().err


# ---- what fails in the middle --------------------------------------------------------------------


class Failing(fastgru.GRU):
    """A layer that raises at its third call: the one without rows, a batch, another."""

    error: BaseException
    calls = 0

    def __call__(self, *arguments, **more):
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return super().__call__(*arguments, **more)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError("no memory"), 1),
        (OSError("no space"), 1),
        (fastgru.BackendError("no device"), 1),
        (ValueError("a lengths of 9"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), None),
        (RuntimeError("a mistake of ours"), None),
    ],
)
def test_a_failed_run_leaves_the_old_output(tmp_path, fake, x, capsys, error, code):
    layer = fill(Failing(H), features=I)
    layer.error = error
    (tmp_path / "OUT.npy").write_bytes(b"old")
    model = fake(only=layer)
    if code is None:  # a bug, or the end of the process: not dressed up as an exit code
        with pytest.raises(type(error)):
            run(tmp_path, model, "--batch-size", "2", "--force")
    else:
        assert run(tmp_path, model, "--batch-size", "2", "--force") == code
        said = capsys.readouterr().err
        assert said == f"fastgru run: {str(error) or 'interrupted'}\n"
    assert layer.calls == 3
    assert left_in(tmp_path) == ["OUT.npy"]
    assert (tmp_path / "OUT.npy").read_bytes() == b"old"


# ---- the other commands --------------------------------------------------------------------------


def test_inspect(tmp_path, capsys):
    folder = support.unpack("nested", tmp_path)
    assert main(["inspect", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "layer", "shapes", "parameters", "weights"]
    row = next(line for line in lines if line.startswith("encoder/gru"))
    assert row.split(maxsplit=3)[:3] == ["encoder/gru", "GRU", "6"]
    assert "(B, T, 4) -> (B, T, 6)" in row
    assert "(4, 18) (6, 18) (2, 18)" in row
    assert " 216 " in row
    below = lines[lines.index(row) + 1 : lines.index(row) + 3]
    assert below[0].strip() == "gates z r h in columns, bias (2, 3H), reset after"
    assert below[1].strip().startswith("known by keras_metadata.pb")


def test_inspect_in_the_docs(tmp_path, monkeypatch, capsys):
    support.unpack("nested", tmp_path).rename(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    marked = re.search(r"<!-- console: runs as a test -->\n```console\n(.*?)```", page, re.DOTALL)
    command, _, expected = marked[1].partition("\n")
    assert main(command.removeprefix("$ fastgru ").split()) == 0
    assert capsys.readouterr().out == expected


def test_inspect_describes_every_layer(fake, capsys):
    cells = fastgru.RNN([fastgru.GRUCell(2), fastgru.GRUCell(6)], return_state=True)
    layers = {
        "cells": fill(cells, features=I),
        "both": layer_of("bidirectional"),
        "stack": layer_of("sequential"),
        "major": layer_of("gru", time_major=True, return_sequences=True),
    }
    assert main(["inspect", fake(**layers)]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "RNN 2 6                (B, T, 4) -> (B, 6), (B, 2), (B, 6)",
        "Bidirectional GRU 3    (B, T, 4) -> (B, 6)",
        "GRU 6 + GRU 3          (B, T, 4) -> (B, 3)",
        "GRU 3                  (T, B, 4) -> (T, B, 3)",
    ):
        assert re.sub(" +", " ", expected) in re.sub(" +", " ", shown)


@pytest.mark.parametrize("command", ["inspect", "convert", "run"])
def test_models_that_are_none(tmp_path, capsys, command):
    more = {"convert": ["o.safetensors"], "run": ["i", "-o", "o"]}.get(command, [])
    (tmp_path / "model.docx").touch()
    (tmp_path / "model").touch()
    for name, message in (
        ("absent.keras", "expected a model there"),
        ("model.docx", "got '.docx'"),
        ("model", "expected a SavedModel folder, a checkpoint or one of .keras, .h5"),
    ):
        assert main([command, str(tmp_path / name), *more]) == 2
        assert message in capsys.readouterr().err


def test_a_model_without_a_gru(fake, capsys):
    model = fake()
    assert main(["convert", model, "o.safetensors"]) == 2
    assert "expected a GRU in it, found none" in capsys.readouterr().err
    assert main(["inspect", model]) == 0
    assert capsys.readouterr().out == "no GRU in it\n"


def test_convert(tmp_path, fake, monkeypatch, capsys):
    layer, written = layer_of("gru"), []
    monkeypatch.setattr(fastgru, "save", lambda *given: written.append(given), raising=False)
    model = fake(one=layer_of("gru"), two=layer)
    assert main(["convert", model, str(tmp_path / "OUT.safetensors"), "--name", "two"]) == 0
    assert written == [(layer, tmp_path / "OUT.safetensors")]
    assert main(["convert", model, str(tmp_path / "OUT.npz"), "--name", "two"]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err


def test_safetensors_files_are_ours_or_pytorchs(tmp_path, monkeypatch):
    layer, theirs = layer_of("gru"), [ImportedLayer("theirs", layer_of("gru"), "", "")]
    metadata = {"fastgru": "{}"}
    ours = types.SimpleNamespace(read_tensors=lambda _: (metadata, {}), load=lambda _: layer)
    monkeypatch.setitem(sys.modules, "fastgru.io.safetensors", ours)
    torch = types.SimpleNamespace(find=lambda _, budget: theirs)
    monkeypatch.setitem(sys.modules, "fastgru.io.torch", torch)
    path = tmp_path / "weights.safetensors"
    path.touch()
    assert [one.layer for one in models.find(path)] == [layer]
    metadata.clear()
    assert models.find(path) == theirs


def test_a_package_that_is_missing_is_1(fake, monkeypatch, capsys):
    def missing(path, budget):
        raise ImportError("reading .fake files needs fakelib; pip install 'fastgru[fake]'")

    model = fake()
    monkeypatch.setattr(sys.modules["fastgru.io.fake"], "find", missing)
    assert main(["inspect", model]) == 1
    assert "pip install 'fastgru[fake]'" in capsys.readouterr().err


@pytest.mark.parametrize("drawn", [True, False])
def test_bench(tmp_path, monkeypatch, capsys, drawn):
    from fastgru.cli import bench

    monkeypatch.setattr(bench, "BATCHES", (1, 3))
    monkeypatch.setattr(bench, "UNITS", (4, 8))
    if drawn:
        pytest.importorskip("matplotlib", reason="it draws the plot: pip install 'fastgru[cli]'")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    picture = tmp_path / "bench.png"
    assert main(["bench", "--seconds", "0.001", "--threads", "2", "--plot", str(picture)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:5] == ["B", "T", "I", "H", "threads"]
    measured = [tuple(row.split()[i] for i in (0, 3, 4)) for row in rows[:8]]
    assert measured == [(b, h, n) for h in "48" for b in "13" for n in "12"]
    assert picture.exists() == drawn
    assert rows[8:] == ([f"plot: {picture}"] if drawn else [])
    assert main(["bench", "--seconds", "0"]) == 2


def test_the_rate_is_of_the_products():
    from fastgru.cli.bench import Result
    from fastgru.cli.bench import T as STEPS

    # x W and h U: two products of (H,) and (H, 3H) for each row and step.
    assert Result(5, 8, 1, 2.0, 3).rate == 5 * STEPS * 2 * (2 * 8 * 24) / 2.0 / 1e9


# ---- what people try first -----------------------------------------------------------------------


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fastgru {fastgru.__version__}\n"


def test_commands_say_what_they_wrote(tmp_path, fake, x, capsys):
    layer = layer_of("gru", return_sequences=True)
    model = fake(only=layer)
    assert run(tmp_path, model) == 0
    out = str(tmp_path / "OUT.npy")
    assert capsys.readouterr().out == f"wrote {out}: {(B, T, H)} float32\n"
    assert run(tmp_path, model, "--quiet", "--force") == 0
    assert capsys.readouterr().out == ""
    target = str(tmp_path / "m.safetensors")
    assert main(["convert", model, target]) == 0
    assert (
        capsys.readouterr().out
        == f"wrote {target}: {layer!r}, {layer.count_params():,} parameters\n"
    )
    assert main(["convert", model, target, "--force", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", ["float64", "int16", ">f4"])
def test_other_numbers_are_cast(tmp_path, fake, x, capsys, dtype):
    layer = layer_of("gru")
    given = (10 * x).astype(dtype)
    np.save(tmp_path / "IN.npy", given)
    assert run(tmp_path, fake(only=layer)) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "OUT.npy"), layer(given))
    said = capsys.readouterr().out
    assert ("the input cast from" in said) == (dtype != ">f4")


def test_an_output_that_exists_is_replaced_only_with_force(tmp_path, fake, x, capsys):
    model = fake(only=layer_of("gru"))
    for command, name in (("run", "OUT.npy"), ("convert", "m.safetensors")):
        (tmp_path / name).write_bytes(b"old")
        line = [command, model, *([] if command == "convert" else [str(tmp_path / "IN.npy"), "-o"])]
        line.append(str(tmp_path / name))
        assert main(line) == 2
        said = capsys.readouterr().err
        assert f"{name}: expected no such file, got one; pass --force to replace it" in said
        assert (tmp_path / name).read_bytes() == b"old"
        assert main([*line, "--force"]) == 0
        assert (tmp_path / name).stat().st_size > 10


def test_outputs_have_names_of_their_kind(tmp_path, fake, x, capsys, monkeypatch):
    monkeypatch.setattr("fastgru.cli.run.run_file", None)  # nothing is computed
    model = fake(only=layer_of("gru"))
    line = ["run", model, str(tmp_path / "IN.npy"), "-o", str(tmp_path / "y.csv")]
    assert main(line) == 2
    assert "y.csv: expected a name that ends in .npy" in capsys.readouterr().err
    assert main(["convert", model, str(tmp_path / "y.h5")]) == 2
    assert "y.h5: expected a name that ends in .safetensors" in capsys.readouterr().err


def test_an_error_names_the_shape_of_the_file(tmp_path, fake, x, capsys):
    model = fake(only=layer_of("gru"))
    np.save(tmp_path / "IN.npy", np.zeros((6, T, I + 1), "float32"))
    assert run(tmp_path, model) == 2
    said = capsys.readouterr().err
    assert f"IN.npy: expected I = {I} features in the last axis" in said
    assert f"got {I + 1}: the file's shape is {(6, T, I + 1)}" in said
    np.save(tmp_path / "IN.npy", np.zeros((T, I), "float32"))
    assert run(tmp_path, model) == 2
    assert f"got shape {(T, I)}; of one sequence, save x[None]" in capsys.readouterr().err


def test_a_folder_that_is_missing(tmp_path, fake, x, capsys):
    model = fake(only=layer_of("gru"))
    line = ["run", model, str(tmp_path / "IN.npy"), "-o", str(tmp_path / "no" / "y.npy")]
    assert main(line) == 2
    assert "y.npy: expected its folder to exist" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16"])
def test_layers_of_16_bits(tmp_path, x, capsys, dtype):
    """An output of bfloat16, which NumPy's format does not have, is written as float32."""
    pytest.importorskip("ml_dtypes", reason="bfloat16 is a type of ml_dtypes")
    layer = fastgru.GRU(H, dtype=dtype, return_sequences=True, input_dim=I)
    fastgru.save(layer, tmp_path / "m.safetensors")
    assert run(tmp_path, str(tmp_path / "m.safetensors")) == 0
    written = np.load(tmp_path / "OUT.npy")
    expected = "float16" if dtype == "float16" else "float32"
    assert written.dtype.name == expected
    np.testing.assert_array_equal(written, layer(x).astype(expected))
    said = f" {expected}, the input cast from float32 to {dtype.removeprefix('mixed_')}\n"
    assert capsys.readouterr().out.endswith(said)
