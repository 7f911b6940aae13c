"""The CPU backend: the compiled loop of `fastgru._native._cpu`.

Float32 and float64, every built-in elementwise activation, every mask. The extension is imported
by the first call, since it brings scipy.linalg with it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fastgru.activations import Activation
from fastgru.problem import BackendError, GRUGrads, GRUOutput, GRUProblem, GRUWeights
from fastgru.threads import get_num_threads

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

# Cores for which OpenBLAS has kernels that multiply small matrices where they lie; Zen 4 and 5
# count as Cooperlake there. The panels of _native/_blas.pxd are for these.
_SMALL_GEMM_CORES = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})

# SciPy's own wheels, any other OpenBLAS, MKL, BLIS: (get, set) as `int get(void)`, `void set(int)`.
_THREAD_FUNCTIONS = (
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
)

_native: ModuleType | None = None
_missing: str | None = None  # why there is no extension
_blas = {"name": "unknown", "core": "", "threads": "its own setting"}


def _load() -> ModuleType | None:
    """Import the extension and set it up, once; None when it is not there."""
    global _native, _missing
    if _native is None and _missing is None:
        try:
            from fastgru._native import _cpu
        except ImportError as error:
            _missing = f"the extension fastgru._native._cpu could not be imported: {error}"
            return None
        _cpu.set_isa(os.environ.get("FASTGRU_ISA") or _cpu.supported_isas()[-1])
        _find_blas(_cpu)
        _native = _cpu
    return _native


def _find_blas(native: ModuleType) -> None:
    """Find the thread setting of the BLAS that scipy.linalg.cython_blas is linked to.

    A look-up through the handle of that module searches the libraries it depends on. A BLAS that
    has no such setting (the reference BLAS, Accelerate) keeps its own.
    """
    import ctypes

    from scipy.linalg import cython_blas

    library = ctypes.CDLL(cython_blas.__file__)
    for get_name, set_name in _THREAD_FUNCTIONS:
        get, set_ = getattr(library, get_name, None), getattr(library, set_name, None)
        if get is None or set_ is None:
            continue
        addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in (get, set_)]
        native.set_blas_functions(*addresses)
        _blas.update(name=get_name.rpartition("_get")[0], threads="1 inside our calls")
        core = getattr(library, get_name.replace("get_num_threads", "get_corename"), None)
        if core is not None:
            core.restype = ctypes.c_char_p
            _blas["core"] = core().decode()
        return


class CPUBackend:
    """Forward on the CPU through BLAS and vectorised gates."""

    name = "cpu"

    def supports(self, problem: GRUProblem) -> str | None:
        """Return None when `forward` can serve the problem, else the reason it cannot."""
        native = _native or _load()
        if native is None:
            return _missing
        spec = problem.spec
        known = native.ACTIVATIONS
        for act in (spec.activation, spec.recurrent_activation):
            if type(act) is not Activation:
                return f"activation {getattr(act, '__name__', act)!r} is custom Python code"
            if act.name not in known:
                return f"activation {act.name!r} is not elementwise"
        return None

    def supports_backward(self, problem: GRUProblem) -> str | None:
        """Return the reason why there is no backward."""
        return "the CPU backend of this version has no backward of its own"

    def forward(self, problem: GRUProblem, weights: GRUWeights, save: bool = False) -> GRUOutput:
        """Run the layer; with ``save`` also return the state after every step."""
        native = _native or _load()
        if native is None:
            raise BackendError(_missing)
        packed = weights.packed.get("cpu")
        if packed is None or (packed.spec is not problem.spec and packed.spec != problem.spec):
            packed = native.Packed(problem.spec, weights, _blas["core"] in _SMALL_GEMM_CORES)
            weights.packed["cpu"] = packed
        threads = problem.num_threads or get_num_threads()
        return GRUOutput(*native.forward(packed, problem, threads, save))

    def backward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        states: np.ndarray,
        dy: np.ndarray | None,
        dstate: np.ndarray | None,
    ) -> GRUGrads:
        """Raise: `supports_backward` says so beforehand, and the next backend serves it."""
        raise BackendError(self.supports_backward(problem))


def build_info() -> dict[str, Any]:
    """Return what `fastgru.show_config` prints: extension, OpenMP, instruction set, BLAS."""
    native = _load()
    if native is None:
        return {"extension": _missing}
    blas = " ".join(word for word in (_blas["name"], _blas["core"]) if word)
    return {
        "extension": "built",
        "openmp": native.OPENMP,
        "isa": native.get_isa(),
        "isa_supported": native.supported_isas(),
        "blas": blas,
        "blas_threads": _blas["threads"],
        "num_threads": get_num_threads(),
    }
