"""What tests/conftest.py tells pytest-xdist: nothing runs beside a test with the marker alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import subprocesses

pytest.importorskip("xdist", reason="pip install fastgru[test]")
pytest.importorskip("fcntl", reason="no file locks of this kind on this system")

MODULE = """
import os, time
import pytest

pytestmark = [{marks}]

@pytest.mark.parametrize("number", range(4))
def test_takes_time(number):
    start = time.monotonic()
    time.sleep({seconds})
    with open("log", "a") as log:
        log.write(f"{{start}} {{time.monotonic()}} {kind} {{os.getpid()}}\\n")
    assert number < {good}
"""


def test_nothing_runs_beside_what_is_alone(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nmarkers = ["alone"]\naddopts = ["--strict-markers"]\n'
    )
    conftest = Path(__file__).parents[1] / "conftest.py"
    (tmp_path / "conftest.py").write_text(conftest.read_text(encoding="utf-8"))
    for name in "abcd":  # c is at work for longer than b: one worker could begin with what is alone
        kind = "alone" if name in "ad" else "beside"
        text = MODULE.format(
            marks="pytest.mark.alone" if kind == "alone" else "",
            kind=kind,
            seconds=0.4 if name == "c" else 0.1,
            good=4 - (name == "d"),
        )
        (tmp_path / f"test_{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "1 failed, 15 passed" in done.stdout.splitlines()[-1]
    runs = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len(runs) == 16
    assert len({process for *_, process in runs}) == 2
    for start, end, kind, process in runs:
        for other_start, other_end, _, other in runs:
            if kind == "alone" and other != process:
                assert float(end) <= float(other_start) or float(other_end) <= float(start)
    last = [kind for *_, kind, _ in runs][-4:]
    assert last == ["alone"] * 4
