"""What the device backends compute with: CuPy's arrays, cuBLAS, and the kernels of `source`.

CuPy is imported by the first call of `current`. The tests' emulator is an `Engine` as well, with
NumPy's arrays and the same kernels compiled for the host, so that it runs the same backend code.
"""

from __future__ import annotations

import copy
import ctypes
import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru._cuda import source
from fastgru.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastgru._native._command_list import CommandList

# cudaDataType_t by the dtype of data, and cublasComputeType_t by the dtype of sums.
_DATA_TYPE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE_TYPE = {"float32": 68, "float64": 70}
_TF32 = {"float32": 77}  # for float32 operands only, which it rounds to 11 bits
_GEMM_DEFAULT = -1
_DRIVER = "libcuda.so.1"  # as CuPy opens it on Linux
_FACTORS = {name: np.array([1, 0], name) for name in _COMPUTE_TYPE}  # alpha and beta
_FACTOR_ADDRESSES = {name: factors.ctypes.data for name, factors in _FACTORS.items()}


class Each(NamedTuple):
    """An argument that moves from step to step: an array or a Python int, and what is added to it.

    ``first`` is the argument of the first step. For an array, the stride is in bytes.
    """

    first: Any
    stride: int


def each(array: Any) -> Each:
    """Return the argument that is ``array[0]`` in the first step, ``array[1]`` in the next ..."""
    return Each(array[0], array.strides[0])


class Launch(NamedTuple):
    """A kernel of `source.text` with at least ``size`` threads; not launched if ``size`` is 0.

    Arguments are C-contiguous arrays, None (a null pointer), Python ints (long long, or an
    address), `Each` of these, or NumPy arrays of one of `source`'s structs, which is passed by
    value.
    """

    name: str
    options: tuple[str, ...]
    size: int
    arguments: Sequence[Any]


class Product(NamedTuple):
    """The matrix product of ``a`` (m, k) and ``b`` (k, n), written to ``out`` (m, n); k is not 0.

    One axis of each operand, and the last one of ``out``, has no gaps. ``out`` has the dtype of the
    operands' sums and overlaps neither of them. All three may be an `Each`.
    """

    a: Any
    b: Any
    out: Any


Command = Launch | Product


