"""The examples of one section of a page of the documentation, run as a doctest."""

import doctest
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def run(page, heading, folder):
    """Run the Python blocks below a heading; files that they name are in `folder`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = re.search(rf"(?ms)^## {heading}\n(.*?)(?=^## |\Z)", text)[1]
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", section)
    code = re.sub(r'"(\w+\.safetensors)"', rf'r"{folder}/\1"', "\n".join(blocks))
    examples = doctest.DocTestParser().get_doctest(code, {}, page, page, 0)
    assert examples.examples
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=said.append)
    assert not said, "".join(said)
