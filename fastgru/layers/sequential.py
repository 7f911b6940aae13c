"""Sequential: recurrent layers applied in order."""

from __future__ import annotations

from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from fastgru.layers import options
from fastgru.layers.base import deserialize_layer, serialize_layer
from fastgru.layers.bidirectional import Bidirectional
from fastgru.layers.call import Arguments
from fastgru.layers.cell import GRUCell
from fastgru.layers.composed import ComposedCall, ComposedLayer
from fastgru.layers.config import keras_config
from fastgru.layers.nested import Array, Result, WithState, described, flatten
from fastgru.layers.rnn import RNN
from fastgru.layers.sequence import SequenceLayer
from fastgru.layers.tape import Gradients, Tape, check_tape

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sequential(ComposedLayer[Result]):
    """Layers applied in order, each to the sequences the one before it returned.

    Parameters
    ----------
    layers : list of GRU, RNN or Bidirectional
        All but the last with return_sequences=True and return_state=False; all of one dtype and
        one ``time_major``.
    name : str, optional
    trainable : bool
    **kwargs
        As for `RNN`.

    Notes
    -----
    Masks pass on as Keras passes them: unchanged to the next layer, also after go_backwards.
    """

    layers: list[Any]

    @overload
    def __init__(
        self: Sequential[Array],
        layers: Sequence[SequenceLayer[Array]],
        *,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    @overload
    def __init__(
        self: Sequential[Array | WithState | tuple[Array, Array]],
        layers: Sequence[SequenceLayer[Any]],
        *,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    def __init__(
        self, layers: Any, *, name: str | None = None, trainable: bool = True, **kwargs: Any
    ) -> None:
        layers = list(layers)
        if not layers:
            raise ValueError("layers: expected at least one layer, got an empty list")
        for index, layer in enumerate(layers):
            if not isinstance(layer, (RNN, Bidirectional)):
                raise ValueError(
                    f"layers[{index}]: expected GRU, RNN or Bidirectional, got {layer!r}"
                )
            for what in ("dtype", "time_major"):
                read = attrgetter("dtype_policy.name" if what == "dtype" else what)
                first, here = read(layers[0]), read(layer)
                if first != here:
                    raise ValueError(
                        f"layers[{index}]: expected {what} = {first!r} as the first layer's, "
                        f"got {here!r}"
                    )
            if layer is not layers[-1]:
                one_output = not layer.return_state and getattr(layer, "merge_mode", "") is not None
                if not layer.return_sequences or not one_output:
                    raise ValueError(
                        f"layers[{index}]: expected return_sequences=True, return_state=False and "
                        "one merged output, since another layer follows; got return_sequences="
                        f"{layer.return_sequences}, return_state={layer.return_state}"
                    )
        if len({id(layer) for layer in layers}) != len(layers):
            raise ValueError("layers: expected different layers, got one of them twice")
        self.layers = layers
        super().__init__(name=name, dtype=layers[0].dtype_policy, trainable=trainable, **kwargs)
        self.built = all(layer.built for layer in layers)
        self._made()

    @property
    def parts(self) -> list[Any]:
        """The layers, in order."""
        return self.layers

    @property
    def states(self) -> list[Any]:
        """Each layer's states."""
        return [layer.states for layer in self.layers]

    def build(self, input_shape: Any) -> None:
        """Create the weights of all layers for sequences of shape (B, T, I)."""
        shape = input_shape
        for layer in self.layers:
            layer.build(shape)
            shape = _first(layer, layer.compute_output_shape(shape))
        self._set_initial_weights()
        self.built = True

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:
        """Return the last layer's output shape."""
        shape = sequences_shape
        for layer in self.layers[:-1]:
            shape = layer.compute_output_shape(shape)
        return self.layers[-1].compute_output_shape(shape)

    def compute_mask(self, inputs: Any = None, mask: Any = None) -> Any:
        """Return the mask of the last layer's outputs."""
        for layer in self.layers[:-1]:
            mask = layer.compute_mask(inputs, mask)
        return self.layers[-1].compute_mask(inputs, mask)

    def get_initial_state(self, batch_size: int | None) -> list[Any]:
        """Return the states a call starts from by default, one entry per layer."""
        return [layer.get_initial_state(batch_size) for layer in self.layers]

    def reset_state(self) -> None:
        """Set the states of the stateful layers to zero."""
        for layer in self.layers:
            if layer.stateful and layer.states is not None:
                layer.reset_state()

    def reset_states(self) -> None:
        """Set the states of the stateful layers to zero; AttributeError if there is none."""
        if not any(layer.stateful for layer in self.layers):
            raise AttributeError(f"{self.name}: none of its layers is stateful")
        for layer in self.layers:
            if layer.stateful and layer.states is None:
                layer.reset_states()  # raises: the batch size is not known yet
        self.reset_state()

    def prepare(self, arguments: Arguments) -> ComposedCall:
        """Validate a call for every layer before any of them does any work."""
        initial_state = arguments.initial_state
        starts: list[Any] = [None] * len(self.layers)
        if initial_state is not None:
            initial_state = self._per_layer(initial_state)
            if not isinstance(initial_state, (list, tuple)) or len(initial_state) != len(starts):
                raise ValueError(
                    f"initial_state: expected a list of {len(starts)}, one entry per layer "
                    f"(None for zeros), got {described(initial_state)}"
                )
            starts = list(initial_state)
        calls: list[Any] = []
        x = arguments.sequences
        for layer, start in zip(self.layers, starts, strict=True):
            out = arguments.out if layer is self.layers[-1] else None
            calls.append(layer.prepare(arguments.of_part(x, start, out)))
            # What the next layer will see is not there yet; its shape is, and is checked.
            if layer is not self.layers[-1]:
                call = calls[-1]
                first = call.parts[0] if isinstance(call, ComposedCall) else call
                shape = _first(layer, layer.compute_output_shape(first.shape))
                x = np.broadcast_to(np.zeros_like(first.x, order="C", shape=()), shape)
        return ComposedCall(calls)

    def _per_layer(self, initial_state: Any) -> Any:
        """Return all states in one array, as PyTorch has them, as one entry for each layer."""
        if isinstance(initial_state, (list, tuple)) or getattr(initial_state, "ndim", 0) != 3:
            return initial_state
        counts = [len(flatten(layer.get_initial_state(1))) for layer in self.layers]
        if initial_state.shape[0] != sum(counts):
            return initial_state
        # A part of the array, so that each layer decides whether it has such states.
        return [
            initial_state[end - count : end]
            for count, end in zip(counts, accumulate(counts), strict=True)
        ]

    def complete(self, call: ComposedCall) -> Any:
        """Run the layers' prepared calls in order; return what the last one returns."""
        x: Any = None
        for layer, its_call in zip(self.layers, call.parts, strict=True):
            if x is not None:
                layer.feed(its_call, x)
            x = layer.complete(its_call)
        return x

    def forward_prepared(self, call: ComposedCall, keep_gates: bool) -> tuple[Any, Tape]:
        """Run `forward` on the layers' prepared calls in order."""
        x: Any = None
        tapes = []
        for layer, its_call in zip(self.layers, call.parts, strict=True):
            if x is not None:
                layer.feed(its_call, x)
            x, tape = layer.forward_prepared(its_call, keep_gates)
            tapes.append(tape)
        return x, Tape(self, tapes=tapes)

    def backward(self, tape: Tape, output_gradients: Any, state_gradients: Any = None) -> Gradients:
        """Return the gradients; ``initial_state`` has one entry per layer.

        Parameters
        ----------
        tape, output_gradients, state_gradients : as for `RNN.backward`, the last layer's
        """
        tapes = check_tape(tape, self)["tapes"]
        for layer, part in zip(self.layers, tapes, strict=True):
            layer.check_tape(part)
        d: Any = output_gradients
        dstates: Any = state_gradients
        states: list[Any] = []
        weights: list[np.ndarray] = []
        for layer, part in zip(reversed(self.layers), reversed(tapes), strict=True):
            grads = layer.backward(part, d, dstates)
            d, dstates = grads.inputs, None
            states.insert(0, grads.initial_state)
            weights[:0] = grads.weights
        tape.spend()
        return Gradients(d, states, weights if self.trainable else [])

    def stream_cells(self) -> list[GRUCell]:
        """Return the cells of a stream, or raise ValueError that says why there is none."""
        return [cell for layer in self.layers for cell in layer.stream_cells()]

    def feed(self, call: ComposedCall, sequences: Any) -> None:
        """Give the layers' started calls other sequences of the same shape."""
        self.layers[0].feed(call.parts[0], sequences)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "layers": [serialize_layer(layer) for layer in self.layers],
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Sequential:
        """Build a model from a config of this library or of Keras, recurrent layers only."""
        config = keras_config(config, custom_objects, needs="layers")
        layers = [
            deserialize_layer(c, custom_objects)
            for c in config["layers"]
            if not (isinstance(c, dict) and c.get("class_name") == "InputLayer")
        ]
        kept = {key: config[key] for key in ("name", "trainable") if key in config}
        return cls(layers, **kept)


def _first(layer: Any, shape: Any) -> Any:
    """Return the shape of y from a compute_output_shape with or without states."""
    return shape[0] if layer.return_state or isinstance(shape, list) else shape
