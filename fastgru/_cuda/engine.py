"""What the CUDA backend computes with: CuPy's arrays, cuBLAS, and the kernels of `source`.

`Engine` is the protocol; `CupyEngine` keeps it on a device, and the tests' emulator on the host, so
that the same backend code runs on both. CuPy is imported by the first call of `current`.
"""

from __future__ import annotations

import copy
import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastgru._cuda import source
from fastgru.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# cudaDataType_t and cublasComputeType_t, by the dtype of the sums; those of 16 bits are floats.
_DATA_TYPE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE_TYPE = {"float32": 68, "float64": 70}
_TF32 = {"float32": 77}  # of float32 operands alone, which it rounds to 11 bits
_GEMM_DEFAULT = -1
_FACTORS = {name: (np.array(1, name), np.array(0, name)) for name in _COMPUTE_TYPE}


class Engine(Protocol):
    """Arrays, products and kernels of one device; all work is on the caller's current stream."""

    def array(self, values: Any) -> Any:
        """Return ``values`` as a C-contiguous array of this device, itself if it is one."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Return a new C-contiguous array with any contents."""

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Return a new C-contiguous array of zeros."""

    def address(self, array: Any) -> int:
        """Return where an array's first element is; 0 for None."""

    def synchronize(self) -> None:
        """Wait until what was asked for is done, so that other streams may read it."""

    def with_tf32(self) -> Engine:
        """Return the same engine, but its products of float32 may round operands to TF32."""

    def gemm(self, a: Any, b: Any, out: Any) -> None:
        """Write the matrix product of ``a`` (m, k) and ``b`` (k, n) to ``out`` (m, n).

        One axis of each operand, and the last one of ``out``, is without gaps. ``out`` has the
        dtype that the operands' sums have and overlaps neither of them.
        """

    def launch(
        self, name: str, options: tuple[str, ...], size: int, arguments: Sequence[Any]
    ) -> None:
        """Run a kernel of the program "steps" with at least ``size`` threads, none if it is 0.

        Arguments are C-contiguous arrays, None (a null pointer), Python ints (long long, or an
        address), or NumPy arrays of one element of `source`'s structs, which go by value.
        """

    def residency(self) -> tuple[int, int]:
        """Return the multiprocessors, and the bytes of shared memory that a block can have.

        No multiprocessors where the device cannot launch blocks that wait for each other.
        """

    def resident_blocks(
        self, name: str, options: tuple[str, ...], threads: int, shared_bytes: int
    ) -> int:
        """Return how many blocks of one of `source.RESIDENT` the device holds at a time."""

    def launch_resident(
        self,
        name: str,
        options: tuple[str, ...],
        blocks: int,
        threads: int,
        shared_bytes: int,
        arguments: Sequence[Any],
    ) -> None:
        """Run one of `source.RESIDENT`, at most `resident_blocks` of its blocks."""


