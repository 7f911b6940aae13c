"""The CUDA backend's engine on the host: kernels compiled as C++, and a driver and cuBLAS in C++.

All launches and products go the way they go on a device, through fastgru's native loop. New arrays
are full of NaN, so that what a kernel fails to write is seen.
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

from fastgru._cuda import source
from fastgru._cuda.engine import CupyEngine, Launch, _Functions

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
    if isinstance(argument, int):
        return ctypes.c_longlong(argument)
    if argument.dtype.names:
        return ctypes.create_string_buffer(argument.tobytes(), argument.nbytes)
    assert argument.flags.c_contiguous
    return ctypes.c_void_p(argument.ctypes.data)


class Function(ctypes.Structure):
    """A CUfunction of library.cpp; see there."""

    _fields_ = (
        ("run", ctypes.c_void_p),
        *(("schedule", ctypes.c_int32), ("threads", ctypes.c_uint32)),
        *(("blocks_at_once", ctypes.c_uint32), ("shared_bytes", ctypes.c_uint32)),
    )


@functools.cache
def library_path():
    return _compile(FOLDER / "library.cpp", Path(_built.name) / "library.so", "-O2")


@functools.cache
def library():
    """Return library.cpp, which stands for libcuda and libcublas."""
    loaded = ctypes.CDLL(library_path())
    loaded.shim_message.restype = ctypes.c_char_p
    return loaded


def shim(name, kind=ctypes.c_uint):
    """Return a variable of library.cpp; its `value` can be read and set."""
    return kind.in_dll(library(), f"shim_{name}")


def function(program, name, **limits):
    """Return a kernel as a `Function`; who uses its address keeps it."""
    run = ctypes.cast(getattr(program, f"{name}_run"), ctypes.c_void_p)
    made = Function(run, **limits)
    made.count = getattr(program, f"{name}_arguments")()  # a driver cannot know what it is given
    return made


class Emulator(CupyEngine):
    """The engine with NumPy for CuPy, kernels of cuda_shim and the functions of library.cpp."""

    _THREADS = 32

    def __init__(self, schedule="forward", blocks=0, shared_bytes=0, edit=str):
        self.schedule, self.blocks, self.shared_bytes = schedule, blocks, shared_bytes
        self.edit = edit  # what to do to the kernels' text first
        self.launched = []
        self._functions = _Functions(library(), library())
        self._made = {}

    array = staticmethod(np.ascontiguousarray)
    zeros = staticmethod(np.zeros)

    def empty(self, shape, dtype):
        return np.full(shape, np.nan, dtype)

    def synchronize(self):
        self.launched.append("synchronize")

    def address(self, array):
        return 0 if array is None else array.ctypes.data

    def repeat(self, steps, calls):
        launches = [call.name for call in calls if isinstance(call, Launch) and call.size]
        shim("seed").value = len(self.launched)
        self.launched += steps * launches
        super().repeat(steps, calls)

    def residency(self):
        return self.blocks, self.shared_bytes

    def resident_blocks(self, name, options, threads, shared_bytes):
        return self.blocks

    def launch_resident(self, name, *how):
        shim("seed").value = len(self.launched)
        self.launched.append(name)
        super().launch_resident(name, *how)

    def _function(self, name, options, resident=False):
        key = name, options
        if key not in self._made:
            program = compiled(self.edit(source.text(resident)), options)
            threads = 64 if resident else 0  # two warps are enough to see
            limits = {"blocks_at_once": self.blocks, "shared_bytes": self.shared_bytes}
            schedule = SCHEDULES[self.schedule]
            self._made[key] = function(program, name, schedule=schedule, threads=threads, **limits)
        return ctypes.addressof(self._made[key])

    def _slots(self, name, arguments):
        program = next(made for key, made in self._made.items() if key[0] == name)
        assert len(arguments) == program.count, name
        return super()._slots(name, arguments)

    def stream(self):
        return 4321

    def _handle_on(self, stream):
        return 8765

    def _failure(self, *what):
        error = super()._failure(*what)
        return type(error)(f"{error}: {library().shim_message().decode()}")
