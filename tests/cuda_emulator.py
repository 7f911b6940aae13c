"""The CUDA backend's engine on the host: kernels compiled as C++ by cuda_shim, NumPy's products.

New arrays are full of NaN, so that what a kernel fails to write is seen.
"""

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from fake_cudnn import STREAM

from fastgru._cuda import source
from fastgru._cuda.engine import CupyEngine

COMPILER = shutil.which("g++")
FOLDER = Path(__file__).parent / "cuda_shim"
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}

_built = tempfile.TemporaryDirectory(prefix="cuda_shim")


def _compile(source_file, library, *options):
    command = [COMPILER, "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", f"-I{FOLDER}"]
    warnings = ["-Wall", "-Werror", "-Wno-unused-function"]
    subprocess.run(
        [*command, *warnings, str(source_file), *options, "-o", str(library)], check=True
    )
    return str(library)


@functools.cache
def _scheduler():
    return _compile(FOLDER / "scheduler.cpp", Path(_built.name) / "scheduler.so", "-O1")


@functools.cache
def compiled(text, options):
    """Compile CUDA text as C++ and load it."""
    scheduler = _scheduler()
    path = Path(_built.name) / f"kernels{len(os.listdir(_built.name))}.cpp"
    names = re.findall(r"^(?:KERNEL|extern \"C\" __global__ void) (\w+)\(", text, re.MULTILINE)
    exports = "".join(f"EXPORT({name})\n" for name in names)
    path.write_text(f'#include "cuda_shim.h"\n{text}\n{exports}')
    # -O0: compiling takes longer than running
    return ctypes.CDLL(_compile(path, path.with_suffix(".so"), "-O0", scheduler, *options))


def launch(library, name, blocks, threads, arguments, shared_bytes=0, schedule="forward", seed=0):
    """Run a kernel; RuntimeError with what the shim says when it cannot come to an end."""
    held = [_by_value(argument) for argument in arguments]
    assert len(held) == getattr(library, f"{name}_arguments")(), name
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
    run = getattr(library, f"{name}_run")
    run.restype = ctypes.c_char_p
    run.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t]
    run.argtypes += [ctypes.c_int, ctypes.c_uint]
    error = run(pointers, blocks, threads, shared_bytes, SCHEDULES[schedule], seed)
    if error:
        raise RuntimeError(f"{name}: {error.decode()}")


def _by_value(argument):
    """What the kernel's parameter is: a pointer, a number, or a struct."""
    if argument is None:
        return ctypes.c_void_p()
    if type(argument) is int:  # of a bool, CuPy makes one byte
        return ctypes.c_longlong(argument)
    if argument.dtype.names:
        return ctypes.create_string_buffer(argument.tobytes(), argument.nbytes)
    assert argument.flags.c_contiguous
    return ctypes.c_void_p(argument.ctypes.data)


class Cublas:
    """gemmEx as cuBLAS documents it: columns first, C = alpha op(A) op(B) + beta C."""

    @staticmethod
    def gemmEx(
        _, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, *how
    ):
        assert min(m, n, k) > 0
        sums = np.dtype({68: "float32", 70: "float64"}[how[0]])
        one, zero = (_memory(address, sums, 1)[0] for address in (alpha, beta))
        assert (one, zero) == (1, 0)
        a = _matrix(a, a_type, *((k, m) if op_a else (m, k)), lda)
        b = _matrix(b, b_type, *((n, k) if op_b else (k, n)), ldb)
        c = _matrix(c, c_type, m, n, ldc)
        assert c.dtype == sums
        c[...] = (a.T if op_a else a).astype(sums) @ (b.T if op_b else b).astype(sums)


def _memory(address, dtype, count):
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype)


def _matrix(address, kind, rows, columns, ld):
    dtype = np.dtype({0: "float32", 1: "float64", 2: "float16"}[kind])
    assert ld >= rows
    memory = _memory(address, dtype, ld * (columns - 1) + rows)
    strides = (dtype.itemsize, ld * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(memory, (rows, columns), strides)


class Emulator(CupyEngine):
    """The engine with NumPy for CuPy, kernels of cuda_shim and a cuBLAS in Python."""

    _cublas = Cublas

    def __init__(self, schedule="forward", blocks=0, shared_bytes=0, edit=str):
        self.schedule, self.blocks, self.shared_bytes = schedule, blocks, shared_bytes
        self.edit = edit  # what to do to the kernels' text first
        self.launched = []

    array = staticmethod(np.ascontiguousarray)
    zeros = staticmethod(np.zeros)
    _handle = staticmethod(int)

    def empty(self, shape, dtype):
        return np.full(shape, np.nan, dtype)

    def synchronize(self):
        self.launched.append("synchronize")

    def stream(self):
        return STREAM

    def seconds(self, work):
        self.launched.append("seconds")
        return self.times(work)

    @staticmethod
    def times(work):
        """What `seconds` gives; tests replace it."""
        work()
        return 1.0

    def address(self, array):
        return 0 if array is None else array.ctypes.data

    def launch(self, name, options, size, arguments):
        if size:
            self._launch(name, (source.text(), options), -(-size // 32), 32, 0, arguments)

    def residency(self):
        return self.blocks, self.shared_bytes

    def resident_blocks(self, name, options, threads, shared_bytes):
        return self.blocks

    def launch_resident(self, name, options, blocks, threads, shared_bytes, arguments):
        assert blocks <= self.blocks
        assert shared_bytes <= self.shared_bytes
        text = source.text(resident=True)
        self._launch(name, (text, options), blocks, 64, shared_bytes, arguments)  # two warps

    def _launch(self, name, program, blocks, threads, shared_bytes, arguments):
        self.launched.append(name)
        text, options = program
        library, seed = compiled(self.edit(text), options), len(self.launched)
        launch(library, name, blocks, threads, arguments, shared_bytes, self.schedule, seed)
