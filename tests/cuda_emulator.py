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

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np

from fastgru._cuda import source
from fastgru._cuda.engine import CupyEngine

COMPILER = shutil.which("g++")
FOLDER = Path(__file__).parent / "cuda_shim"
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}

_built = tempfile.TemporaryDirectory(prefix="cuda_shim")


def _compile(source_file, library, *options):
    command = [COMPILER, "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", f"-I{FOLDER}"]
    # a count of rounds is unused in a kernel whose only barrier a test has taken out
    warnings = ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable"]
    subprocess.run(
        [*command, *warnings, str(source_file), *options, "-o", str(library)], check=True
    )
    return str(library)


@functools.cache
def _scheduler():
    return _compile(FOLDER / "scheduler.cpp", Path(_built.name) / "scheduler.so", "-O2")


@functools.cache
def compiled(text, options):
    """Compile CUDA text as C++ and load it."""
    scheduler = _scheduler()
    path = Path(_built.name) / f"kernels{len(os.listdir(_built.name))}.cpp"
    names = re.findall(r"^(?:KERNEL|extern \"C\" __global__ void) (\w+)\(", text, re.MULTILINE)
    exports = "".join(f"EXPORT({name})\n" for name in names)
    path.write_text(f'#include "cuda_shim.h"\n{text}\n{exports}')
    # -O1 takes longer to compile, and the fibers' switches take as long
    return ctypes.CDLL(_compile(path, path.with_suffix(".so"), "-O0", scheduler, *options))


class _Region(ctypes.Structure):
    _fields_ = (("memory", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _Launch(ctypes.Structure):
    _fields_ = (
        *(("arguments", ctypes.c_void_p), ("regions", ctypes.POINTER(_Region))),
        *((name, ctypes.c_uint) for name in ("regions_count", "blocks", "threads")),
        *(("shared_bytes", ctypes.c_size_t), ("schedule", ctypes.c_int), ("seed", ctypes.c_uint)),
    )


def launch(
    library,
    name,
    blocks,
    threads,
    arguments,
    shared_bytes=0,
    schedule="forward",
    seed=0,
    exchange=False,
):
    """Run a kernel; RuntimeError with what the shim says when it cannot come to an end.

    Blocks that exchange numbers see those of others only after fences.
    """
    held = [_by_value(argument) for argument in arguments]
    assert len(held) == getattr(library, f"{name}_arguments")(), name
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
    arrays = [a for a in arguments if exchange and isinstance(a, np.ndarray) and not a.dtype.names]
    regions = (_Region * len(arrays))(*((a.ctypes.data, a.nbytes) for a in arrays))
    run = getattr(library, f"{name}_run")
    run.restype = ctypes.c_char_p
    sizes = (len(regions), blocks, threads, shared_bytes)
    how = _Launch(ctypes.addressof(pointers), regions, *sizes, SCHEDULES[schedule], seed)
    error = run(ctypes.byref(how))
    if error:
        raise RuntimeError(f"{name}: {error.decode()}")


def _by_value(argument):
    """What the kernel's parameter is: a pointer, a number, or a struct."""
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, int):
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
        sums = np.dtype({68: "float32", 70: "float64", 77: "float32"}[how[0]])
        one, zero = (_memory(address, sums, 1)[0] for address in (alpha, beta))
        assert (one, zero) == (1, 0)
        a = _matrix(a, a_type, *((k, m) if op_a else (m, k)), lda)
        b = _matrix(b, b_type, *((n, k) if op_b else (k, n)), ldb)
        c = _matrix(c, c_type, m, n, ldc)
        assert c.dtype == sums
        if how[0] == 77:
            assert a.dtype == b.dtype == sums
            a, b = _tf32(a), _tf32(b)
        c[...] = (a.T if op_a else a).astype(sums) @ (b.T if op_b else b).astype(sums)


def _memory(address, dtype, count):
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype)


def _matrix(address, kind, rows, columns, ld):
    dtype = np.dtype({0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}[kind])
    assert ld >= rows
    memory = _memory(address, dtype, ld * (columns - 1) + rows)
    strides = (dtype.itemsize, ld * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(memory, (rows, columns), strides)


def _tf32(a):
    """Round to 11 bits of significand, ties away from zero."""
    return ((a.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)


class Emulator(CupyEngine):
    """The engine with NumPy for CuPy, kernels of cuda_shim and a cuBLAS in Python."""

    _cublas = Cublas

    def __init__(self, schedule="forward", blocks=0, shared_bytes=0, edits=None):
        self.schedule, self.blocks, self.shared_bytes = schedule, blocks, shared_bytes
        self.edits = edits or {}  # program: what to do to its text first
        self.launched = []

    array = staticmethod(np.ascontiguousarray)
    zeros = staticmethod(np.zeros)
    _handle = staticmethod(int)

    def empty(self, shape, dtype):
        return np.full(shape, np.nan, dtype)

    def synchronize(self):
        self.launched.append("synchronize")

    def address(self, array):
        return 0 if array is None else array.ctypes.data

    def launch(self, name, options, size, arguments):
        if size:
            self._launch(name, "steps", options, -(-size // 32), 32, 0, arguments)

    def residency(self):
        return self.blocks, self.shared_bytes

    def resident_blocks(self, name, options, threads, shared_bytes):
        return self.blocks

    def launch_resident(self, name, options, blocks, threads, shared_bytes, arguments):
        assert blocks <= self.blocks
        assert shared_bytes <= self.shared_bytes
        # two warps
        program = source.RESIDENT[name]
        self._launch(name, program, options, blocks, 64, shared_bytes, arguments)

    def _launch(self, name, program, options, blocks, threads, shared_bytes, arguments):
        self.launched.append(name)
        library = compiled(self.edits.get(program, str)(source.text(program)), options)
        how = (shared_bytes, self.schedule, len(self.launched), program != "steps")
        launch(library, name, blocks, threads, arguments, *how)
