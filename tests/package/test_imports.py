"""Imports run one way, and `import fastgru` brings nothing along beyond NumPy."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import subprocesses

import fastgru

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


# The files of layers/, each of which imports only from those before it.
LAYERS = [
    *(
        "nested",
        "tape",
        "config",
        "options",
        "base",
        "dropout_masks",
        "cell",
        "stacked",
        "stream",
        "call",
        "step_loop",
    ),
    *(
        "direction_pair",
        "sequence",
        "differentiable",
        "states",
        "rnn",
        "gru",
        "composed",
        "merging",
        "bidirectional",
        "sequential",
    ),
]


def modules():
    """Name and source files of every module of the package; of compiled ones .pyx, .pxd, .pyi."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py*")):
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi"):
            parts = path.relative_to(SOURCE.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.setdefault(name, []).append(path)
    return found


MODULES = modules()


def target(name, imported=None):
    """Name the module of fastgru that `from name import imported` reaches, if it is one."""
    full = f"{name}.{imported}"
    found = full if full in MODULES else name
    return found if found.partition(".")[0] == "fastgru" else None


def imports(path):
    """Modules of fastgru that a file imports: in functions and for type checkers too."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".pyx", ".pxd"):
        yield from compiled_imports(text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (target(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written out in full"
            yield from (target(node.module, alias.name) for alias in node.names)


def compiled_imports(text):
    """Find the same in Cython, which `ast` cannot read."""
    text = re.sub(r"#.*", "", text)
    pattern = r"^[ \t]*from[ \t]+(fastgru[\w.]*)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n]*)"
    for match in re.finditer(pattern, text, re.MULTILINE):
        for name in re.findall(r"(\w+)(?:\s+as\s+\w+)?", match[2]):
            yield target(match[1], name)
    for match in re.finditer(r"^[ \t]*c?import[ \t]+(fastgru[\w.]*)", text, re.MULTILINE):
        yield target(match[1])


def graph():
    """What each module imports, by any import."""
    return {
        module: {name for path in paths for name in imports(path) if name and name != module}
        for module, paths in MODULES.items()
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    # A stub names the types of what is handed in; the extension itself imports nothing for them.
    sources = [path for path in MODULES[module] if path.suffix != ".pyi"]
    found = {name for path in sources for name in imports(path) if name}
    upward = {name for name in found if storey(name) > storey(module)}
    assert not upward, f"{module} stands below what it imports"


def test_there_are_no_circles():
    """By any import: in functions, for type checkers and cimports too."""
    found = graph()
    assert "fastgru.problem" in found["fastgru.dispatch"], "the imports were not read"
    native = set().union(*(found[name] for name in found if "._native." in name))
    assert "fastgru._native._threads" in native, "nor Cython's"
    order = [*TopologicalSorter(found).static_order()]  # raises CycleError, naming the cycle
    assert order.index("fastgru.problem") < order.index("fastgru.dispatch") < order.index("fastgru")


def test_layers_stand_in_their_order():
    found = graph()
    names = {name.rpartition(".")[2] for name in MODULES if name.startswith("fastgru.layers.")}
    assert names == set(LAYERS), "LAYERS in this file lists them"
    for place, name in enumerate(LAYERS):
        later = {f"fastgru.layers.{other}" for other in LAYERS[place:]}
        assert not found[f"fastgru.layers.{name}"] & later, f"layers/{name}.py"


FIRST_CALL = "fastgru.GRU(2)([[[0.5], [1.0]]])"


def loaded_by(*statements, kernel=""):
    """Names in sys.modules after the statements, in a process of its own."""
    code = "; ".join(["import sys", *statements, "print(*sys.modules)"])
    return set(subprocesses.run_python(code, FASTGRU_KERNEL=kernel).split())


@pytest.mark.parametrize("first_call", [(), (FIRST_CALL,)], ids=["import", "first call"])
def test_nothing_is_brought_along(first_call):
    """Nothing but NumPy and what is named here of Python's own: no SciPy, no optional package."""
    below = loaded_by(
        "import numpy.ma, numpy.random",
        "import __future__, copy, importlib.util, pathlib, threading",
    )
    assert "scipy" not in below
    ours = loaded_by("import fastgru", *first_call)
    if first_call and "fastgru._native._blas" in ours:
        pytest.skip("this compiler made no kernels but the one over SciPy's BLAS")
    roots = {name.partition(".")[0] for name in ours}
    assert "fastgru" in roots
    assert not roots & OPTIONAL
    cythons_own = re.compile(r"_cython_\w+|cython_runtime|Cython|cython|_cyutility")
    added = {name for name in ours - below if not cythons_own.fullmatch(name)}
    assert {name for name in added if name.partition(".")[0] != "fastgru"} == set()


def test_the_blas_kernel_comes_where_it_is_chosen():
    pytest.importorskip("fastgru._native._blas", reason="the extension is not built")
    ours = loaded_by("import fastgru", FIRST_CALL, kernel="blas")
    assert {"fastgru._native._blas", "scipy.linalg.cython_blas"} <= ours


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
    config = said[said.index("NOT COMPILED") :]
    assert config.splitlines()[0].startswith("NOT COMPILED  NumPy computes, 4 to 50 times slower")


def test_a_clone_on_the_path_is_told_of(tmp_path):
    """Sources without extensions warn when they are imported, once, with what to do."""
    package = Path(fastgru.__file__).parent
    for source in package.rglob("*.py"):
        target = tmp_path / "fastgru" / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    code = """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import fastgru
            fastgru.GRU(3)([[[1.0]]])
        for warning in caught:
            print(warning.category.__name__, warning.message)
    """
    env = {**subprocesses.environment(), "PYTHONPATH": str(tmp_path)}
    (line,) = subprocesses.run_python(code, env).splitlines()
    assert line.startswith(
        "RuntimeWarning fastgru runs in NumPy, 4 to 50 times slower than it would"
    )
    assert f"{tmp_path / 'fastgru'} has the sources only" in line
    assert "run Python outside of this folder's parent; else build it there: pip install ." in line
    assert subprocesses.run_python(code, env, FASTGRU_BACKEND="reference") == ""


def test_dir_shows_what_is_public():
    names = [name for name in dir(fastgru) if not name.startswith("__")]
    assert sorted([*names, "__version__"]) == sorted(fastgru.__all__)
    for name in names:
        assert getattr(fastgru, name) is not None


def test_an_engine_comes_when_it_is_used():
    ours = loaded_by("import fastgru", "fastgru.distributed.ray.Predictor")
    assert {f"fastgru.distributed.{name}" for name in ("dask", "ray", "spark")} < ours
    assert not {name.partition(".")[0] for name in ours} & OPTIONAL
    assert "fastgru.distributed" not in loaded_by("import fastgru")
