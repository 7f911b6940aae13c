"""NVRTC, the compiler that CuPy runs, from pip's nvidia-cuda-nvrtc; needs no GPU and no driver."""

import ctypes
import importlib.util
from pathlib import Path


def _find():
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else ())]
    return next((str(lib) for f in folders for lib in sorted(f.glob("*/lib/libnvrtc.so.*"))), None)


LIBRARY = _find()


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

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        assert self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor)) is None
        return f"{major.value}.{minor.value}"

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
