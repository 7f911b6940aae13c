"""The CPU backend: the compiled kernels of `fastgru._native`.

Every dtype, every built-in elementwise activation, every mask. Of 16 bits the kernels are those of
float32; the fused ones read and write such arrays, and round the state. The first call imports the
extensions. The fused kernels serve it, unless the compiler had no vector types or
FASTGRU_KERNEL=blas asks for the other kernel: that one brings scipy.linalg with it, which takes
longer to import than the rest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastgru import locks
from fastgru.activations import Activation
from fastgru.backends.base import FastPath, StreamParts
from fastgru.dtypes import rounded, sum_dtype
from fastgru.problem import (
    BackendError,
    GRUGrads,
    GRUOutput,
    GRUProblem,
    GRUSpec,
    GRUWeights,
)
from fastgru.threads import call_on_change, get_num_threads, processors

if TYPE_CHECKING:
    import numpy as np

# OpenMP's threads spin after a call, to be there for the next one: gcc's use 10 ms of CPU time each
# time, clang's 200. Ours sleep after 3,000 pauses, mostly 0.1 to 2 ms of CPU time (clang's runtime:
# 1 ms), unless the user has said.
# Read when the extension loads the runtime; one that another package has loaded is not ours to set.
_SPINNING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
ON_DEVICE = "the arrays are on a device"
_native: Any = None  # the package of the extensions, once they are imported
_forced_kernel: str | None = None
_missing: str | None = None  # why there is no extension


def _load() -> Any:
    """Import the extensions and set them up, once; None when they are not there."""
    global _native, _missing, _forced_kernel
    if _native is None and _missing is None:
        try:
            with _spinning():
                from fastgru import _native as native
                from fastgru._native import (  # noqa: F401
                    _backward,
                    _coalescing,
                    _fast_path,
                    _forward,
                    _kernels,
                    _partition,
                    _threads,
                    _weights,
                )
            if os.environ.get("FASTGRU_KERNEL") == "blas" or not _kernels.lanes(4):
                from fastgru._native import _blas  # noqa: F401
        except ImportError as error:
            _missing = f"the extensions of fastgru._native could not be imported: {error}"
            if _is_built():  # else `import fastgru` has said it
                _warn(f"{_missing}; install fastgru again, for this Python")
            return None
        _kernels.set_isa(os.environ.get("FASTGRU_ISA") or _kernels.supported_isas()[-1])
        _forced_kernel = os.environ.get("FASTGRU_KERNEL") or None
        if _forced_kernel not in (None, "fused", "blas"):
            raise ValueError(f"FASTGRU_KERNEL: expected 'fused' or 'blas', got {_forced_kernel!r}")
        if _forced_kernel == "fused" and not _kernels.lanes(4):
            raise ValueError("FASTGRU_KERNEL: 'fused' was not built by this compiler; use 'blas'")
        call_on_change(_threads.set_thread_limit)
        _coalescing.set_processors(processors())
        _threads.set_processors(processors())
        _native = native
    return _native


def _is_built() -> bool:
    try:
        return importlib.util.find_spec("fastgru._native._kernels") is not None
    except ImportError:  # a finder of somebody's
        return False


def _warn(reason: str) -> None:
    message = f"fastgru runs in NumPy, 4 to 50 times slower than it would: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def warn_if_not_built() -> None:
    """Warn if there are no extensions beside the sources: a clone on the path, or a failed build.

    Not where the reference backend is what the process asks for.
    """
    if os.environ.get("FASTGRU_BACKEND") != "reference" and not _is_built():
        _warn(
            f"{_PACKAGE} has the sources only, not compiled. If fastgru is installed, run Python "
            "outside of this folder's parent; else build it there: pip install ."
        )


@contextlib.contextmanager
def _spinning() -> Iterator[None]:
    if "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    added = [name for name in _SPINNING if name not in os.environ]
    os.environ.update({name: _SPINNING[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class CPUBackend(FastPath):
    """Forward and backward on the CPU; see the module."""

    name = "cpu"

    def missing(self) -> str | None:
        """Return why the extension could not be imported, None when it was."""
        _load()
        return _missing

    def supports(self, problem: GRUProblem) -> str | None:
        """Return None when `forward` can serve the problem, else the reason it cannot."""
        if _native is None and _load() is None:
            return _missing
        return ON_DEVICE if problem.on_device else _reason(problem.spec)

    def supports_backward(self, problem: GRUProblem) -> str | None:
        """Return None when `backward` can serve the problem, else the reason it cannot."""
        reason = self.supports(problem)
        if reason is None and _kernel(problem.spec) != "fused":
            reason = "the BLAS kernel has no backward"
        return reason

    def forward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        save: bool = False,
        keep_gates: bool = True,
    ) -> GRUOutput:
        """Run the layer; with ``save`` also return what `backward` needs."""
        if _native is None and _load() is None:
            raise BackendError(_missing)
        threads = problem.num_threads or get_num_threads()
        packed = _packed(problem.spec, weights, threads)
        if packed.dtype != problem.spec.dtype:  # the BLAS kernel, and arrays of 16 bits
            wide = _in_sums(problem)
            y, state, states, _ = _native._forward.forward(packed, wide, threads, save, False)
            narrow = _narrowed(problem, y, state, states)
            if problem.out is not None:
                problem.out[...] = narrow[0]
            return GRUOutput(problem.out if problem.out is not None else narrow[0], *narrow[1:])
        keep_gates = keep_gates and _kernel(problem.spec) == "fused"
        return GRUOutput(*_native._forward.forward(packed, problem, threads, save, keep_gates))

    def backward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        states: np.ndarray,
        dy: np.ndarray | None,
        dstate: np.ndarray | None,
        workspace: Any = None,
    ) -> GRUGrads:
        """Return the gradient of <y, dy> + <state, dstate>; without a workspace, forward again."""
        if _native is None and _load() is None:
            raise BackendError(_missing)
        threads = problem.num_threads or get_num_threads()
        packed = _packed(problem.spec, weights, threads)
        if workspace is None:
            if problem.out is not None:  # the caller's, who may have written there since
                problem = problem._replace(out=None)
            workspace = _native._forward.forward(packed, problem, threads, True, True)[3]
        wide, sums = _in_sums(problem), packed.sums
        given = [a if a is None else a.astype(sums, copy=False) for a in (states, dy, dstate)]
        dx, dh0, dkernel, drecurrent, dbias = _native._backward.backward(
            packed, wide, workspace, *given, threads
        )
        dx, dh0 = _narrowed(problem, dx, dh0)
        return GRUGrads(dx, dh0, dkernel, drecurrent, dbias if weights.bias is not None else None)

    def explain(self, problem: GRUProblem) -> str:
        """Say with which kernel, on how many threads and why `forward` would run a problem now."""
        if _native is None and _load() is None:
            raise BackendError(_missing)
        spec, (batch, steps) = problem.spec, problem.x.shape[:2]
        limit = problem.num_threads or get_num_threads()
        sums = sum_dtype(spec.dtype)
        numbers = "" if spec.dtype == sums else f"{spec.dtype.name} arrays, {sums.name} sums; "
        isa = f"{numbers}{_native._kernels.get_isa()}"
        if _kernel(spec) == "blas":
            why = "FASTGRU_KERNEL asks for it" if _forced_kernel else "this compiler made no other"
            return f"cpu kernel: blas {isa} ({why}), at most {limit} threads"
        threads, shared, *times = _native._partition.plan(
            spec, _lanes(spec), (batch, steps), problem.h0 is not None, limit
        )
        how = "1 thread"
        if threads > 1:
            how = f"{threads} threads, {'hidden' if shared else 'batch'} split"
        labels = ("one thread", "batch split", "hidden split")
        model = [f"{n} {us:.1f} us" for n, us in zip(labels, times, strict=True) if us]
        if limit == 1:
            why = "no more may be used"
        elif not _native._kernels.OPENMP:
            why = "built without OpenMP"
        else:
            why = f"model: {', '.join(model)}" if model else "too little work to share"
        return f"cpu kernel: fused {isa}, {how} ({why})"

    def fast_call(
        self,
        weights: GRUWeights,
        spec: GRUSpec,
        x: Any,
        sequences: bool,
        with_state: bool,
        reverse: bool,
    ) -> Any:
        """Return what a call with nothing but x gives: y, or (y, state).

        None where x is not plain enough, and unless the weights are packed, which says that
        `forward` has served this spec before.
        """
        packed = weights.packed.get("fused")
        if packed is None or packed.spec is not spec or _forced_kernel == "blas":
            return None
        return _native._fast_path.call(packed, x, sequences, with_state, reverse, get_num_threads)

    def fast_step(self, weights: GRUWeights, spec: GRUSpec, x: Any, h0: Any) -> np.ndarray | None:
        """Return the state one step after h0; None as for `fast_call`."""
        packed = weights.packed.get("fused")
        if packed is None or packed.spec is not spec or _forced_kernel == "blas":
            return None
        return _native._fast_path.step(packed, x, h0, get_num_threads)

    def pack_like(self, old: GRUWeights, new: GRUWeights) -> None:
        """Pack new weights for the specs that old ones are packed for."""
        for kernel in ("fused", "blas"):
            if kernel in old.packed:
                _packed(old.packed[kernel].spec, new, get_num_threads(), kernel)

    def open_stepper(self, parts: StreamParts) -> Callable[..., np.ndarray | None] | None:
        """Return the native step of a stream, see `_stream.Stepper`; None without the kernels."""
        spec = parts.specs[0]
        if _load() is None or _kernel(spec) == "blas":
            return None
        from fastgru._native._stream import Stepper

        return Stepper(parts, _packed_if_served, get_num_threads).step


def _reason(spec: GRUSpec) -> str | None:
    """Return why the extension cannot compute a spec; it must be loaded."""
    for act in (spec.activation, spec.recurrent_activation):
        if type(act) is not Activation:
            return f"activation {getattr(act, '__name__', act)!r} is custom Python code"
        if act.name not in _native._kernels.ACTIVATIONS:
            return f"activation {act.name!r} is not elementwise"
    return None


def _lanes(spec: GRUSpec) -> int:
    lanes: int = _native._kernels.lanes(sum_dtype(spec.dtype).itemsize)
    return lanes


def _kernel(spec: GRUSpec) -> str:
    """Return which of the two kernels runs: "fused", or "blas" where the first is not there."""
    return _forced_kernel or ("fused" if _lanes(spec) else "blas")


def _packed(spec: GRUSpec, weights: GRUWeights, threads: int, kernel: str | None = None) -> Any:
    """Return the packed copy for a kernel, made now if there is none; of many callers, one does."""
    kernel = kernel or _kernel(spec)
    packed = _kept(kernel, spec, weights)
    if packed is None:
        with locks.packing:
            packed = _kept(kernel, spec, weights)
            if packed is None:
                packed = weights.packed[kernel] = _pack(kernel, spec, weights, threads)
    return packed


def _in_sums(problem: GRUProblem) -> GRUProblem:
    """Return the problem with arrays in the dtype of sums, itself if they are."""
    dtype = problem.spec.dtype
    sums = sum_dtype(dtype)
    if dtype == sums:
        return problem
    h0 = None if problem.h0 is None else problem.h0.astype(sums)
    return problem._replace(x=problem.x.astype(sums), h0=h0, out=None)


def _narrowed(problem: GRUProblem, *arrays: Any) -> list[Any]:
    """Return arrays in the problem's dtype; None stays None."""
    return [a if a is None else rounded(a, problem.spec.dtype) for a in arrays]