class Engine:
    """Arrays, products and kernels of the CUDA device that is current when the engine is made.

    The device has to be current at every use as well. All work goes to the caller's current stream.
    """

    _THREADS = 128
    _compute_type = _COMPUTE_TYPE

    def __init__(self) -> None:
        import cupy
        from cupy.cuda import device
        from cupy_backends.cuda.api import driver

        try:  # CuPy itself comes without it
            from cupy_backends.cuda.libs import cublas
        except ImportError as error:
            raise BackendError(
                f"CuPy cannot load cuBLAS ({error}); install a CUDA toolkit, or for CuPy 14 pip's "
                "nvidia-cublas-cu12 or nvidia-cublas"
            ) from error

        self._cupy, self._cublas = cupy, cublas
        self._occupancy = driver.occupancyMaxActiveBlocksPerMultiprocessor
        self._handle = device.get_cublas_handle
        # CuPy's extension is linked with its cuBLAS, so that dlsym finds the same one through it,
        # whatever its version and its folder are.
        self._functions = _Functions(ctypes.CDLL(_DRIVER), ctypes.CDLL(cublas.__file__))
        limits = cupy.cuda.Device().attributes
        self._residency: tuple[int, int] = (0, 0)
        if limits["CooperativeLaunch"]:
            shared_bytes = limits["MaxSharedMemoryPerBlockOptin"]
            self._residency = (limits["MultiProcessorCount"], shared_bytes)

    def describe(self) -> str:
        """Return the device's name and the versions, for `fastgru.show_config`."""
        runtime = self._cupy.cuda.runtime
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        versions = f"runtime {runtime.runtimeGetVersion()}, driver {runtime.driverGetVersion()}"
        return f"{name}, CUDA {versions}, CuPy {self._cupy.__version__}"

    def array(self, values: Any) -> Any:
        """Return ``values`` as a C-contiguous array of this device, itself if it is one."""
        return self._cupy.asarray(values, order="C")

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Return a new C-contiguous array with any contents."""
        return self._cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Return a new C-contiguous array of zeros."""
        return self._cupy.zeros(shape, dtype)

    def address(self, array: Any) -> int:
        """Return where an array's first element is; 0 for None."""
        return 0 if array is None else array.data.ptr

    def synchronize(self) -> None:
        """Wait for the current stream's work, so that other streams may read its results."""
        self._cupy.cuda.get_current_stream().synchronize()

    def stream(self) -> int:
        """Return the caller's current stream, as libraries take it."""
        return int(self._cupy.cuda.get_current_stream().ptr)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long the device takes for what ``work`` launches; wait for the end of it."""
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(start, end)) / 1000  # CuPy has milliseconds

    def with_tf32(self) -> Engine:
        """Return a copy of the engine whose products of float32 may round operands to TF32."""
        engine = copy.copy(self)
        engine._compute_type = _TF32
        return engine

    def repeat(self, steps: int, commands: Sequence[Command]) -> None:
        """Do all ``commands``, in order, ``steps`` times.

        Raises
        ------
        BackendError
            Names the function that failed, its status, and the step.
        """
        command_list = self._functions.command_list()
        names = []
        for command in commands:
            if isinstance(command, Product):
                if self._add_product(command_list, command):
                    names.append("cublasGemmEx")
            elif command.size:
                blocks = -(-command.size // self._THREADS)
                function = self._function(command.name, command.options)
                arguments = self._slots(command.name, command.arguments)
                command_list.add_kernel(function, blocks, self._THREADS, 0, False, arguments)
                names.append(command.name)
        self._issue(command_list, steps, names)

    def gemm(self, a: Any, b: Any, out: Any) -> None:
        """Do one `Product`, of matrices that may be empty; zeros where k is 0."""
        if a.shape[1]:
            self.repeat(1, [Product(a, b, out)])
        else:
            out.fill(0)

    def residency(self) -> tuple[int, int]:
        """Return how many multiprocessors there are, and how many bytes a block can share at most.

        Both are 0 where the device cannot launch blocks that wait for each other.
        """
        return self._residency

    def launch_resident(
        self,
        name: str,
        options: tuple[str, ...],
        blocks: int,
        threads: int,
        shared_bytes: int,
        arguments: Sequence[Any],
    ) -> None:
        """Launch one of `source.RESIDENT` with at most `resident_blocks` blocks."""
        function = self._function(name, options)
        command_list, slots = self._functions.command_list(), self._slots(name, arguments)
        command_list.add_kernel(function, blocks, threads, shared_bytes, True, slots)
        self._issue(command_list, 1, [name])

    def resident_blocks(
        self, name: str, options: tuple[str, ...], threads: int, shared_bytes: int
    ) -> int:
        """Return how many blocks of one of `source.RESIDENT` the device holds at a time."""
        blocks: int = self._occupancy(self._function(name, options), threads, shared_bytes)
        return blocks * self.residency()[0]

    def _function(self, name: str, options: tuple[str, ...]) -> int:
        """Return a kernel's CUfunction for this device, valid as long as the process lives."""
        kernel = _kernel(name, options)
        if name in source.RESIDENT:
            # As much as a block can have: this sets a limit only, and every thread the same one.
            kernel.max_dynamic_shared_size_bytes = self.residency()[1]
        function: int = kernel.kernel.ptr
        return function

    def _slots(self, name: str, arguments: Sequence[Any]) -> list[tuple[int, int | None]]:
        """Return the arguments of a kernel as `CommandList` takes them."""
        slots: list[tuple[int, int | None]] = []
        for argument in arguments:
            value, stride = argument if isinstance(argument, Each) else (argument, 0)
            if value is None or isinstance(value, int):
                slots.append((value or 0, stride))
            elif value.dtype.names:
                slots.append((value.ctypes.data, None))
            elif value.flags.c_contiguous:
                slots.append((self.address(value), stride))
            else:  # a kernel gets the pointer only: it would read gaps as data
                raise AssertionError(f"{name}: expected C-contiguous arrays")
        return slots

    def _add_product(self, command_list: CommandList, product: Product) -> bool:
        """Add a product to the list, unless ``out`` is empty; return whether it was added."""
        (a, a_step), (b, b_step), (out, out_step) = (
            operand if isinstance(operand, Each) else (operand, 0) for operand in product
        )
        (m, k), n = a.shape, b.shape[1]
        if not m or not n:
            return False
        # cuBLAS' matrices are column-major: it is asked for out^T = b^T a^T.
        (trans_b, ldb), (trans_a, lda) = _as_transposed(b), _as_transposed(a)
        kind, out_kind = _DATA_TYPE[a.dtype.name], _DATA_TYPE[out.dtype.name]
        one = _FACTOR_ADDRESSES[out.dtype.name]
        command_list.add_product(
            (trans_b, trans_a),
            (n, m, k),
            (self.address(b), b_step, kind, ldb),
            (self.address(a), a_step, kind, lda),
            (self.address(out), out_step, out_kind, _row_stride(out)),
            *(one, one + out.itemsize, self._compute_type[out.dtype.name], _GEMM_DEFAULT),
        )
        return True

    def _issue(self, command_list: CommandList, steps: int, names: list[str]) -> None:
        stream = self.stream()
        handle = self._handle_on(stream) if "cublasGemmEx" in names else 0
        failed = command_list.issue(steps, stream, handle)
        if failed:
            status, command, step = failed
            raise self._failure(names[command], status, f"step {step} of {steps}")

    def _handle_on(self, stream: int) -> int:
        """Return cuBLAS' handle of this thread and device, set to work on the stream."""
        handle: int = self._handle()
        self._cublas.setStream(handle, stream)
        return handle

    def _failure(self, name: str, status: int, where: str) -> BackendError:
        return BackendError(f"{name}: {self._functions.status_name(name, status)} in {where}")