class CupyEngine:
    """The engine of the CUDA device that is current when it is made, and whenever it is used."""

    _THREADS = 128
    _compute_type = _COMPUTE_TYPE

    def __init__(self) -> None:
        import cupy
        from cupy.cuda import device
        from cupy_backends.cuda.api import driver
        from cupy_backends.cuda.libs import cublas

        self._cupy, self._cublas = cupy, cublas
        self._occupancy = driver.occupancyMaxActiveBlocksPerMultiprocessor
        self._handle = device.get_cublas_handle
        self.empty, self.zeros = cupy.empty, cupy.zeros
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

    def address(self, array: Any) -> int:
        """Return where an array's first element is; 0 for None."""
        return 0 if array is None else array.data.ptr

    def synchronize(self) -> None:
        """Wait until what was asked for is done, so that other streams may read it."""
        self._cupy.cuda.get_current_stream().synchronize()

    def with_tf32(self) -> CupyEngine:
        """Return the same engine, but its products of float32 may round operands to TF32."""
        engine = copy.copy(self)
        engine._compute_type = _TF32
        return engine

    def gemm(self, a: Any, b: Any, out: Any) -> None:
        """Write the matrix product of ``a`` (m, k) and ``b`` (k, n) to ``out`` (m, n)."""
        (m, k), n = a.shape, b.shape[1]
        if not m or not n:
            return
        if not k:
            out.fill(0)
            return
        # cuBLAS counts columns first: it is asked for out^T = b^T a^T.
        (trans_b, ldb), (trans_a, lda) = _as_transposed(b), _as_transposed(a)
        one, zero = (factor.ctypes.data for factor in _FACTORS[out.dtype.name])
        kind, address = _DATA_TYPE[a.dtype.name], self.address
        self._cublas.gemmEx(
            *(self._handle(), trans_b, trans_a, n, m, k, one),
            *(address(b), kind, ldb, address(a), kind, lda, zero),
            *(address(out), _DATA_TYPE[out.dtype.name], _row_stride(out)),
            *(self._compute_type[out.dtype.name], _GEMM_DEFAULT),
        )

    def launch(
        self, name: str, options: tuple[str, ...], size: int, arguments: Sequence[Any]
    ) -> None:
        """Run a kernel of the program "steps" with at least ``size`` threads, none if it is 0."""
        if size:
            blocks = -(-size // self._THREADS)
            kernel = _kernel(name, options)
            kernel((blocks,), (self._THREADS,), self._checked(name, arguments))

    def residency(self) -> tuple[int, int]:
        """Return the multiprocessors, and the bytes of shared memory that a block can have."""
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
        """Run one of `source.RESIDENT`, at most `resident_blocks` of its blocks."""
        kernel = _kernel(name, options)
        kernel.max_dynamic_shared_size_bytes = shared_bytes
        arguments = self._checked(name, arguments)
        kernel((blocks,), (threads,), arguments, shared_mem=shared_bytes)

    def resident_blocks(
        self, name: str, options: tuple[str, ...], threads: int, shared_bytes: int
    ) -> int:
        """Return how many blocks of one of `source.RESIDENT` the device holds at a time."""
        kernel = _kernel(name, options)
        kernel.max_dynamic_shared_size_bytes = shared_bytes
        blocks: int = self._occupancy(kernel.kernel.ptr, threads, shared_bytes)
        return blocks * self.residency()[0]

    def _checked(self, name: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Return the arguments as CuPy takes them: None, a null pointer, is 0 there."""
        for argument in arguments:
            # A kernel gets the pointer alone: gaps would be read as data.
            if isinstance(argument, self._cupy.ndarray) and not argument.flags.c_contiguous:
                raise AssertionError(f"{name}: expected C-contiguous arrays")
        return tuple(0 if argument is None else argument for argument in arguments)


def current() -> CupyEngine:
    """Return the engine of CuPy's current device."""
    import cupy

    return _engine(cupy.cuda.runtime.getDevice())


def missing() -> str | None:
    """Return what keeps CuPy from computing on this machine, None for nothing."""
    try:
        with reported():
            import cupy

            cupy.cuda.runtime.getDevice()
    except ImportError as error:
        return f"CuPy is missing ({error}); pip install 'fastgru[cuda12]' or 'fastgru[cuda13]'"
    except BackendError as error:
        return str(error)
    return None


@contextmanager
def reported() -> Iterator[None]:
    """Raise BackendError, with the status' name, for what CuPy and CUDA's libraries raise.

    MemoryError stays what it is, and so does what is not theirs.
    """
    try:
        yield
    except Exception as error:
        theirs = type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends", "cuda")
        if isinstance(error, MemoryError) or not theirs:
            raise
        raise BackendError(f"CUDA: {type(error).__name__}: {error}") from error


@functools.cache
def _engine(device: int) -> CupyEngine:
    return CupyEngine()


@functools.cache
def _module(options: tuple[str, ...], program: str) -> Any:
    import cupy

    # A RawModule compiles per device at first use, and keeps what it compiled on disk.
    return cupy.RawModule(
        code=source.text(program),
        options=("-std=c++17", *options),
        backend="nvrtc",
        enable_cooperative_groups=program != "steps",
    )


@functools.cache
def _kernel(name: str, options: tuple[str, ...]) -> Any:
    return _module(options, source.RESIDENT.get(name, "steps")).get_function(name)


def _row_stride(matrix: Any) -> int:
    """Return the elements between two rows; of one row, what cuBLAS takes."""
    stride = matrix.strides[0] // matrix.itemsize if matrix.shape[0] > 1 else 0
    return int(max(stride, matrix.shape[1], 1))


def _as_transposed(matrix: Any) -> tuple[int, int]:
    """Return cuBLAS' (operation, leading dimension) that read a matrix of rows as its transpose."""
    rows, columns = matrix.strides
    if columns == matrix.itemsize or matrix.shape[1] == 1:
        return 0, _row_stride(matrix)
    if rows == matrix.itemsize or matrix.shape[0] == 1:
        return 1, _row_stride(matrix.T)
    raise AssertionError(f"gemm: both axes have gaps, strides {matrix.strides}")
