"""The cuDNN backend: NVIDIA's GRU where it can serve a call, forward and backward.

cuDNN has one formula, Keras' default (tanh, sigmoid, reset_after), and rows that end early;
`REASONS` lists what it cannot serve. `fastgru/backends/cudnn_call.py` and the kernels of
`fastgru/_cuda/cudnn.cu` give the calls that it serves exactly fastgru's semantics.

`fastgru._cuda.engine` has arrays, launches and the stream, `fastgru._cuda.libcudnn` the library;
the tests replace them.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru import activations
from fastgru._cuda import engine as engines
from fastgru._cuda import libcudnn
from fastgru._cuda.libcudnn import CudnnError
from fastgru.backends import cudnn_call
from fastgru.backends.base import FastPath
from fastgru.backends.cudnn_call import TYPES, CudnnCall, Net, Session
from fastgru.problem import BackendError, GRUGrads, GRUOutput, GRUProblem, GRUSpec, GRUWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Which algorithm is the fastest depends on the device and all sizes: the first call of a shape
# measures it. The choice is kept, so that the same call gives the same numbers as long as the
# process lives. PERSIST_DYNAMIC is left out: it compiles for seconds, and for every batch size.
STANDARD = libcudnn.RNN_ALGO_STANDARD
STATIC = libcudnn.RNN_ALGO_PERSIST_STATIC
SMALL = libcudnn.RNN_ALGO_PERSIST_STATIC_SMALL_H
SMALL_UNITS = 192  # PyTorch's bound for it
TRIAL_STEPS = 64  # with more steps the time of all algorithms grows in proportion
TRIALS = 3  # the shortest counts
TRIAL_GAIN = 0.9  # another algorithm is taken below this part of the time: more may be noise
MOST_CHOICES = 1024  # if a process meets more shapes, the rest use STANDARD

HOST = "the arrays are in host memory; cuDNN works on CuPy arrays"


class _Trial(NamedTuple):
    """The calls that a choice of algorithm is for."""

    engine: engines.Engine
    spec: GRUSpec
    directions: int
    batch: int
    steps: int
    training: bool


# What cuDNN does not serve, beside calls on the host; the other backends serve all of it.
REASONS: tuple[tuple[str, Callable[[GRUProblem], bool]], ...] = (
    ("activation is not tanh", lambda p: not _is(p.spec.activation, activations.tanh)),
    (
        "recurrent_activation is not sigmoid",
        lambda p: not _is(p.spec.recurrent_activation, activations.sigmoid),
    ),
    ("reset_after is False", lambda p: not p.spec.reset_after),
    (
        "dtype {spec.dtype.name} is not one of " + ", ".join(TYPES),
        lambda p: p.spec.dtype.name not in TYPES,
    ),
    (
        "precision {spec.precision!r} is neither None nor 'tf32'",
        lambda p: p.spec.precision not in (None, "tf32"),
    ),
    ("recurrent_dropout is in use", lambda p: p.recurrent_dropout is not None),
    (
        "each gate has its own dropout mask (implementation=1)",
        lambda p: p.dropout is not None and p.dropout.ndim == 3,
    ),
    ("unroll is True", lambda p: p.unroll),
    ("use_cudnn is False", lambda p: p.use_cudnn is False),
    ("the mask is not right-padded", lambda p: p.mask.steps is not None),
    ("no row has a valid step", lambda p: _all_masked(p)),
    ("reset_mask resets rows between steps", lambda p: p.resets is not None),
    ("the input has an empty axis", lambda p: 0 in p.x.shape),
)


def _is(activation: Any, wanted: activations.Activation) -> bool:
    return type(activation) is activations.Activation and activation.name == wanted.name


def _all_masked(problem: GRUProblem) -> bool:
    lengths = problem.mask.lengths
    return lengths is not None and not lengths.any()


class CudnnBackend(FastPath):
    """Forward and backward by cuDNN.

    Parameters
    ----------
    engine : Engine, optional
        Where to compute; without one, CuPy's current device at each call.
    library : Cudnn, optional
        Without one, what `fastgru._cuda.libcudnn` finds.
    """

    name = "cudnn"

    def __init__(
        self, engine: engines.Engine | None = None, library: libcudnn.Cudnn | None = None
    ) -> None:
        self._engine, self._library = engine, library
        # A handle serves one call at a time. These are idle, for each device.
        self._handles: dict[engines.Engine, list[int]] = {}
        self._choices: dict[_Trial, int] = {}

    def missing(self) -> str | None:
        """Return what this machine lacks, CuPy, a device or cuDNN; None if nothing."""
        return None if self._engine else engines.missing() or libcudnn.missing()

    def reasons(self, problem: GRUProblem) -> list[str]:
        """Return each reason why cuDNN cannot serve the problem."""
        host = not (problem.on_device or self._engine)  # an engine handed in has its own arrays
        reasons = [self.missing(), HOST if host else None]
        reasons += [text.format(spec=problem.spec) for text, applies in REASONS if applies(problem)]
        return [reason for reason in reasons if reason is not None]

    def supports(self, problem: GRUProblem) -> str | None:
        """Return None when `forward` can serve the problem, else the reasons it cannot."""
        if not (problem.on_device or self._engine):
            return HOST  # more reasons would need CuPy's import
        return "; ".join(self.reasons(problem)) or None

    def supports_backward(self, problem: GRUProblem) -> str | None:
        """Return None when `backward` can serve the problem, else the reasons it cannot."""
        return self.supports(problem)

    def direction_pair(self, problems: Sequence[GRUProblem]) -> CudnnBackend | None:
        """Return itself when one call of cuDNN can serve both halves, see `FastPath`."""
        return self if self.supports_pair(problems) is None else None

    def supports_pair(self, problems: Sequence[GRUProblem]) -> str | None:
        """Return None when `forward_pair` can serve the halves of a bidirectional layer."""
        one, other = problems
        for half in problems:
            reason = self.supports(half)
            if reason is not None:
                return reason
        if one.x is not other.x or one.spec != other.spec or one.reverse or not other.reverse:
            return "the halves are not one layer in both directions of one input"
        lengths: list[Any] = [half.mask.lengths for half in problems]
        if (lengths[0] is None) != (lengths[1] is None) or not np.array_equal(*lengths):
            return "the halves have different masks"
        if one.dropout is not None or other.dropout is not None:
            return "dropout gives each half an input of its own"
        if one.x.shape[1] > cudnn_call.STEPS:
            return f"more than {cudnn_call.STEPS} steps go in pieces, one direction at a time"
        return None

    def forward(
        self, problem: GRUProblem, weights: GRUWeights, save: bool = False, keep_gates: bool = True
    ) -> GRUOutput:
        """Run the layer; with ``save`` also return what `backward` needs."""
        return self.forward_pair((problem,), (weights,), save, keep_gates)[0]

    def backward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        states: Any,
        dy: Any,
        dstate: Any,
        workspace: Any = None,
    ) -> GRUGrads:
        """Return the gradient of <y, dy> + <state, dstate>; without a workspace, forward again."""
        return self.backward_pair((problem,), (weights,), (dy,), (dstate,), workspace)[0]

    def forward_pair(
        self,
        problems: Sequence[GRUProblem],
        weights: Sequence[GRUWeights],
        save: bool = False,
        keep_gates: bool = True,
    ) -> list[GRUOutput]:
        """Run a direction pair, both halves of a bidirectional layer, in one call of cuDNN.

        The results are those of `forward` of each half: the second's are in its processing order,
        backwards in time. The workspace is in the first. A single problem is served as well.
        """
        with self._session() as session:
            call = CudnnCall(session, problems)
            training = save and keep_gates
            run = call.run(self._net(call, training), weights, training)
            return call.outputs(run, save, run if training else None)

    def backward_pair(
        self,
        problems: Sequence[GRUProblem],
        weights: Sequence[GRUWeights],
        dys: Sequence[Any],
        dstates: Sequence[Any],
        workspace: Any = None,
    ) -> list[GRUGrads]:
        """Return the gradients of each half; the first has that of x, which the halves share.

        In the second, ``x`` is None. The workspace has what is needed of the states.
        """
        with self._session() as session:
            call = CudnnCall(session, problems)
            if workspace is None:
                workspace = call.run(self._net(call, True), weights, True)
            net = Net(session, call.spec, call.D, workspace.algorithm)
            return call.backward(net, weights, workspace, dys, dstates)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """Lend one call a handle, on the caller's current device and stream."""
        engine = self._engine or engines.current()
        try:
            library = self._library or libcudnn.load()
            idle = self._handles.setdefault(engine, [])
            try:
                handle = idle.pop()
            except IndexError:
                handle = library.create()
            try:
                library.setStream(handle, engine.stream())
                with ExitStack() as opened:
                    yield Session(engine, library, handle, opened)
            finally:
                idle.append(handle)
        except CudnnError as error:
            raise BackendError(str(error)) from error

    def _net(self, call: CudnnCall, training: bool) -> Net:
        """Return the layer by the algorithm that is the fastest for its sizes."""
        session, spec = call.session, call.spec
        others = [] if call.ragged or spec.dtype == np.float64 else [STATIC]
        if others and spec.units <= SMALL_UNITS:
            others.append(SMALL)
        chosen = STANDARD
        if others:
            steps = min(TRIAL_STEPS, 1 << (call.steps - 1).bit_length())
            case = _Trial(session.engine, spec, call.D, call.B, steps, training)
            if case not in self._choices and len(self._choices) < MOST_CHOICES:
                # If another thread was first, its choice is kept.
                self._choices.setdefault(case, _fastest(session, case, others))
            chosen = self._choices.get(case, STANDARD)
        return Net(session, spec, call.D, chosen)