class _Functions:
    """The functions of CUDA's driver and of cuBLAS that the engine calls, found by ctypes."""

    def __init__(self, driver: Any, cublas: Any) -> None:
        self._driver, self._cublas = driver, cublas
        cublas.cublasGetStatusName.restype = ctypes.c_char_p
        functions = (driver.cuLaunchKernel, driver.cuLaunchCooperativeKernel, cublas.cublasGemmEx)
        self.addresses: list[int] = [
            ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions
        ]

    def command_list(self) -> CommandList:
        """Return an empty list of commands that calls these functions."""
        # Imported here, so that fastgru can be imported where its extensions are not built.
        from fastgru._native._command_list import CommandList

        return CommandList(*self.addresses)

    def status_name(self, caller: str, status: int) -> str:
        """Return the name of a status that cublasGemmEx, or the launch of a kernel, returned."""
        if caller == "cublasGemmEx":
            name = self._cublas.cublasGetStatusName(status)
        else:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(text))
            name = text.value
        return name.decode() if name else f"status {status}"


def current() -> Engine:
    """Return the engine of CuPy's current device, to which it binds the calling thread."""
    import cupy

    runtime = cupy.cuda.runtime
    device = runtime.getDevice()
    # A thread's first launch needs a context. The driver, which launches here, never makes one;
    # the runtime does when it is told the device.
    runtime.setDevice(device)
    return _engine(device)


def missing() -> str | None:
    """Return what keeps CuPy from computing on this machine, None for nothing."""
    try:
        with reported():
            import cupy

            cupy.cuda.runtime.getDevice()
    except ModuleNotFoundError as error:
        return f"CuPy is missing ({error}); pip install 'fastgru[cuda12]' or 'fastgru[cuda13]'"
    except ImportError as error:  # a library of CUDA's is missing: CuPy's text has many lines
        return f"CuPy cannot be imported: {str(error).strip().partition(chr(10))[0]}"
    except BackendError as error:
        return str(error)
    return None


@contextmanager
def reported() -> Iterator[None]:
    """Raise BackendError, with the status' name, in place of errors of CuPy and CUDA's libraries.

    A MemoryError stays as it is, and so do the errors of other packages.
    """
    try:
        yield
    except Exception as error:
        theirs = type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends", "cuda")
        if isinstance(error, MemoryError) or not theirs:
            raise
        raise BackendError(f"CUDA: {type(error).__name__}: {error}") from error


@functools.cache
def _engine(device: int) -> Engine:
    return Engine()


@functools.cache
def _module(options: tuple[str, ...], program: str) -> Any:
    import cupy

    # A RawModule compiles for each device at first use, and keeps the result on disk. CuPy adds
    # -ftz=true. CuPy is not told that launches are cooperative: the compiler does not need it, and
    # CuPy 13 would then link with libcudadevrt.a of a CUDA toolkit.
    return cupy.RawModule(
        code=source.text(program), options=("-std=c++17", *options), backend="nvrtc"
    )


@functools.cache
def _kernel(name: str, options: tuple[str, ...]) -> Any:
    return _module(options, source.RESIDENT.get(name, "steps")).get_function(name)


def element_strides(array: Any) -> list[int]:
    """Return the strides of an array, which are whole elements, in elements."""
    return [stride // array.itemsize for stride in array.strides]


def whole_strides(engine: Engine, array: Any) -> Any:
    """Return the array, or a copy where it is misaligned or its strides are not whole elements."""
    size = array.itemsize
    if any(stride % size for stride in array.strides) or engine.address(array) % size:
        return engine.array(array.copy())
    return array


def _row_stride(matrix: Any) -> int:
    """Return the elements from a row's begin to the next one's; for one row, what cuBLAS takes."""
    stride = matrix.strides[0] // matrix.itemsize if matrix.shape[0] > 1 else 0
    return int(max(stride, matrix.shape[1], 1))


def _as_transposed(matrix: Any) -> tuple[int, int]:
    """Return cuBLAS' (operation, leading dimension) that read a row-major matrix transposed."""
    rows, columns = matrix.strides
    if columns == matrix.itemsize or matrix.shape[1] == 1:
        return 0, _row_stride(matrix)
    if rows == matrix.itemsize or matrix.shape[0] == 1:
        return 1, _row_stride(matrix.T)
    raise AssertionError(f"gemm: both axes have gaps, strides {matrix.strides}")
