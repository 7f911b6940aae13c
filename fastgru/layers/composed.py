"""ComposedLayer: a layer of layers, without arithmetic or weights of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgru.dispatch import Explanation
from fastgru.layers.nested import Result
from fastgru.layers.sequence import SequenceLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgru.variables import Variable


class ComposedCall(NamedTuple):
    """One validated call of all parts.

    ``out`` is where what they give together goes, and ``given_out`` the user's array, which is
    returned.
    """

    parts: list[Any]
    out: Any = None
    given_out: Any = None


class ComposedLayer(SequenceLayer[Result], abstract=True):
    """A layer whose weights, losses and changes are those of its parts, in their order."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Any]:
        """The layers that it is made of."""

    def _layers_inside(self) -> list[Any]:
        return list(self.parts)

    @property
    def weights(self) -> list[Variable]:
        """The parts' weights, part after part."""
        return [v for part in self.parts for v in part.weights]

    @property
    def trainable_weights(self) -> list[Variable]:
        """The trainable ones among ``weights``."""
        return [v for p in self.parts for v in p.trainable_weights] if self.trainable else []

    @property
    def activity_losses(self) -> list[Any]:
        """Activity losses of the parts' last call."""
        return [loss for part in self.parts for loss in part.activity_losses]

    @property
    def time_major(self) -> bool:
        """Whether sequences are (T, B, ...)."""
        return self.parts[0].time_major

    def start(self, call: ComposedCall) -> None:
        """Build what is not built, and draw the dropout masks of a prepared call."""
        for part, its_call in zip(self.parts, call.parts, strict=True):
            part.start(its_call)
        self.built = True

    def take_weights(self, call: ComposedCall) -> None:
        """Take the weights that a started call runs with, of all parts."""
        for part, its_call in zip(self.parts, call.parts, strict=True):
            part.take_weights(its_call)

    def changes(self, call: ComposedCall) -> list[tuple[Any, str, Any]]:
        """Return the new states and losses of all parts."""
        pairs = zip(self.parts, call.parts, strict=True)
        return [change for part, its_call in pairs for change in part.changes(its_call)]

    def explanation(self, call: ComposedCall) -> Explanation:
        """Say which backends would serve the parts of a prepared call."""
        pairs = zip(self.parts, call.parts, strict=True)
        return Explanation.of_parts(
            [(part.name, part.explanation(its_call)) for part, its_call in pairs]
        )
