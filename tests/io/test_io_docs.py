"""The examples in docs/io_*.md, run in a folder with the files of tests/data/<page>."""

import doctest
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The others are run where their files are made.
PAGES = [
    page for page in sorted((ROOT / "docs").glob("io_*.md")) if ">>>" in page.read_text("utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page, tmp_path, monkeypatch):
    if page.stem == "io_safetensors":
        pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    folder = f"tests/data/{page.stem.removeprefix('io_')}/"
    if (ROOT / folder).exists():
        shutil.copytree(ROOT / folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", page.read_text(encoding="utf-8"))
    text = "\n".join(blocks).replace(folder, "")
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert examples.examples
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
        examples, out=said.append
    )
    assert not said, "".join(said)
