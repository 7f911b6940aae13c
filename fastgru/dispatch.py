"""Which backend serves a problem, and why.

The backends stand in an ordered list; the first whose ``supports(problem)`` gives no reason
against it serves the call. Nothing is dispatched by catching exceptions.
"""

from __future__ import annotations

import contextvars
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.backends.base import Backend, FastPath, StreamParts
from fastgru.backends.cpu import CPUBackend
from fastgru.backends.cuda import CudaBackend
from fastgru.backends.cudnn import CudnnBackend
from fastgru.backends.reference import ReferenceBackend
from fastgru.problem import BackendError, GRUProblem, GRUSpec, GRUWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


NAMES = ("cudnn", "cuda", "cpu", "reference")

_CPU = CPUBackend()
_REFERENCE = ReferenceBackend()
_CUDNN = CudnnBackend()
_BACKENDS: tuple[Backend, ...] = (_CUDNN, CudaBackend(), _CPU, _REFERENCE)
_BY_NAME = {backend.name: backend for backend in _BACKENDS}
_NO_FAST_PATH = FastPath()
# Only these are asked: a call on the host is not to pay for the others.
_ON_DEVICE = tuple(backend for backend in _BACKENDS if backend is not _CPU)
_ON_HOST: tuple[Backend, ...] = (_CPU, _REFERENCE)


def available() -> list[str]:
    """Return the names of the backends that work on this machine, in the order they are asked."""
    return [backend.name for backend in _BACKENDS if backend.missing() is None]


def _named(name: str) -> Backend:
    if name not in _BY_NAME:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    return _BY_NAME[name]


_environment = os.environ.get("FASTGRU_BACKEND") or None
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "fastgru_backend", default=_environment
)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call inside the block by one backend, or raise.

    Parameters
    ----------
    name : {"reference", "cpu", "cuda", "cudnn"}
        The environment variable FASTGRU_BACKEND says the same for the whole process.

    Raises
    ------
    ValueError
        An unknown name; and, at a call inside the block, a problem that the backend cannot
        serve: the message says why. Nothing is served elsewhere instead.
    BackendError
        A backend that this build or machine does not have.

    Notes
    -----
    A backend without a backward of its own leaves that to the next one in the list;
    ``layer.explain(...)`` says to which.
    """
    missing = _named(name).missing()
    if missing is not None:
        raise BackendError(f"backend {name!r}: {missing}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(problem: GRUProblem) -> Backend:
    """Return the backend that serves ``forward`` of the problem.

    Raises
    ------
    ValueError
        A backend was asked for, by `use_backend` or ``use_cudnn=True``, that cannot serve it, or
        none can; with each reason.
    """
    forced = _forced.get()
    if problem.use_cudnn is True:
        return _asked_for_cudnn(problem, forced)
    if forced is not None:
        backend = _named(forced)
        reason = backend.supports(problem)
        if reason is not None:
            raise ValueError(
                f"backend {forced!r} was asked for and cannot serve this call: {reason}; "
                "leave the choice to fastgru or change the layer"
            )
        return backend
    reasons = []
    for backend in _ON_DEVICE if problem.on_device else _ON_HOST:
        reason = backend.supports(problem)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise ValueError(f"no backend can serve this call: {'; '.join(reasons)}")


def _asked_for_cudnn(problem: GRUProblem, forced: str | None) -> Backend:
    """Return cuDNN's backend, or raise with each reason against it."""
    reasons = _CUDNN.reasons(problem)
    if forced not in (None, "cudnn"):
        reasons.insert(0, f"backend {forced!r} was asked for")
    if reasons:
        raise ValueError(
            "use_cudnn=True was asked for, and cuDNN cannot serve this call: "
            f"{'; '.join(reasons)}; use_cudnn='auto' takes what can"
        )
    return _CUDNN


def choose_backward(problem: GRUProblem) -> Backend:
    """Return the backend that serves ``backward`` of a problem that `choose` found one for."""
    forced = "cudnn" if problem.use_cudnn is True else _forced.get()
    if forced is not None and _named(forced).supports_backward(problem) is None:
        return _named(forced)
    for backend in _ON_DEVICE if problem.on_device else _ON_HOST:
        if backend.supports_backward(problem) is None:
            return backend
    raise AssertionError("the reference backend has a backward for all that it serves")


