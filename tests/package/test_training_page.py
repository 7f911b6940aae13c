"""docs/training.md runs from its first block to its last; examples/train.py learns."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import subprocesses

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
if not PAGE.exists():
    pytest.skip("tests of an installed package: no docs", allow_module_level=True)


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastgru.seeds._source", None)
    monkeypatch.setattr("fastgru.layers.base._name_counts", {})  # the page shows the first names
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, re.DOTALL)
    assert len(blocks) == text.count("```python") >= 9
    names = {}
    for code, said in blocks:
        if "matplotlib" in code:
            pytest.importorskip("matplotlib", reason="the last block draws").use("agg")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, PAGE.name, "exec"), names)
        if said:
            assert output.getvalue() == said
    assert os.path.getsize("loss.png") > 1000


def test_the_example_learns(tmp_path):
    """It reaches the accuracy that it states, and says so where it is given too few steps."""
    script = PAGE.parents[1] / "examples" / "train.py"
    for more, code in ((), 0), (("--steps", "3"), 1):
        picture = tmp_path / f"{code}.png"
        done = subprocess.run(
            [sys.executable, "-P", script, "--plot", picture, *more],
            env=subprocesses.environment(MPLCONFIGDIR=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stderr
        said = re.match(r"mean squared error on unseen rows: (\S+) after (\d+) steps", done.stdout)
        assert (float(said[1]) < 0.01) == (code == 0)
        assert int(said[2]) == 3 if more else 100 <= int(said[2]) <= 4000
        drawn = importlib.util.find_spec("matplotlib") is not None
        assert picture.exists() == drawn
