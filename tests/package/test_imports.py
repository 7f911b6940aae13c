"""Imports run one way, and `import fastgru` brings nothing along beyond NumPy."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import subprocesses

SOURCE = Path(__file__).parents[2] / "fastgru"
if not SOURCE.is_dir():
    pytest.skip("reads the sources, which are not beside these tests", allow_module_level=True)

# What stands on what; a module may import from its own storey and from those below. A module not
# named here stands on the ground floor: anybody may import it, and it imports only its like.
STOREYS = [
    {"_native", "_cuda"},
    {"problem", "threads", "variables"},
    {"backends"},
    {"dispatch"},
    {"layers", "functional", "stream"},
    {"io", "distributed"},
    {"", "__main__", "cli", "config"},  # "" is fastgru/__init__.py
]
OPTIONAL = {
    *("cupy", "cuda", "keras", "tensorflow", "torch", "jax", "onnx", "onnxruntime", "openvino"),
    *("h5py", "safetensors", "dask", "distributed", "ray", "pyspark", "joblib", "pandas"),
    *("matplotlib", "tqdm"),
}


def storey(module):
    room = module.removeprefix("fastgru").lstrip(".").partition(".")[0]
    return next((i for i, rooms in enumerate(STOREYS) if room in rooms), 0)


def modules():
    """Name and source file of every module of the package, compiled ones included."""
    for path in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyx")]):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def target(name, imported=None):
    """Name the module of fastgru that `from name import imported` reaches, if it is one."""
    full = f"{name}.{imported}"
    found = full if full in MODULES else name
    return found if found.partition(".")[0] == "fastgru" else None


def imports(path, everywhere):
    """Modules of fastgru that a Python file imports: at import time, or everywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else import_time(tree.body):
        if isinstance(node, ast.Import):
            yield from (target(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written out in full"
            yield from (target(node.module, alias.name) for alias in node.names)


def import_time(body):
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            if "TYPE_CHECKING" not in ast.unparse(getattr(node, "test", ast.Constant(0))):
                yield from import_time(node.body)
            yield from import_time(node.orelse)
        else:
            yield node


def compiled_imports(path):
    """Find the same in Cython, which `ast` cannot read; a leading dot is the folder itself."""
    pattern = r"^\s*(?:from|c?import)\s+(fastgru[\w.]*)(?:\s+c?import\s+(\w+))?"
    for match in re.finditer(pattern, path.read_text(encoding="utf-8"), re.MULTILINE):
        yield target(match[1], match[2])


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    path = MODULES[module]
    found = compiled_imports(path) if path.suffix == ".pyx" else imports(path, everywhere=True)
    upward = {name for name in found if name and storey(name) > storey(module)}
    assert not upward, f"{module} stands below what it imports"


def test_no_module_needs_itself_to_be_imported():
    graph = {
        module: {name for name in imports(path, everywhere=False) if name and name != module}
        for module, path in MODULES.items()
        if path.suffix == ".py"
    }
    assert "fastgru.problem" in graph["fastgru.dispatch"], "the imports were not read"
    order = [*TopologicalSorter(graph).static_order()]  # raises CycleError, naming the cycle
    assert order.index("fastgru.problem") < order.index("fastgru.dispatch") < order.index("fastgru")


def loaded_by(*statements):
    """Names in sys.modules after the statements, in a process of its own."""
    code = "; ".join(["import sys", *statements, "print(*sys.modules)"])
    return set(subprocesses.run_python(code).split())


@pytest.mark.parametrize(
    "first_call", [(), ("fastgru.GRU(2)([[[0.5], [1.0]]])",)], ids=["import", "first call"]
)
def test_nothing_is_brought_along(first_call):
    """Nothing but NumPy and what is named here of Python's own: no SciPy, no optional package."""
    below = loaded_by(
        "import numpy.ma, numpy.random",
        "import __future__, copy, importlib.util, pathlib, threading",
    )
    assert not {name for name in below if name.startswith("scipy")}, "then the test shows nothing"
    ours = loaded_by("import fastgru", *first_call)
    roots = {name.partition(".")[0] for name in ours}
    assert "fastgru" in roots
    assert not roots & OPTIONAL
    cythons_own = re.compile(r"_cython_\w+|cython_runtime|Cython|cython|_cyutility")
    added = {name for name in ours - below if not cythons_own.fullmatch(name)}
    assert {name for name in added if name.partition(".")[0] != "fastgru"} == set()


def test_without_the_extensions():
    """NumPy alone computes, and what is missing is said."""
    said = subprocesses.run_python("""
        import sys

        class NotBuilt:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("fastgru._native."):
                    raise ImportError(f"{name} is not built")

        sys.meta_path.insert(0, NotBuilt())
        import fastgru, numpy

        layer = fastgru.GRU(3)
        print(layer(numpy.ones((2, 3, 4), "float32")).shape)
        print(layer.explain(numpy.ones((2, 3, 4), "float32")))
        fastgru.show_config()
    """)
    assert said.startswith("(2, 3)")
    assert "served by: reference" in said
    assert "is not built" in said


def test_an_engine_comes_when_it_is_used():
    ours = loaded_by("import fastgru", "fastgru.distributed.ray.Predictor")
    assert {f"fastgru.distributed.{name}" for name in ("dask", "ray", "spark")} < ours
    assert not {name.partition(".")[0] for name in ours} & OPTIONAL
    assert "fastgru.distributed" not in loaded_by("import fastgru")