def fast_path(on_device: bool = False) -> FastPath:
    """Return the fast path that calls may try before `choose`; see `FastPath`.

    Parameters
    ----------
    on_device : bool
        Whether the call's arrays are on a device.
    """
    forced = _forced.get()
    backend: FastPath = _CUDNN if on_device else _CPU
    return backend if forced is None or forced == backend.name else _NO_FAST_PATH


def open_stepper(
    specs: Sequence[GRUSpec],
    sources: Sequence[Any],
    states: Sequence[Any],
    outputs: Sequence[Any],
    weights_of: Callable[[Any], GRUWeights | None],
) -> Callable[..., np.ndarray | None] | None:
    """Return the step of a stream, or None; the arguments are those of `StreamParts`."""
    if not isinstance(states[0], np.ndarray):
        return None
    return _CPU.open_stepper(StreamParts(specs, sources, states, outputs, weights_of, _forced.get))


def pack_like(old: GRUWeights, new: GRUWeights) -> None:
    """Pack new weights as old ones are, which calls have used; a device gets them at its call."""
    if old.packed:
        _CPU.pack_like(old, new)


class Explanation:
    """Which backend serves a call, and why the ones before it do not.

    Parameters
    ----------
    problem : GRUProblem
        The call, validated.

    Attributes
    ----------
    backend : str
        The one that serves ``layer(...)`` and ``layer.forward(...)``.
    backward : str
        The one that serves ``layer.backward(...)``.
    reasons : dict of str to str or None
        For each backend, in the order they are asked, why it does not serve the call;
        None for those that could.
    details : list of str
        One line about the problem; on the CPU one about the kernel and how it is divided among
        threads, with the estimates that decide it and their reasons.
    parts : list of (str, Explanation)
        Of a layer that makes several calls, each under the name of its layer or cell: the halves
        of a Bidirectional, the layers of a Sequential, stacked cells. Then ``backend`` and
        ``backward`` name each backend once, and ``reasons`` what any of the parts says.
    casts : list of str
        One line for each argument that the call casts to the layer's dtype, which costs a copy.
    """

    reasons: dict[str, str | None]
    casts: Sequence[str] = ()

    def __init__(self, problem: GRUProblem) -> None:
        self.parts: list[tuple[str, Explanation]] = []
        self.backend = choose(problem).name
        self.backward = choose_backward(problem).name
        self.reasons = {backend.name: backend.supports(problem) for backend in _BACKENDS}
        batch, steps, inputs = problem.x.shape
        spec = problem.spec
        self.details = [
            f"problem b{batch}t{steps}i{inputs}h{spec.units} {spec.dtype.name}, "
            f"reset_after={spec.reset_after}, mask {problem.mask.kind}"
        ]
        if self.backend == "cpu":
            self.details.append(_CPU.explain(problem))

    @classmethod
    def of_custom_cell(cls, name: str) -> Explanation:
        """Return the explanation of a layer whose cell is not ours."""
        self = cls.__new__(cls)
        self.parts = []
        self.backend, self.backward = "python", "none"
        self.reasons = dict.fromkeys(NAMES, "the cell is not a GRUCell or a stack of them")
        self.details = [f"{name}: the cell is called from Python, once a step"]
        return self

    @classmethod
    def of_parts(cls, parts: list[tuple[str, Explanation]]) -> Explanation:
        """Return the explanation of a layer from those of its parts; of one part, that itself."""
        if len(parts) == 1:
            return parts[0][1]
        self = cls.__new__(cls)
        self.parts = parts
        self.backend = ", ".join(dict.fromkeys(part.backend for _, part in parts))
        self.backward = ", ".join(dict.fromkeys(part.backward for _, part in parts))
        self.reasons = {}
        for backend in NAMES:
            reasons = [part.reasons[backend] for _, part in parts]
            self.reasons[backend] = "; ".join(dict.fromkeys(r for r in reasons if r)) or None
        self.details = [f"{name}: {line}" for name, part in parts for line in part.details]
        return self

    def __str__(self) -> str:
        if self.parts:
            blocks = (f"{name}:\n{part}".replace("\n", "\n  ") for name, part in self.parts)
            return "\n".join([*self.casts, *blocks])
        lines = [
            *self.casts,
            *self.details,
            f"served by: {self.backend}   backward: {self.backward}",
        ]
        for name, reason in self.reasons.items():
            lines.append(f"  {name:<10}{'can serve it' if reason is None else reason}")
        return "\n".join(lines)

    __repr__ = __str__
