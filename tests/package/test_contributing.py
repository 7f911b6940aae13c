"""CONTRIBUTING.md has a line for each test module and each helper, in the table of its folder."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_name_every_module():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {}
    for part in re.split(r"(?m)^##+ ", page):
        folder = re.match(r"`tests/(\w+)`: \S", part)
        if folder:
            lines = re.findall(r"(?m)^\| `(\w+\.py)` \| \S.* \|$", part)
            assert lines == sorted(set(lines))
            named[folder[1]] = lines
    there = {}
    for path in sorted((ROOT / "tests").glob("*/*.py")):
        there.setdefault(path.parent.name, []).append(path.name)
    del there["typing"]
    assert named == there
