"""Every kernel and option set through NVRTC, as CuPy compiles them; needs no GPU and no driver.

The extra `test` brings pip's nvidia-cuda-nvrtc (CUDA 13); nvidia-cuda-nvrtc-cu12 serves as well.
"""

import ctypes
import importlib.util
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np
import pytest
from test_native import ELEMENTWISE

from fastgru import activations
from fastgru._cuda import source

NEWEST = "12.8"  # the first CUDA that knows sm_100
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
DTYPES = ["bfloat16", "float16", "float32", "float64"]


def _find():
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else ())]
    return next((str(lib) for f in folders for lib in sorted(f.glob("*/lib/libnvrtc.so.*"))), None)


LIBRARY = _find()
pytestmark = pytest.mark.skipif(not LIBRARY, reason="needs pip's nvidia-cuda-nvrtc")


class Nvrtc:
    """The few calls of libnvrtc that a compilation takes; every status is checked."""

    def __init__(self):
        self._library = ctypes.CDLL(LIBRARY)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _call(self, name, *arguments):
        status = getattr(self._library, name)(*arguments)
        return self._library.nvrtcGetErrorString(status).decode() if status else None

    def _text(self, kind, program):
        size = ctypes.c_size_t()
        assert self._call(f"nvrtcGet{kind}Size", program, ctypes.byref(size)) is None
        text = ctypes.create_string_buffer(size.value)
        assert self._call(f"nvrtcGet{kind}", program, text) is None
        return text.raw

    def architectures(self):
        count = ctypes.c_int()
        assert self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count)) is None
        numbers = (ctypes.c_int * count.value)()
        assert self._call("nvrtcGetSupportedArchs", numbers) is None
        return [f"sm_{number}" for number in numbers]

    def compile(self, text, *options):
        """Return the cubin and the log."""
        program = ctypes.c_void_p()
        created = self._call(
            "nvrtcCreateProgram",
            *(ctypes.byref(program), text.encode(), b"gru_kernels.cu", 0, None, None),
        )
        assert created is None
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        error = self._call("nvrtcCompileProgram", program, len(options), given)
        log = self._text("ProgramLog", program).rstrip(b"\0").decode()
        assert error is None, f"{error} with {options}:\n{log}"
        cubin = self._text("CUBIN", program)
        assert self._call("nvrtcDestroyProgram", ctypes.byref(program)) is None
        return cubin, log


@pytest.fixture(scope="module")
def nvrtc():
    return Nvrtc()


@pytest.fixture(params=ARCHITECTURES)
def arch(nvrtc, request):
    if request.param not in nvrtc.architectures():
        pytest.skip(f"this NVRTC does not know {request.param}; take one of CUDA {NEWEST} or later")
    return request.param


def option_sets(dtype):
    yield source.options(np.dtype(dtype), activations.tanh, activations.sigmoid)
    # Both roles use value and slope: each activation once.
    next_one = ELEMENTWISE[1:] + ELEMENTWISE[:1]
    for pair in zip(ELEMENTWISE[::2], next_one[::2], strict=True):
        yield source.options(np.dtype(dtype), *pair)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("program", source.PROGRAMS)
def test_every_option_set_compiles(nvrtc, arch, program, dtype):
    """All kernels, without a warning, and no register is spilled to memory."""
    text = source.text(program)
    names = set(re.findall(r"^KERNEL (\w+)\(", text, re.MULTILINE))
    assert names >= {name for name, its in source.RESIDENT.items() if its == program}
    assert (program == "steps") == ("step_after" in names)
    fixed = ("-std=c++17", f"-arch={arch}", "-ftz=true", "--ptxas-options=-v")
    # What activations are is the same text in all programs.
    sets = list(option_sets(dtype))[: None if program == "steps" else 2]
    # NVRTC may be called from many threads at a time, and ctypes lets go of the GIL.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(lambda options: nvrtc.compile(text, *fixed, *options), sets))
    for cubin, log in results:
        assert cubin.startswith(b"\x7fELF")
        assert set(re.findall(r"Compiling entry function '(\w+)'", log)) == names
        spills = re.findall(r"(\d+) bytes spill", log)
        assert len(spills) == 2 * len(names)
        assert set(spills) == {"0"}, log
        assert "warning" not in log, log


def test_a_mistake_is_told(nvrtc):
    with pytest.raises(AssertionError, match="identifier"):
        nvrtc.compile("__global__ void f() { nowhere = 1; }")
