"""The protocol that every backend keeps.

A backend takes arrays and gives arrays: no user objects, and no second look at the arguments.
It holds no state of its own beyond packed copies of weights, which live in `GRUWeights.packed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fastgru.problem import GRUGrads, GRUOutput, GRUProblem, GRUSpec, GRUWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Backend(Protocol):
    """What `fastgru.dispatch` chooses between."""

    name: str

    def missing(self) -> str | None:
        """Return what this machine lacks to run the backend at all, None for nothing."""

    def supports(self, problem: GRUProblem) -> str | None:
        """Return None when `forward` can serve the problem, else the reason it cannot."""

    def supports_backward(self, problem: GRUProblem) -> str | None:
        """Return None when `backward` can serve the problem, else the reason it cannot."""

    def forward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        save: bool = False,
        keep_gates: bool = True,
    ) -> GRUOutput:
        """Run the layer; with ``save`` also return the state after every step.

        With ``keep_gates`` as well, a backend may return a workspace that speeds up its backward.
        """

    def backward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        states: np.ndarray,
        dy: np.ndarray | None,
        dstate: np.ndarray | None,
        workspace: Any = None,
    ) -> GRUGrads:
        """Return the gradient of <y, dy> + <state, dstate>.

        ``states`` is what any backend's ``forward(save=True)`` gave for the same problem and
        weights, and ``workspace`` what this backend's gave, or None; dy has y's shape, dstate is
        (B, H); None means zeros.
        """


class StreamParts(NamedTuple):
    """What the steps of a stream work on, one of each per cell.

    ``states`` and ``outputs``, each (n, H), C-contiguous and writeable, are read and written by
    every step. ``weights_of(source)`` returns a cell's weights as they are now, or None; it runs no
    Python code, so that weights that are written together are read together. ``forced()`` returns
    the name of the only backend that may serve a step, or None.
    """

    specs: Sequence[GRUSpec]
    sources: Sequence[Any]
    states: Sequence[np.ndarray]
    outputs: Sequence[np.ndarray]
    weights_of: Callable[[Any], GRUWeights | None]
    forced: Callable[[], str | None]


class DirectionPair(Protocol):
    """What runs both halves of a bidirectional layer in one call."""

    name: str

    def forward_pair(
        self,
        problems: Sequence[GRUProblem],
        weights: Sequence[GRUWeights],
        save: bool = False,
        keep_gates: bool = True,
    ) -> list[GRUOutput]:
        """Return what ``forward`` of each half would; the first has the workspace of both."""

    def backward_pair(
        self,
        problems: Sequence[GRUProblem],
        weights: Sequence[GRUWeights],
        dys: Sequence[Any],
        dstates: Sequence[Any],
        workspace: Any,
    ) -> list[GRUGrads]:
        """Return the gradients of both halves; that of x, which they share, is in the first."""


class FastPath:
    """The optional part of the protocol: calls that need no `GRUProblem`, or that pair two.

    What it returns is what `Backend.forward` and `Backend.backward` would return, to the bit. A
    backend inherits from it and overrides what it has; every other method says that the caller
    has to go the whole way: through `dispatch.choose`, one problem at a time.
    """

    name = "none"

    def fast_call(
        self,
        weights: GRUWeights,
        spec: GRUSpec,
        x: Any,
        sequences: bool,
        with_state: bool,
        reverse: bool,
    ) -> Any:
        """Return y, or (y, state) with ``with_state``, of a call with nothing but x; or None.

        Parameters
        ----------
        x : object
            As the user passed it; None is returned unless it is a plain array (B, T, I).
        sequences, reverse : bool
            As ``return_sequences`` and ``reverse`` of a `GRUProblem`.
        """

    def fast_step(self, weights: GRUWeights, spec: GRUSpec, x: Any, h0: Any) -> np.ndarray | None:
        """Return the state one step after h0; None unless x and h0 are plain arrays."""

    def open_stepper(self, parts: StreamParts) -> Callable[..., np.ndarray | None] | None:
        """Return ``step(x, rows=None)`` of a stream, or None where there is none.

        A step advances the states and returns the last cell's output. It returns None, and does
        nothing, where x or rows are not plain arrays or something else has to serve the step.
        """

    def pack_like(self, old: GRUWeights, new: GRUWeights) -> None:
        """Pack new weights for the specs that old ones are packed for."""

    def direction_pair(self, problems: Sequence[GRUProblem]) -> DirectionPair | None:
        """Return what runs both halves of a bidirectional layer in one call, or None.

        Parameters
        ----------
        problems : two GRUProblem
            The halves, on the same x.
        """
