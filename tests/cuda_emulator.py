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

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np

from fastgru._cuda import source
from fastgru._cuda.engine import CupyEngine, Launch, _Functions

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


class Function(ctypes.Structure):
    """A CUfunction of library.cpp; see there."""

    _fields_ = (
        *(("run", ctypes.c_void_p), ("regions", ctypes.POINTER(_Region))),
        *(("regions_count", ctypes.c_uint32), ("schedule", ctypes.c_int32)),
        *(("threads", ctypes.c_uint32), ("blocks_at_once", ctypes.c_uint32)),
        *(("shared_bytes", ctypes.c_uint32), ("cooperative", ctypes.c_uint32)),
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

    def __init__(self, schedule="forward", blocks=0, shared_bytes=0, edits=None):
        self.schedule, self.blocks, self.shared_bytes = schedule, blocks, shared_bytes
        self.edits = edits or {}  # program: what to do to its text first
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

    def launch_resident(self, name, options, blocks, threads, shared_bytes, arguments):
        shim("seed").value = len(self.launched)
        self.launched.append(name)
        self._function(name, options)
        # Blocks see what others wrote there only after fences.
        arrays = [a for a in arguments if hasattr(a, "dtype") and not a.dtype.names]
        regions = [_Region(self.address(a), a.nbytes) for a in arrays]
        kernel = self._made[name, options]
        kernel.regions, kernel.regions_count = (_Region * len(regions))(*regions), len(regions)
        super().launch_resident(name, options, blocks, threads, shared_bytes, arguments)

    def _function(self, name, options):
        key = name, options
        if key not in self._made:
            program = source.RESIDENT.get(name, "steps")
            text = self.edits.get(program, str)(source.text(program))
            limits = {"blocks_at_once": self.blocks, "shared_bytes": self.shared_bytes}
            limits |= {"schedule": SCHEDULES[self.schedule]}
            limits |= {"threads": 0 if program == "steps" else 64}  # two warps are enough to see
            self._made[key] = function(compiled(text, options), name, **limits)
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
