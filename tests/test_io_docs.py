"""The examples in docs/io_*.md, run in a folder with the files of tests/data/<page>."""

import doctest
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("io_*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page, tmp_path, monkeypatch):
    if page.stem == "io_safetensors":
        pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    for file in (ROOT / "tests" / "data" / page.stem.removeprefix("io_")).glob("*.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"(?m)^```.*$", "", page.read_text(encoding="utf-8"))
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert examples.examples
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=said.append)
    assert not said, "".join(said)
