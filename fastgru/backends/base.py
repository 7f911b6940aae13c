"""The protocol that every backend keeps.

A backend takes arrays and gives arrays: no user objects, and no second look at the arguments.
It holds no state of its own beyond packed copies of weights, which live in `GRUWeights.packed`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fastgru.problem import GRUGrads, GRUOutput, GRUProblem, GRUWeights


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
