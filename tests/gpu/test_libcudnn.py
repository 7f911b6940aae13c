"""The binding of cuDNN: how it is found, what it says, and whether it agrees with the real one.

The real one needs no GPU for that: pip install nvidia-cudnn-cu12 (700 MB), or FASTGRU_CUDNN.
"""

import contextlib
import ctypes
import os
import re
import sys
from ctypes import POINTER, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from fake_cudnn import FakeCudnn
from random_problems import make_spec

from fastgru._cuda import libcudnn
from fastgru._cuda.libcudnn import Cudnn, CudnnError
from fastgru.backends import cudnn, cudnn_call
from fastgru.problem import BackendError, GRUProblem, GRUWeights

REAL = libcudnn.missing()
needs_real = pytest.mark.skipif(REAL is not None, reason=f"needs libcudnn: {REAL}")


@pytest.fixture(params=["fake", pytest.param("real", marks=needs_real)])
def library(request):
    return Cudnn(FakeCudnn()) if request.param == "fake" else libcudnn.load()


@pytest.fixture
def session(library):
    with contextlib.ExitStack() as opened:
        engine = SimpleNamespace(address=id)
        yield cudnn_call.Session(engine, library, 0, opened)


# -- what descriptors are taken: by the fake as by the real one ------------------------------------


def net(session, monkeypatch, dtype="float32", algorithm=cudnn.STANDARD, directions=1, units=7):
    # The size of the weights is asked of a device.
    monkeypatch.setattr(Cudnn, "getRNNWeightSpaceSize", lambda *_: 100)
    spec = make_spec(5, units)._replace(dtype=SimpleNamespace(name=dtype, itemsize=1))
    return cudnn_call.Net(session, spec, directions, algorithm)


@pytest.mark.parametrize("dtype", sorted(set(cudnn_call.TYPES) - {"bfloat16"}))
@pytest.mark.parametrize("directions", [1, 2])
def test_what_every_dtype_is_asked_for(session, monkeypatch, dtype, directions):
    made = net(session, monkeypatch, dtype, directions=directions)
    for steps_first in (True, False):
        assert all(made.descriptors(3, [3, 1], steps_first))
    for algorithm in (cudnn.STATIC, cudnn.SMALL):
        if dtype != "float64":
            net(session, monkeypatch, dtype, algorithm, directions)
            continue
        with pytest.raises(
            CudnnError, match=r"cudnnSetRNNDescriptor_v8: .*NOT_SUPPORTED"
        ) as refused:
            net(session, monkeypatch, dtype, algorithm, directions)
        assert refused.value.not_supported


@needs_real
def test_bfloat16_is_taken(monkeypatch):
    with contextlib.ExitStack() as opened:
        session = cudnn_call.Session(None, libcudnn.load(), 0, opened)
        for algorithm in (cudnn.STANDARD, cudnn.STATIC, cudnn.SMALL):
            assert net(session, monkeypatch, "bfloat16", algorithm).descriptors(3, [3, 1], True)


def test_limits_of_time(session, monkeypatch):
    made = net(session, monkeypatch)
    assert made.descriptors(65535, [65535, 2], True)
    assert cudnn_call.STEPS <= 65535
    with pytest.raises(CudnnError, match=r"cudnnSetRNNDataDescriptor: .*NOT_SUPPORTED") as refused:
        made.descriptors(65536, [3], True)
    assert refused.value.not_supported
    for steps, lengths in ((0, [0]), (3, [4]), (3, [-1])):
        with pytest.raises(CudnnError, match=r"cudnnSetRNNDataDescriptor: .*BAD_PARAM") as refused:
            made.descriptors(steps, lengths, True)
        assert not refused.value.not_supported


def test_the_condition_that_failed_is_named(session, monkeypatch):
    with pytest.raises(CudnnError, match=r"BAD_PARAM \(2000\): inputSize < 1 \|\| hiddenSize < 1"):
        net(session, monkeypatch, units=0)


