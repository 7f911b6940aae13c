"""What the CUDA backend computes with: CuPy's arrays, cuBLAS, and the kernels of `source`.

`Engine` is the protocol; `CupyEngine` keeps it on a device, and the tests' emulator on the host, so
that the same backend code runs on both. CuPy is imported by the first call of `current`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastgru._cuda import source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# cudaDataType_t and cublasComputeType_t; sums of halves are floats, and floats are not cut to TF32.
_DATA_TYPE = {"float32": 0, "float64": 1, "float16": 2}
_COMPUTE_TYPE = {"float32": 68, "float64": 70}
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

    def stream(self) -> int:
        """Return the caller's current stream, as libraries take it."""

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long the device takes for what ``work`` asks of it, and wait for it."""

    def gemm(self, a: Any, b: Any, out: Any) -> None:
        """Write the matrix product of ``a`` (m, k) and ``b`` (k, n) to ``out`` (m, n).

        One axis of each operand, and the last one of ``out``, is without gaps. ``out`` has the
        dtype that the operands' sums have and overlaps neither of them.
        """

    def launch(
        self, name: str, options: tuple[str, ...], size: int, arguments: Sequence[Any]
    ) -> None:
        """Run a kernel of `source.text` with ``size`` threads or more, none if ``size`` is 0.

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
        """Return how many blocks of a kernel the device holds at a time."""

    def launch_resident(
        self,
        name: str,
        options: tuple[str, ...],
        blocks: int,
        threads: int,
        shared_bytes: int,
        arguments: Sequence[Any],
    ) -> None:
        """Run a kernel whose blocks wait for each other, at most `resident_blocks` of them."""


class CupyEngine:
    """The engine of the CUDA device that is current when it is made, and whenever it is used."""

    _THREADS = 128

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

    def array(self, values: Any) -> Any:
        """Return ``values`` as a C-contiguous array of this device, itself if it is one."""
        return self._cupy.asarray(values, order="C")

    def address(self, array: Any) -> int:
        """Return where an array's first element is; 0 for None."""
        return 0 if array is None else array.data.ptr

    def synchronize(self) -> None:
        """Wait until what was asked for is done, so that other streams may read it."""
        self._cupy.cuda.get_current_stream().synchronize()

    def stream(self) -> int:
        """Return the caller's current stream, as libraries take it."""
        return int(self._cupy.cuda.get_current_stream().ptr)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long the device takes for what ``work`` asks of it, and wait for it."""
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(start, end)) / 1000  # CuPy has milliseconds

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
            *(_COMPUTE_TYPE[out.dtype.name], _GEMM_DEFAULT),
        )

    def launch(
        self, name: str, options: tuple[str, ...], size: int, arguments: Sequence[Any]
    ) -> None:
        """Run a kernel of `source.text` with ``size`` threads or more, none if ``size`` is 0."""
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
        """Run a kernel whose blocks wait for each other, at most `resident_blocks` of them."""
        kernel = _kernel(name, options, resident=True)
        kernel.max_dynamic_shared_size_bytes = shared_bytes
        arguments = self._checked(name, arguments)
        kernel((blocks,), (threads,), arguments, shared_mem=shared_bytes)

    def resident_blocks(
        self, name: str, options: tuple[str, ...], threads: int, shared_bytes: int
    ) -> int:
        """Return how many blocks of a kernel the device holds at a time."""
        kernel = _kernel(name, options, resident=True)
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


@functools.cache
def _engine(device: int) -> CupyEngine:
    return CupyEngine()


@functools.cache
def _module(options: tuple[str, ...], resident: bool) -> Any:
    import cupy

    # A RawModule compiles per device at first use, and keeps what it compiled on disk.
    return cupy.RawModule(
        code=source.text(resident),
        options=("-std=c++17", *options),
        backend="nvrtc",
        enable_cooperative_groups=resident,
    )


@functools.cache
def _kernel(name: str, options: tuple[str, ...], resident: bool = False) -> Any:
    return _module(options, resident).get_function(name)


def whole_strides(engine: Engine, array: Any) -> Any:
    """Return the array, or a copy where it is misaligned or its strides are not whole elements."""
    size = array.itemsize
    if any(stride % size for stride in array.strides) or engine.address(array) % size:
        return engine.array(array.copy())
    return array


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
