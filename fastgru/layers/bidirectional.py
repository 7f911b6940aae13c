"""Bidirectional: a layer run forwards and a twin run backwards, merged."""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import Any, ClassVar, Literal, Unpack, overload

import numpy as np

from fastgru.layers import options
from fastgru.layers.base import deserialize_layer, serialize_layer
from fastgru.layers.call import Arguments, Call, check_states
from fastgru.layers.cell import GRUCell
from fastgru.layers.composed import ComposedCall, ComposedLayer
from fastgru.layers.config import keras_config
from fastgru.layers.direction_pair import backward_pair, run_pair
from fastgru.layers.merging import merged_outputs, merged_shape, split_gradient
from fastgru.layers.nested import Array, Result, WithState, described, flatten, unstacked
from fastgru.layers.rnn import RNN
from fastgru.layers.stacked import cell_output_size
from fastgru.layers.tape import Gradients, Tape, check_tape, gradient_array
from fastgru.problem import check_out

_MERGE_MODES = ("concat", "sum", "mul", "ave", None)


class Bidirectional(ComposedLayer[Result]):
    """Run a layer in both directions of time, as `keras.layers.Bidirectional`.

    Parameters
    ----------
    layer : GRU or RNN
        Taken as a pattern: its config makes the forward layer and, with go_backwards turned
        round, the backward layer; its weights are not shared.
    merge_mode : {"concat", "sum", "mul", "ave", None}
        How the two outputs become one; None returns both.
    weights : list of array_like, optional
        Initial weights, the forward layer's first.
    backward_layer : GRU or RNN, optional
        Used as it is instead of the twin.
    dtype : str, optional
        The pattern's, and no other.
    name : str, optional
    trainable : bool
    **kwargs
        As for `RNN`, but for ``weights``.

    Notes
    -----
    With return_sequences the outputs of masked steps are zeros, and the backward half is turned
    back in time before merging (docs/semantics.md 9).
    """

    _checks: ClassVar[dict[str, options.Check]] = {"merge_mode": options.one_of(*_MERGE_MODES)}

    forward_layer: RNN[Any]
    backward_layer: RNN[Any]
    merge_mode: str | None

    @overload
    def __init__(
        self: Bidirectional[Array],
        layer: RNN[Array],
        merge_mode: Literal["concat", "sum", "mul", "ave"] = "concat",
        weights: Any = None,
        backward_layer: RNN[Array] | None = None,
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.ShapeKeywords],
    ) -> None: ...

    @overload
    def __init__(
        self: Bidirectional[tuple[Array, Array]],
        layer: RNN[Array],
        merge_mode: None,
        weights: Any = None,
        backward_layer: RNN[Array] | None = None,
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.ShapeKeywords],
    ) -> None: ...

    @overload
    def __init__(
        self: Bidirectional[WithState],
        layer: RNN[tuple[Array, Array]] | RNN[WithState],
        merge_mode: str | None = "concat",
        weights: Any = None,
        backward_layer: RNN[Any] | None = None,
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.ShapeKeywords],
    ) -> None: ...

    @overload
    def __init__(
        self: Bidirectional[Array | WithState],
        layer: RNN[Any],
        merge_mode: str | None = "concat",
        weights: Any = None,
        backward_layer: RNN[Any] | None = None,
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.ShapeKeywords],
    ) -> None: ...

    def __init__(
        self,
        layer: RNN[Any],
        merge_mode: str | None = "concat",
        weights: Any = None,
        backward_layer: RNN[Any] | None = None,
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        for what, given in (("layer", layer), ("backward_layer", backward_layer)):
            if not isinstance(given, RNN) and not (what == "backward_layer" and given is None):
                raise ValueError(f"{what}: expected a fastgru GRU or RNN layer, got {given!r}")
        self.merge_mode = merge_mode
        dtype = layer.dtype_policy if dtype is None else dtype
        super().__init__(name=name, dtype=dtype, trainable=trainable, **kwargs)
        self.forward_layer = layer.unbuilt_copy("forward_" + layer.name.removeprefix("forward_"))
        if backward_layer is None:
            name = "backward_" + layer.name.removeprefix("backward_")
            self.backward_layer = layer.unbuilt_copy(name)
            self.backward_layer.go_backwards = not layer.go_backwards
        else:
            self.backward_layer = backward_layer
        self._check_halves()
        for half in self.halves:
            half.use_cudnn = layer.use_cudnn
            half.zero_output_for_mask = half.return_sequences
        if weights is not None:
            values = list(weights)
            half_count = len(values) // 2
            if len(values) % 2 or not half_count:
                raise ValueError(
                    "weights: expected a list of as many arrays for the forward layer as for the "
                    f"backward layer, got {len(values)}"
                )
            self.forward_layer._initial_weights = values[:half_count]
            self.backward_layer._initial_weights = values[half_count:]
        self._made()

    def _check_halves(self) -> None:
        first, second = self.forward_layer, self.backward_layer
        if first.go_backwards == second.go_backwards:
            raise ValueError(
                "backward_layer: expected a go_backwards other than the layer's, got "
                f"{second.go_backwards} for both"
            )
        for name in ("stateful", "return_sequences", "return_state", "time_major", "dtype"):
            read = attrgetter("dtype_policy.name" if name == "dtype" else name)
            a, b = read(first), read(second)
            if a != b:
                raise ValueError(f"backward_layer: expected the layer's {name} = {a!r}, got {b!r}")
        sizes = [cell_output_size(half.cell) for half in self.halves]
        if self.merge_mode not in ("concat", None) and sizes[0] != sizes[1]:
            raise ValueError(
                f"backward_layer: merge_mode={self.merge_mode!r} expects as many units as the "
                f"layer's {sizes[0]}, got {sizes[1]}"
            )
        policy, wanted = self.dtype_policy.name, first.dtype_policy.name
        if policy != wanted:
            raise ValueError(f"dtype: expected the layer's {wanted}, got {policy}")

    # -- what the halves have in common ----------------------------------------------------

    @property
    def halves(self) -> tuple[RNN[Any], RNN[Any]]:
        """The forward and the backward layer."""
        return self.forward_layer, self.backward_layer

    parts = halves

    @property
    def return_sequences(self) -> bool:
        """Whether every output is returned; setting it sets it on both halves."""
        return self.forward_layer.return_sequences

    @return_sequences.setter
    def return_sequences(self, value: bool) -> None:
        for half in self.halves:
            half.return_sequences = value
            half.zero_output_for_mask = half.return_sequences

    @property
    def return_state(self) -> bool:
        """Whether the states are returned, the forward layer's first; can be set likewise."""
        return self.forward_layer.return_state

    @return_state.setter
    def return_state(self, value: bool) -> None:
        for half in self.halves:
            half.return_state = value

    @property
    def stateful(self) -> bool:
        """Whether the halves keep their states between calls."""
        return self.forward_layer.stateful

    @property
    def states(self) -> tuple[Any, ...] | None:
        """The states of both halves, the forward layer's first; None before the first call."""
        first, second = (half.states for half in self.halves)
        return (*first, *second) if first and second else None

    @property
    def state_size(self) -> list[Any]:
        """Sizes of the states, the forward layer's first."""
        return [size for half in self.halves for size in half.state_size]

    def build(self, input_shape: Any) -> None:
        """Create the weights of both halves for sequences of shape (B, T, I)."""
        initial = [half._initial_weights for half in self.halves]
        try:
            for half in self.halves:
                half.build(input_shape)
        except (TypeError, ValueError):
            if not self.built:
                self.forget()
                for half, weights in zip(self.halves, initial, strict=True):
                    half._initial_weights = weights
            raise
        self.built = True

    def get_initial_state(self, batch_size: int | None) -> list[Any]:
        """Return the states a call starts from by default."""
        return [s for half in self.halves for s in half.get_initial_state(batch_size)]

    def reset_state(self) -> None:
        """Set the states of both halves to zero; AttributeError unless stateful, as in Keras."""
        self.reset_states()

    def reset_states(self, states: Any = None) -> None:
        """Set the states of both halves; see `RNN.reset_states`.

        Parameters
        ----------
        states : list of array_like, the forward layer's first; None means zeros
        """
        first, second = self.halves
        if states is None:
            first.reset_states()
            second.reset_states()
            return
        if not self.stateful:
            first.reset_states(states)  # raises AttributeError
        count = len(first.state_size)
        if not isinstance(states, (list, tuple)) or len(states) != 2 * count:
            raise ValueError(
                f"states: expected a list of {2 * count}, the forward layer's first, got "
                f"{described(states)}"
            )
        before = None if first.states is None else [v.value for v in flatten(first.states)]
        first.reset_states(list(states[:count]))
        try:
            second.reset_states(list(states[count:]))
        except ValueError:
            first.reset_states(before)  # all or nothing
            raise

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:
        """Return the shape of the outputs, and with return_state of the states."""
        shapes = [half.compute_output_shape(sequences_shape) for half in self.halves]
        (y, *states), (y_rev, *states_rev) = shapes if self.return_state else [(s,) for s in shapes]
        if self.merge_mode is None:
            return (y, y_rev, *states, *states_rev) if self.return_state else [y, y_rev]
        y = merged_shape(self.merge_mode, y, y_rev)
        return (y, *states, *states_rev) if self.return_state else y

    def compute_mask(self, inputs: Any = None, mask: Any = None) -> Any:
        """Return the mask of the outputs: ``mask`` itself for sequences, else None."""
        one = mask if self.return_sequences else None
        masks: Any = (one, one) if self.merge_mode is None else one
        if self.return_state:
            states = (None,) * len(self.state_size)
            return (*masks, *states) if self.merge_mode is None else (masks, *states)
        return masks

    # -- the call --------------------------------------------------------------------------

    def complete(self, call: ComposedCall) -> Any:
        """Run a prepared call and return what the user gets."""
        done = self._run(call)
        outputs = [
            half.finish(part, y, states)
            for half, part, (y, states, _) in zip(self.halves, call.parts, done, strict=True)
        ]
        return self._merge(outputs, call)[0]

    def _run(self, call: ComposedCall, save: bool = False, keep_gates: bool = True) -> list[Any]:
        """Return what `RNN.run` gives, of each half."""
        return run_pair(call.parts, save, keep_gates) or [
            half.run(part, save, keep_gates)
            for half, part in zip(self.halves, call.parts, strict=True)
        ]

    def feed(self, call: ComposedCall, sequences: np.ndarray) -> None:
        """Give a prepared call other sequences of the same shape."""
        first, second = call.parts
        self.forward_layer.feed(first, sequences)
        second.x = first.x

    def forward_prepared(self, call: ComposedCall, keep_gates: bool) -> tuple[Any, Tape]:
        """Run `forward` on a prepared call."""
        first, second = call.parts
        first.keep_inputs()
        second.keep_inputs(first.x)
        outputs, tapes = [], []
        for half, part, ran in zip(
            self.halves, call.parts, self._run(call, True, keep_gates), strict=True
        ):
            output, tape = half.record(part, *ran)
            outputs.append(output)
            tapes.append(tape)
        result, pair = self._merge(outputs, call)
        factors = [y.copy() for y in pair] if self.merge_mode == "mul" else None
        shapes = [y.shape for y in pair]
        return result, Tape(self, tapes=tapes, factors=factors, shapes=shapes, x=first.x)

    def prepare(self, arguments: Arguments) -> ComposedCall:
        """Validate a call for both halves before either does any work."""
        initial_state = arguments.initial_state
        starts: list[Any] = [None, None]
        if initial_state is not None:
            starts = self._of_halves(initial_state, "initial_state")
        parts = [
            half.prepare(arguments.of_part(arguments.sequences, start))
            for half, start in zip(self.halves, starts, strict=True)
        ]
        parts[1].x = parts[0].x  # one array, where each had made its own
        return ComposedCall(parts, self._check_out(parts[0], arguments.out), arguments.out)

    def _of_halves(self, states: Any, what: str) -> list[Any]:
        """Return the states of each half, or raise."""
        count = len(self.forward_layer.state_size)
        if count == 1:  # a stack in each half is no module of PyTorch, and has another order
            states = unstacked(states, 2)
        if not isinstance(states, (list, tuple)) or len(states) != 2 * count:
            raise ValueError(
                f"{what}: expected a list of {2 * count} states, the forward layer's first, then "
                f"the backward layer's, got {described(states)}"
            )
        return [list(states[:count]), list(states[count:])]

    def _check_out(self, call: Call, out: Any) -> Any:
        if out is None:
            return None
        if self.merge_mode is None:
            raise ValueError("out: merge_mode=None gives two outputs; out= takes one, so leave it")
        merged: Any = self.compute_output_shape(call.shape)
        shape = merged[0] if self.return_state else merged
        return check_out(out, shape, self._dtype, "of the output", call.x)

    def _merge(
        self, outputs: list[Any], call: ComposedCall
    ) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
        """Return what the user gets, and the two outputs, both in input order of time."""
        states: tuple[Any, ...] = ()
        out = call.out
        if self.return_state:
            states = (*outputs[0][1:], *outputs[1][1:])
            outputs = [outputs[0][0], outputs[1][0]]
        y, y_rev = outputs
        if self.return_sequences:
            y_rev = np.flip(y_rev, axis=0 if self.time_major else 1)
        if self.merge_mode is None:
            return (y, y_rev, *states), (y, y_rev)
        merged = merged_outputs(self.merge_mode, y, y_rev, out)
        if out is not None:
            merged = call.given_out
        return ((merged, *states) if states else merged), (y, y_rev)

    def stream_cells(self) -> list[GRUCell]:
        """Raise the ValueError that says why there is no stream."""
        raise ValueError(
            f"{self.name}: a stream gives the output of each step as it comes, and the "
            "backward half needs the end of the sequence first; call the layer on whole "
            "sequences"
        )

    # -- backward --------------------------------------------------------------------------

    def backward(self, tape: Tape, output_gradients: Any, state_gradients: Any = None) -> Gradients:
        """Return the gradients; see `RNN.backward`.

        Parameters
        ----------
        tape : Tape
            From `forward`.
        output_gradients : array_like in the outputs' shape, or two with merge_mode=None
        state_gradients : list as the states, or None
        """
        kept = self.check_tape(tape)
        dy, dy_rev = self._split(kept, output_gradients)
        if self.return_sequences:
            axis = 0 if self.time_major else 1
            dy_rev = None if dy_rev is None else np.flip(dy_rev, axis=axis)
        dstates: list[Any] = [None, None]
        if state_gradients is not None:
            batch = kept["shapes"][0][1 if self.time_major and self.return_sequences else 0]
            like = kept["x"]
            dstates = self._of_halves(state_gradients, "state_gradients")
            for half, given in zip(self.halves, dstates, strict=True):
                check_states(half, given, batch, "state_gradients", like)
        tape.spend()
        first, second = self._backward(kept["tapes"], (dy, dy_rev), dstates)
        return Gradients(
            first.inputs if second.inputs is None else first.inputs + second.inputs,
            [*flatten(first.initial_state), *flatten(second.initial_state)],
            [*first.weights, *second.weights] if self.trainable else [],
        )

    def _backward(self, tapes: list[Tape], dys: Any, dstates: list[Any]) -> list[Gradients]:
        """Return the gradients of each half, from one call of the backend where forward was one."""
        parts = list(zip(self.halves, tapes, dys, dstates, strict=True))
        records = [tape.kept["records"][0] for tape in tapes]
        if not records[0].pair:
            return [half.backward(tape, d, ds) for half, tape, d, ds in parts]
        given = [half.output_gradients(tape.kept, d, ds) for half, tape, d, ds in parts]
        for tape in tapes:
            tape.spend()
        done = backward_pair(records, [dy for dy, _ in given], [states[0] for _, states in given])
        return [half.gradients(*grads) for half, grads in zip(self.halves, done, strict=True)]

    def check_tape(self, tape: Tape) -> dict[str, Any]:
        """Return what the tape kept; ValueError unless `backward` can run on it."""
        kept = check_tape(tape, self)
        for half, part in zip(self.halves, kept["tapes"], strict=True):
            half.check_tape(part)
        return kept

    def _split(self, kept: dict[str, Any], gradients: Any) -> tuple[Any, Any]:
        """Return the gradients of the two outputs, in input order of time."""
        shapes, like = kept["shapes"], kept["x"]
        if self.merge_mode is None:
            if gradients is None:
                return None, None
            if not isinstance(gradients, (list, tuple)) or len(gradients) != 2:
                raise ValueError(
                    "output_gradients: merge_mode=None: expected a list of two, one for each "
                    f"output, got {described(gradients)}"
                )
            first, second = (
                gradient_array(g, shape, like, f"output_gradients[{i}]", "of the output")
                for i, (g, shape) in enumerate(zip(gradients, shapes, strict=True))
            )
            return first, second
        wanted = merged_shape(self.merge_mode, *shapes)
        d = gradient_array(gradients, wanted, like, "output_gradients", "of the output")
        if d is None:
            return None, None
        return split_gradient(self.merge_mode, d, shapes[0][-1], kept["factors"])

    def _shown_first(self) -> list[str]:
        first, second = (half.get_config() for half in self.halves)
        for config in (first, second):
            for name in ("name", "go_backwards"):
                config.pop(name)
            config.get("cell", {}).get("config", {}).pop("name", None)
        shown = [repr(self.forward_layer)]
        return shown if first == second else [*shown, f"backward_layer={self.backward_layer!r}"]

    # -- config ----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data that Keras 3 reads too."""
        return {
            **super().get_config(),
            "merge_mode": self.merge_mode,
            "layer": serialize_layer(self.forward_layer),
            "backward_layer": serialize_layer(self.backward_layer),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Bidirectional:
        """Build a layer from a config of this library, of Keras 3 or of Keras 2."""
        config = keras_config(copy.deepcopy(config), custom_objects, needs="layer")
        config["layer"] = deserialize_layer(config["layer"], custom_objects)
        if config.get("backward_layer") is not None:
            config["backward_layer"] = deserialize_layer(config["backward_layer"], custom_objects)
        return cls(**config)