def _pack(kernel: str, spec: GRUSpec, weights: GRUWeights, threads: int) -> Any:
    sums = sum_dtype(spec.dtype)
    if spec.dtype != sums:
        bias = None if weights.bias is None else weights.bias.astype(sums)
        matrices = (weights.kernel, weights.recurrent_kernel)
        w, u = (matrix.astype(sums) for matrix in matrices)
        weights = GRUWeights(w, u, bias)
    if kernel == "fused":
        return _native._weights.PackedWeights(spec, weights, threads)
    from fastgru._native._blas import BLASWeights

    return BLASWeights(spec, weights, threads)


def _kept(kernel: str, spec: GRUSpec, weights: GRUWeights) -> Any:
    packed = weights.packed.get(kernel)
    if packed is None or (packed.spec is not spec and packed.spec != spec):
        return None
    return packed if packed.is_current() else None


def _packed_if_served(spec: GRUSpec, weights: GRUWeights) -> Any:
    return None if _reason(spec) is not None else _packed(spec, weights, 1, "fused")


def build_info() -> dict[str, Any]:
    """Return what `fastgru.show_config` prints: extension, OpenMP, instruction set, BLAS."""
    native = _load()
    if native is None:
        return {"extension": _missing}
    from fastgru._native import _blas

    kernels = native._kernels
    return {
        "extension": "built",
        "openmp": kernels.OPENMP,
        "isa": kernels.get_isa(),
        "kernel": _forced_kernel or ("fused" if kernels.lanes(4) else "blas"),
        "isa_supported": kernels.supported_isas(),
        "blas": f"{_blas.NAME} {_blas.CORE}".strip(),
        "blas_threads": _blas.THREADS,
        "num_threads": get_num_threads(),
    }
