"""The pages about files, as a newcomer pastes them: every block, in order, in a clone."""

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("io_*.md")), DOCS / "cli.md", DOCS / "whole_model.md"]
NEEDS = {  # what the page itself tells to install
    "io_safetensors": "safetensors",
    "io_onnx": "onnx",
    "whole_model": "onnx",
    "cli": "safetensors",
}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def shell(lines):
    """Run commands that begin with python or fastgru, by this Python; other commands fail."""
    for line in lines:
        program, *arguments = shlex.split(line)
        module = {"python": [], "fastgru": ["-m", "fastgru"]}[program]
        command = [sys.executable, *module, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.mark.filterwarnings("ignore::UserWarning")  # that a layer needs the model's mask
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_in_a_clone(page, tmp_path, monkeypatch):
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem], reason="the page says what to install")
    shutil.copytree(ROOT / "tests" / "data", tmp_path / "tests" / "data")
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```(python|sh|console)\n(.*?)^```$", text)
    assert len(blocks) == len(re.findall(r"(?m)^```(?:python|sh|console)", text)) > 0
    names, said = {}, []
    for kind, block in blocks:
        if kind == "sh":
            shell(block.splitlines())
        elif kind == "console":
            shell(line[2:] for line in block.splitlines() if line.startswith("$ "))
        elif ">>>" not in block:
            exec(compile(block, page.name, "exec"), names)
        else:
            examples = doctest.DocTestParser().get_doctest(block, {}, page.name, str(page), 0)
            examples.globs = names
            runner = doctest.DocTestRunner(optionflags=OPTIONS)
            runner.run(examples, out=said.append, clear_globs=False)
    assert not said, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_where_its_files_lie(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"(?ms)^```.*?^```$", "", text)
    code = "\n".join(re.findall(r"(?ms)^```\w*\n(.*?)^```$", text))
    if page.stem == "io_safetensors":  # it makes its file itself
        assert "no other file" in prose
        return
    folders = set(re.findall(r"tests/data/(\w+)", code))
    assert folders
    assert folders <= set(re.findall(r"`tests/data/(\w+)/?`", prose))
    assert "pip install -e" in prose
    for folder in folders:
        assert (ROOT / "tests" / "data" / folder).is_dir()
