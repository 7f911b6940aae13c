"""What a forward call keeps for backward, and the parts of backward that all layers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru import dispatch
from fastgru.device import follow
from fastgru.dtypes import rounded
from fastgru.problem import GRUOutput, GRUProblem, GRUWeights, as_array, check_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgru.variables import Variable


class Gradients(NamedTuple):
    """What ``layer.backward`` returns.

    Parameters
    ----------
    inputs : ndarray
        In the shape of the sequences.
    initial_state : ndarray, or list of ndarray for a layer with several states
        Each (B, H).
    weights : list of ndarray
        ``weights[i]`` belongs to ``layer.trainable_weights[i]``.
    """

    inputs: np.ndarray
    initial_state: Any
    weights: list[np.ndarray]


class Record(NamedTuple):
    """What one GRU cell kept: ``states`` (B, T, H) after every step, in processing order.

    ``workspace`` is what ``backend`` wants to have back in its own backward. ``pair``: it ran with
    the other half of a Bidirectional, in one call.
    """

    problem: GRUProblem
    weights: GRUWeights
    states: np.ndarray
    backend: str
    workspace: Any
    pair: bool = False


def record_of(
    problem: GRUProblem,
    weights: GRUWeights,
    output: GRUOutput,
    backend: str,
    pair: bool = False,
) -> Record:
    """Return what is kept of a forward that was asked to save."""
    states = output.states
    assert states is not None
    if np.may_share_memory(states, output.y):
        states = states.copy()  # y is the user's to write to
    return Record(problem, weights, states, backend, output.workspace, pair)


_USED = "tape: it has been used already; run forward(...) again for another backward"


class Tape:
    """What ``layer.forward`` kept for ``layer.backward``; good for one use."""

    def __init__(self, layer: Any, **kept: Any) -> None:
        self.layer = layer
        self.kept = kept
        self.used = False
        self._uses = [None]  # of threads that take it out at once, one gets it

    def __repr__(self) -> str:
        return f"<Tape of {self.layer.path}{', used' if self.used else ''}>"

    def spend(self) -> None:
        """Mark the tape used and let go of what it kept; ValueError if another thread was first."""
        try:
            self._uses.pop()
        except IndexError:
            raise ValueError(_USED) from None
        self.used = True
        self.kept = {}


def check_tape(tape: Any, layer: Any) -> dict[str, Any]:
    """Return what the tape kept, or raise unless it is a fresh one of ``layer``."""
    if not isinstance(tape, Tape):
        raise TypeError(
            f"tape: expected the one that {layer.name}.forward(...) returned, got "
            f"{type(tape).__name__}"
        )
    if tape.layer is not layer:
        raise ValueError(
            f"tape: expected one from {layer.name}.forward(...), got one of {tape.layer.name}"
        )
    kept = tape.kept  # before it is asked, for `spend` says first that it was used
    if tape.used:
        raise ValueError(_USED)
    return kept


def backward_through(
    records: Sequence[Record],
    dy: np.ndarray | None,
    dstates: Sequence[np.ndarray | None],
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Run backward through stacked cells, the last first.

    Returns
    -------
    dx : ndarray, shape (B, T, I)
    dh0 : list of ndarray, one per cell
    weights : list of ndarray, each cell's kernel, recurrent_kernel and, if it has one, bias
    """
    weights: list[np.ndarray] = []
    dh0: list[np.ndarray] = []
    for record, dstate in zip(reversed(records), reversed(dstates), strict=True):
        backend = dispatch.choose_backward(record.problem)
        workspace = record.workspace if record.backend == backend.name else None
        grads = backend.backward(
            record.problem, record.weights, record.states, dy, dstate, workspace
        )
        weights = [*grads.weights, *weights]
        dh0.insert(0, grads.h0)
        dy = grads.x
    assert dy is not None
    return dy, dh0, weights


def trainable_gradients(
    weights: Sequence[Variable], trainable: Sequence[Variable], grads: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the gradients of the trainable weights, their regularizers' share included."""
    wanted = {id(v) for v in trainable}
    result = []
    for variable, grad in zip(weights, grads, strict=True):
        if id(variable) in wanted:
            if grad.dtype.itemsize < variable.dtype.itemsize:  # of a mixed policy, on a device
                grad = grad.astype(variable.dtype)
            if variable.regularizer is not None:
                extra = variable.regularizer.gradient(variable.value)
                grad = grad + follow(np.asarray(extra, grad.dtype), grad)
            result.append(rounded(grad, variable.dtype))
    return result


def plus_activity(gradient: Any, regularizer: Any, output: np.ndarray) -> np.ndarray:
    """Return a gradient plus that of an activity loss, which is divided by the batch size.

    ``gradient`` may be None, for zeros (docs/semantics.md 8).
    """
    extra = regularizer.gradient(output) / max(1, output.shape[0])
    extra = np.asarray(extra, output.dtype, like=output)
    return extra if gradient is None else gradient + extra


def check_differentiable(what: str, function: Any) -> None:
    """Raise ValueError when a custom function has no derivative to run backward with."""
    if function is not None and not (hasattr(function, "gradient") or hasattr(function, "vjp")):
        arguments = "(x, y)" if what.endswith("activation") else "(x)"
        raise ValueError(
            f"{what}: backward needs its derivative, and {function!r} has none; pass an object "
            f"with __call__(x) and gradient{arguments}"
        )


def gradient_array(value: Any, shape: tuple[int, ...], like: Any, what: str, hint: str) -> Any:
    """Validate a gradient handed to ``backward``; None stays None and means zeros.

    ``like`` is the sequences' array: its dtype, and where it is, are the gradient's.
    """
    if value is None:
        return None
    array = as_array(value, like.dtype, what, like)
    check_shape(array, shape, what, hint)
    return array
