"""The command line as a program of its own: usage, signals, terminals, pipes, a full disk."""

import importlib
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import subprocesses
from cli_support import I, T, left_in, save_input, save_model

import fastgru
from fastgru.cli import main
from fastgru.cli.run import _created


@pytest.fixture
def saved(tmp_path):
    return save_model(tmp_path)


@pytest.fixture
def x(tmp_path):
    return save_input(tmp_path)


def program(*arguments, **options):
    """Run ``python -m fastgru``."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "fastgru", *arguments],
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_the_entry_point_is_there():
    path = Path(__file__).parents[2] / "pyproject.toml"
    module, _, name = tomllib.loads(path.read_text())["project"]["scripts"]["fastgru"].partition(
        ":"
    )
    assert getattr(importlib.import_module(module), name) is main


def test_usage():
    assert program().returncode == 2
    for arguments in (["run"], ["run", "m", "i", "-o", "o", "--batch-size", "0"], ["sing"]):
        done = program(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: fastgru")
    assert (
        "--batch-size: expected an integer from 1 on, got '0'"
        in program("run", "m", "i", "-o", "o", "--batch-size", "0").stderr
    )
    done = program("--help")
    assert done.returncode == 0
    assert re.search(r"info.*inspect.*convert.*run.*bench", done.stdout, re.DOTALL)


def test_info():
    done = program("info")
    assert done.returncode == 0
    assert fastgru.__version__ in done.stdout.splitlines()[0]


def test_whoever_reads_stdout_may_stop(tmp_path):
    """As ``fastgru inspect MODEL | true`` does: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from fastgru.cli import main; sys.exit(main(['info']))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=subprocesses.environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


SLOW = """
    import contextlib, sys, time
    from fastgru.cli import main, run

    @contextlib.contextmanager
    def slow(rows):
        yield lambda _: time.sleep(0.05)

    run.progress = slow
    sys.exit(main(sys.argv[1:]))
"""


def start_slowly(tmp_path, model, **options):
    """Start a run that takes seconds, a row at a time."""
    np.save(tmp_path / "IN.npy", np.zeros((200, T, I), "float32"))
    code = "\n".join(line.removeprefix("    ") for line in SLOW.splitlines())
    paths = [model, str(tmp_path / "IN.npy"), "-o", str(tmp_path / "OUT.npy")]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, "run", *paths, "--batch-size", "1"],
        env=subprocesses.environment(),
        **options,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "fastgru run: interrupted\n"), (signal.SIGTERM, 143, "")],
)
def test_stopped_from_outside(tmp_path, saved, number, code, said):
    process = start_slowly(tmp_path, saved[0], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(name.endswith(".part") for name in left_in(tmp_path)))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (code, said)
    assert left_in(tmp_path) == []


def on_a_terminal(arguments, environment):
    """Run a program whose stderr is a terminal; return its exit code and what came there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(arguments, env=environment, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the last one to hold the terminal has gone
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(timeout=60), shown.decode()


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_on_a_terminal_and_none_in_a_pipe(tmp_path, saved, x, tqdm):
    if tqdm:
        pytest.importorskip("tqdm", reason="the bar is tqdm's: pip install 'fastgru[cli]'")
    hide = "import sys; sys.modules['tqdm'] = None; " if not tqdm else "import sys; "
    code = hide + "from fastgru.cli import main; sys.exit(main(sys.argv[1:]))"
    paths = [saved[0], str(tmp_path / "IN.npy"), "-o", str(tmp_path / "OUT.npy")]
    arguments = [sys.executable, "-P", "-c", code, "run", *paths, "--batch-size", "2"]
    status, shown = on_a_terminal(arguments, subprocesses.environment())
    assert status == 0
    if tqdm:
        assert "100%|" in shown
        assert "7.00/7.00" in shown
    else:
        steps = re.findall(r"\r *(\d+) %  (\d) of 7 rows, [\d,]+ a second", shown)
        assert steps == [("0", "0"), ("28", "2"), ("57", "4"), ("85", "6"), ("100", "7")]
    arguments += ["--force", "--quiet"]
    done = subprocess.run(
        arguments, env=subprocesses.environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_full_disk_is_an_error_before_the_work(tmp_path, saved, x):
    """A limit on the size of files stands for it."""
    done = program(
        *("run", saved[0], str(tmp_path / "IN.npy"), "-o", str(tmp_path / "OUT.npy")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150)),
    )
    assert done.returncode == 1
    assert re.fullmatch(r"fastgru run: .*File too large.*\n", done.stderr)
    assert left_in(tmp_path) == []


def test_the_place_on_the_disk_is_reserved(tmp_path):
    """Else a disk that fills up during the run would kill it by a signal."""
    path = tmp_path / "OUT.npy"
    with path.open("w+b") as file:
        _created(file, (300, 1000), np.dtype("float32"))
    assert path.stat().st_blocks * 512 >= path.stat().st_size > 1_200_000
