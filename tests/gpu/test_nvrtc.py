"""Every kernel and option set through NVRTC, as CuPy compiles them; needs no GPU and no driver.

The extra `test` brings pip's nvidia-cuda-nvrtc (CUDA 13); nvidia-cuda-nvrtc-cu12 serves as well.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np
import pytest
from exhaustive import EVERYTHING
from nvrtc import LIBRARY, Nvrtc
from random_problems import ELEMENTWISE

from fastgru import activations
from fastgru._cuda import source

NEWEST = "12.8"  # the first CUDA that knows sm_100
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
DTYPES = ["bfloat16", "float16", "float32", "float64"]


pytestmark = pytest.mark.skipif(not LIBRARY, reason="needs pip's nvidia-cuda-nvrtc")


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
    if (
        not EVERYTHING and program == "steps"
    ):  # the usual set, and of the others each on one of them
        sets = [sets[0], *sets[1 + ARCHITECTURES.index(arch) :: len(ARCHITECTURES)]]
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
