"""The CUDA backend's engine on the host: kernels compiled as C++, and a driver and cuBLAS in C++.

All launches and products go through fastgru's command list, as on a device. New arrays are full of
NaN, so that what a kernel fails to write is seen.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np
import pytest
from fake_cudnn import STREAM

from fastgru._cuda import source
from fastgru._cuda.engine import Engine, _Functions

COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(
    not COMPILER, reason="needs g++ to compile the emulated kernels"
)
FOLDER = Path(__file__).parent / "cuda_shim"
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}

# conftest.py names a folder that all processes of a run share: each text is compiled once.
_own = tempfile.TemporaryDirectory(prefix="cuda_shim")
_BUILT = Path(os.environ.get("FASTGRU_CUDA_SHIM") or _own.name)


def _compile(name, text, *options):
    """Compile C++ to a shared library; return its path."""
    command = [COMPILER, "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", f"-I{FOLDER}"]
    # a count of rounds is unused in a kernel whose only barrier a test has taken out
    command += ["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable"]
    key = "\0".join([text, (FOLDER / "cuda_shim.h").read_text(), *command, *options])
    library = _BUILT / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=_BUILT) as folder:
            source_file, made = Path(folder) / f"{name}.cpp", Path(folder) / "made.so"
            source_file.write_text(text)
            subprocess.run([*command, str(source_file), *options, "-o", str(made)], check=True)
            made.replace(library)  # at once: another process may be making the same
    return str(library)


@functools.cache
def _scheduler():
    return _compile("scheduler", (FOLDER / "scheduler.cpp").read_text(), "-O2")


@functools.cache
def compiled(text, options):
    """Compile CUDA text as C++ and load it."""
    names = re.findall(r"^(?:KERNEL|extern \"C\" __global__ void) (\w+)\(", text, re.MULTILINE)
    exports = "".join(f"EXPORT({name})\n" for name in names)
    text = f'#include "cuda_shim.h"\n{text}\n{exports}'
    # -O1 takes longer to compile, and the fibers' switches take as long
    return ctypes.CDLL(_compile("kernels", text, "-O0", _scheduler(), *options))


@functools.cache
def library_path():
    return _compile("library", (FOLDER / "library.cpp").read_text(), "-O2")


@functools.cache
def library():
    """Return library.cpp, which stands for libcuda and libcublas."""
    loaded = ctypes.CDLL(library_path())
    loaded.shim_message.restype = ctypes.c_char_p
    return loaded


def shim(name, kind=ctypes.c_uint):
    """Return a variable of library.cpp; its `value` can be read and set."""
    return kind.in_dll(library(), f"shim_{name}")


class _Region(ctypes.Structure):
    _fields_ = (("memory", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class Function(ctypes.Structure):
    """A CUfunction of library.cpp; see there."""

    _fields_ = (
        *(("run", ctypes.c_void_p), ("schedule", ctypes.c_int32), ("threads", ctypes.c_uint32)),
        *(("blocks_at_once", ctypes.c_uint32), ("shared_bytes", ctypes.c_uint32)),
        *(("cooperative", ctypes.c_uint32), ("regions_count", ctypes.c_uint32)),
        ("regions", _Region * 24),
    )


def function(program, name, **limits):
    """Return a kernel as a `Function`; who uses its address keeps it."""
    run = ctypes.cast(getattr(program, f"{name}_run"), ctypes.c_void_p)
    made = Function(run, **limits)
    made.count = getattr(program, f"{name}_arguments")()  # a driver cannot know what it is given
    return made


_one_at_a_time = threading.Lock()  # what stands for the driver has one state for all threads


class LateEngine(Engine):
    """The engine, but blocks see what others wrote to arrays only after fences."""

    def launch_resident(self, name, options, blocks, threads, shared_bytes, arguments):
        with _one_at_a_time:
            kernel = Function.from_address(self._function(name, options))
            arrays = [a for a in arguments if hasattr(a, "dtype") and not a.dtype.names]
            kernel.regions_count = len(arrays)
            for region, array in zip(kernel.regions, arrays, strict=False):
                region.memory, region.bytes = self.address(array), array.nbytes
            super().launch_resident(name, options, blocks, threads, shared_bytes, arguments)


HOST = SimpleNamespace(
    asarray=np.asarray,
    empty=lambda shape, dtype: np.full(shape, np.nan, dtype),
    zeros=np.zeros,
)


class Emulator(LateEngine):
    """The engine with kernels of cuda_shim, the functions of library.cpp, and NumPy for CuPy."""

    _THREADS = 32

    def __init__(self, schedule="forward", blocks=0, shared_bytes=0, edits=None, cupy=HOST):
        self.schedule, self.blocks, self.shared_bytes = schedule, blocks, shared_bytes
        self.edits = edits or {}  # program: what to do to its text first
        self.launched = []
        self._functions = _Functions(library(), library())
        self._made = {}
        self._cupy = cupy

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

    def repeat(self, steps, commands):
        with _one_at_a_time:
            super().repeat(steps, commands)

    def residency(self):
        return self.blocks, self.shared_bytes

    def resident_blocks(self, name, options, threads, shared_bytes):
        return self.blocks

    def _text(self, name):
        program = source.RESIDENT.get(name, "steps")
        return self.edits.get(program, str)(source.text(program))

    def _function(self, name, options):
        key = name, options
        if key not in self._made:
            limits = {"blocks_at_once": self.blocks, "shared_bytes": self.shared_bytes}
            limits |= {"schedule": SCHEDULES[self.schedule]}
            limits |= {"threads": 64 if name in source.RESIDENT else 0}  # two warps: enough to see
            self._made[key] = function(compiled(self._text(name), options), name, **limits)
        return ctypes.addressof(self._made[key])

    def _slots(self, name, arguments):
        program = next(made for key, made in self._made.items() if key[0] == name)
        assert len(arguments) == program.count, name
        return super()._slots(name, arguments)

    def _issue(self, command_list, steps, names):
        shim("seed").value = len(self.launched)
        self.launched += steps * [name for name in names if name != "cublasGemmEx"]
        super()._issue(command_list, steps, names)

    def _handle_on(self, stream):
        return 8765

    def _failure(self, *what):
        error = super()._failure(*what)
        return type(error)(f"{error}: {library().shim_message().decode()}")


class Kernels(Emulator):
    """The emulator for kernels of a text of one's own."""

    def __init__(self, text, **how):
        super().__init__(**how)
        self._own = text

    def _text(self, name):
        return self._own