def test_a_projection_is_not_supported(session):
    rnn = session.new("RNN")
    with pytest.raises(CudnnError) as refused:
        session.library.setRNNDescriptor_v8(rnn, 0, 3, 2, 0, 0, 0, 0, 3, 5, 7, 6, 1, 0, 1)
    assert refused.value.not_supported


@needs_real
def test_a_machine_without_a_gpu():
    """The call is named, and so are status and condition."""
    library = libcudnn.load()
    with contextlib.suppress(CudnnError):
        library.destroy(library.create())
        pytest.skip("needs a machine without a GPU")
    problem = GRUProblem(spec=make_spec(1, 1), x=np.ones((1, 1, 1), "f"))
    weights = GRUWeights(*np.ones((3, 1, 3)))
    with pytest.raises(
        BackendError, match=r"cudnnCreate: CUDNN_STATUS_NOT_INITIALIZED \(1001\): \w"
    ):
        cudnn.CudnnBackend(_Engine(), library).forward(problem, weights)


class _Engine:
    def stream(self):
        return 0


# -- against the header ----------------------------------------------------------------------------


def real_folder():
    libcudnn.load()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return next(Path(line.split()[-1]).parent for line in maps if "libcudnn.so" in line)


def header():
    folder = real_folder().parent / "include"
    texts = [path.read_text() for path in sorted(folder.glob("cudnn_*.h"))]
    if not texts:
        pytest.skip(f"needs cuDNN's headers in {folder}")
    return re.sub(r"/\*.*?\*/", "", "".join(texts), flags=re.DOTALL)


ENUMS = r"cudnn(DataType|RNN(Algo|Mode|BiasMode|InputMode|DataLayout)|DirectionMode|MathType"
ENUMS += r"|ForwardMode|WgradMode)_t"


def as_ctypes(parameter):
    """What a parameter of a C prototype is in SIGNATURES."""
    kind, name = re.fullmatch(r"(?:const )?(\w+ ?\**) ?(\w+(?:\[\])?)", parameter.strip()).groups()
    kind = kind.replace(" ", "")
    if name.endswith("[]"):
        return c_void_p if name.startswith("dev") else {"int": POINTER(c_int)}[kind]
    if kind in ("void*", "cudaStream_t") or re.fullmatch(r"cudnn\w*(Handle|Descriptor)_t", kind):
        return c_void_p
    if kind == "void**" or re.fullmatch(r"cudnn\w*(Handle|Descriptor)_t\*", kind):
        return POINTER(c_void_p)
    if re.fullmatch(ENUMS, kind):
        return c_int
    return {
        "size_t": c_size_t,
        "size_t*": POINTER(c_size_t),
        "int": c_int,
        "int32_t": c_int,
        "uint32_t": c_uint32,
    }[kind]


@needs_real
def test_signatures_are_the_headers():
    text = header()
    for name, arguments in libcudnn.SIGNATURES.items():
        found = re.search(rf"cudnnStatus_t CUDNNWINAPI\s+{name}\(([^)]*)\);", text)
        assert found, name
        parameters = re.sub(r"\s+", " ", found[1]).split(",")
        assert tuple(map(as_ctypes, parameters)) == arguments, name


@needs_real
def test_constants_are_the_headers():
    text = header()
    ours = {name: value for name, value in vars(libcudnn).items() if type(value) is int}
    del ours["OLDEST"]
    assert ours.pop("RNN_PADDED_IO_ENABLED") == 1
    assert re.search(r"CUDNN_RNN_PADDED_IO_ENABLED \(1U << 0\)", text)
    theirs = {name: re.search(rf"\bCUDNN_{name}\s*=\s*(\d+)", text) for name in ours}
    assert ours == {name: found and int(found[1]) for name, found in theirs.items()}


# -- finding it ------------------------------------------------------------------------------------