def _fastest(session: Session, case: _Trial, others: list[int]) -> int:
    """Measure STANDARD and the others, without those that cuDNN refuses, and return the fastest."""
    fastest, least = STANDARD, _seconds(session, case, STANDARD)
    for algorithm in others:
        try:
            time = _seconds(session, case, algorithm)
        except CudnnError as error:
            if not error.not_supported:
                raise
            continue
        if time < least * TRIAL_GAIN:
            fastest, least = algorithm, time
    return fastest


def _seconds(session: Session, case: _Trial, algorithm: int) -> float:
    """Return the time of a forward run over zeros, for training with its backward."""
    _, spec, directions, batch, steps, training = case
    net = Net(session, spec, directions, algorithm)
    desc = net.descriptors(steps, [steps] * batch, steps_first=True)

    def zeros(count: int, *shape: int) -> list[Any]:
        return [session.engine.zeros(shape, spec.dtype) for _ in range(count)]

    x, dx = zeros(2, steps, batch, spec.input_dim)
    y, dy = zeros(2, steps, batch, directions * spec.units)
    hx, hy, dhx = zeros(3, directions, batch, spec.units)
    space, dspace = net.space(), net.space()

    def work() -> None:
        reserve = net.forward(training, desc, x, hx, y, hy, space)
        if training:
            net.backward(desc, x, hx, y, dy, hy, dx, dhx, space, dspace, reserve)

    work()
    return min(session.engine.seconds(work) for _ in range(TRIALS))
