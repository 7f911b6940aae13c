"""docs/whole_model.md, pasted in a clone: models whose outputs their frameworks computed."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "whole_model.md"


@pytest.mark.filterwarnings("ignore::UserWarning")  # that a layer needs the model's mask
def test_the_page_runs_in_a_clone(monkeypatch):
    pytest.importorskip("onnx", reason="pip install 'fastgru[onnx]'")
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"))
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    assert sum("< 1e-5" in example.source for example in examples.examples) == 3
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
        examples, out=said.append
    )
    assert not said, "".join(said)