@pytest.fixture
def loader(monkeypatch):
    """A dynamic loader that has `there`; `asked` is what it was asked for."""
    loader = SimpleNamespace(asked=[], there={})

    def load(name, mode=ctypes.DEFAULT_MODE):
        loader.asked.append((name, bool(mode & os.RTLD_NOLOAD)))
        if loader.asked[-1] in loader.there:
            return loader.there[loader.asked[-1]]
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(libcudnn.ctypes, "CDLL", load)
    monkeypatch.delenv("FASTGRU_CUDNN", raising=False)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(libcudnn.importlib.util, "find_spec", lambda name: None)
    libcudnn._found.cache_clear()
    yield loader
    libcudnn._found.cache_clear()


def pathfinder(monkeypatch, answer):
    module = ModuleType("cuda.pathfinder")
    module.DynamicLibNotFoundError = type("DynamicLibNotFoundError", (RuntimeError,), {})

    def load_nvidia_dynamic_lib(name):
        assert name == "cudnn"
        if answer is None:
            raise module.DynamicLibNotFoundError("nowhere")
        return SimpleNamespace(abs_path=answer)

    module.load_nvidia_dynamic_lib = load_nvidia_dynamic_lib
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", module)


def test_where_it_is_looked_for(loader, monkeypatch):
    nvidia = SimpleNamespace(submodule_search_locations=["/site/nvidia"])
    monkeypatch.setattr(libcudnn.importlib.util, "find_spec", lambda name: nvidia)
    pathfinder(monkeypatch, "/pathfinder/libcudnn.so.9")
    assert re.match(r"cuDNN was not found; install .* FASTGRU_CUDNN", libcudnn.missing())
    folder = "/site/nvidia/cudnn/lib"
    assert loader.asked == [
        ("libcudnn.so.9", True),
        ("libcudnn.so.8", True),
        ("/pathfinder/libcudnn.so.9", False),
        (f"{folder}/libcudnn.so.9", False),
        (f"{folder}/libcudnn.so.8", False),
        ("libcudnn.so.9", False),
        ("libcudnn.so.8", False),
    ]
    with pytest.raises(CudnnError, match="cuDNN was not found"):
        libcudnn.load()
    assert len(loader.asked) == 7, "it is looked for once"


@pytest.mark.parametrize("answer", [None, "absent"])
def test_a_pathfinder_without_an_answer(loader, monkeypatch, answer):
    if answer is None:
        pathfinder(monkeypatch, None)
    assert "was not found" in libcudnn.missing()
    assert [loaded for _, loaded in loader.asked] == [True, True, False, False]


def test_the_copy_that_is_loaded_already_comes_first(loader):
    loader.there = {("libcudnn.so.8", True): FakeCudnn(8907), ("libcudnn.so.9", False): FakeCudnn()}
    assert libcudnn.missing() is None
    assert libcudnn.load().getVersion() == 8907
    assert libcudnn.load() is libcudnn.load()


def test_the_environment_decides(loader, monkeypatch):
    monkeypatch.setenv("FASTGRU_CUDNN", "/mine/libcudnn.so.9")
    loader.there = {("libcudnn.so.9", True): FakeCudnn()}
    assert re.match(r"FASTGRU_CUDNN=/mine/libcudnn.so.9 cannot be loaded: .*", libcudnn.missing())
    libcudnn._found.cache_clear()
    loader.there[("/mine/libcudnn.so.9", False)] = FakeCudnn(90102)
    assert libcudnn.load().getVersion() == 90102


def test_an_old_library_is_told(loader):
    loader.there = {("libcudnn.so.8", True): FakeCudnn(8900), ("libcudnn.so.9", False): FakeCudnn()}
    assert re.search(r"so.8: expected cuDNN 8.9.1 or later, got version 8900", libcudnn.missing())


def test_cudnn_8():
    """It has no last error, and other numbers for statuses."""
    fake = FakeCudnn(8907)
    del fake.cudnnGetLastErrorString
    library = Cudnn(fake)
    with pytest.raises(CudnnError, match=r"^cudnnDestroy: CUDNN_STATUS_BAD_PARAM \(2000\)$"):
        library.destroy(5)
    assert CudnnError("", 9).not_supported
    assert not CudnnError("", 8).not_supported
