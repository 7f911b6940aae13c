"""SECURITY.md: each of its promises names tests, and these exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "SECURITY.md"
if not PAGE.exists():
    pytest.skip("reads SECURITY.md, which is not beside these tests", allow_module_level=True)
_, PROMISED, REST = re.split(r"^## What .*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
TEST = re.compile(r"`(?:pytest )?(tests/\w+/test_\w+\.py)::(test_\w+)`")


def functions(file):
    """Names of the tests of a module."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists():
    named = set(TEST.findall(PROMISED))
    assert len(named) > 50
    modules = {file: functions(file) for file, _ in named}
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in modules[file]] == []


def test_every_promise_names_its_tests():
    """A promise is an item of a list; below it stand its tests, one in a line, and no patterns."""
    promises = re.split(r"^- ", PROMISED, flags=re.MULTILINE)[1:]
    assert len(promises) > 10
    for promise in promises:
        tests = re.findall(r"^  - (.*)$", promise, flags=re.MULTILINE)
        assert tests, promise
        assert all(TEST.match(line) for line in tests), promise
    outside = TEST.sub("", PROMISED + REST)
    assert re.findall(r"`[^`]*\btest_[^`]*`", outside) == ["`tests/hostile/test_promises.py`"]
