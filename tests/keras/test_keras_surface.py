"""docs/keras_surface.md: what Keras documents has a row, and each row names a test that exists."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import fastgru

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "keras_surface.md"
if not PAGE.exists():
    pytest.skip("tests of an installed package: no docs", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"(?m)^\| (.*) \| (.*) \|$", TEXT.partition("|---|---|\n")[2])
# Of a layer of Keras, beside those that the page says are not here.
FRAMEWORK = {"quantization_mode", "quantize", "input_dtype", "single_state"}
FRAMEWORK |= {"supports_jit", "call_signature_parameters"}


def test_each_row_names_a_test():
    rows = [(item, tests) for item, tests in ROWS if not item.startswith("**")]
    assert len(rows) > 50
    for item, tests in rows:
        named = re.findall(r"`(tests/\w+/\w+\.py)::(test_\w+)`", tests)
        assert named, item
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, item


def test_what_keras_documents_has_a_row():
    keras = pytest.importorskip("keras", reason="it says what its layers have")
    listed = set(re.findall(r"`(\w+)=?`", TEXT)) | FRAMEWORK
    for theirs in (keras.layers.GRU, keras.layers.GRUCell):
        arguments = set(inspect.signature(theirs.__init__).parameters) - {"self", "kwargs"}
        assert arguments <= listed
        layer = theirs(3)
        members = {name for name in dir(layer) if not name.startswith("_")}
        assert members - listed == set()


def test_what_has_a_row_is_here():
    """All but the names of the last paragraph, and of Keras' functions."""
    layer = fastgru.GRU(3, input_dim=2)
    cell, gone = layer.cell, {"input", "output", "weights="}
    for item, _ in ROWS:
        if item.startswith("**"):
            continue
        for name in re.findall(r"`([a-z_]+)`", item):
            here = [thing for thing in (layer, cell) if hasattr(thing, name)]
            keywords = inspect.signature(fastgru.GRU.__call__).parameters
            known = name in keywords or name in fastgru.layers.options.KEYWORDS
            cells = name in ("inputs", "states", "repr", *dir(fastgru.Variable))
            assert here or known or cells or name in gone, name
