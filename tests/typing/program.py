"""A user's program, checked by mypy as users check theirs: against the installed package, strictly.

It is not run. ``type: ignore`` marks what must be refused: mypy complains where it is not.
"""

from typing import Any, assert_type

import numpy as np

import fastgru
from fastgru import GRU, Bidirectional, GRUCell, Sequential, StackedRNNCells, Variable
from fastgru.layers.nested import Array
from fastgru.layers.stream import Stream


class Model:
    """Layers as attributes, called, streamed, trained and kept."""

    def __init__(self, units: int) -> None:
        self.encoder = Bidirectional(GRU(units, return_sequences=True), merge_mode="sum")
        self.decoder = fastgru.RNN(StackedRNNCells([GRUCell(units), GRUCell(3)]))
        self.both = Sequential([self.encoder, self.decoder])

    def __call__(self, x: np.ndarray[Any, Any], lengths: list[int]) -> Any:
        """Run with padded rows."""
        return self.decoder(self.encoder(x, lengths=lengths), lengths=lengths)

    def train(self, x: np.ndarray[Any, Any], target: np.ndarray[Any, Any], rate: float) -> None:
        """Take one step down the gradient."""
        y, tape = self.both.forward(x)
        gradients = self.both.backward(tape, output_gradients=y - target)
        assert_type(self.both.trainable_weights, list[Variable])
        for weight, gradient in zip(self.both.trainable_weights, gradients.weights, strict=True):
            weight.assign_sub(rate * gradient)

    def steps(self, sequence: np.ndarray[Any, Any]) -> float:
        """Advance a stream of one row."""
        stream = self.decoder.stream(1)
        y = np.zeros((1, 3))
        for x in sequence:
            y = stream.step(x[None])
        return float(y[0, 0])


def results(x: Array, cell: GRUCell, path: str) -> None:
    """What calls give, by the options of the layer."""
    layer = GRU(4, "relu", return_sequences=True, dropout=0.1, input_shape=(None, 3))
    assert_type(layer, GRU[Array])
    assert_type(layer(x), Array)
    assert_type(layer.call(x), Array)
    assert_type(layer.forward(x)[0], Array)
    y, state = GRU(4, return_state=True)(x)
    assert_type(y, Array)
    assert_type(state, Array)
    (y, state), tape = GRU(4, return_state=True).forward(x)
    assert_type(layer.backward(tape, y).weights, list[Array])
    assert_type(layer.inner_loop(x, [state], None), tuple[Array, Array, list[Any]])
    flag = len(path) > 3
    assert_type(GRU(4, return_state=flag)(x), Array | tuple[Array, Array])
    assert_type(Bidirectional(layer)(x), Array)
    assert_type(Bidirectional(layer, merge_mode=None)(x), tuple[Array, Array])
    assert_type(Bidirectional(GRU(3, return_state=True))(x)[0], Array)
    assert_type(fastgru.RNN([cell, GRUCell(3)])(x), Array)
    assert_type(fastgru.RNN(cell, return_state=True)(x)[0], Array)
    assert_type(Sequential([layer, GRU(2)])(x), Array)
    assert_type(cell(x[:, 0], state), tuple[Array, Array])
    assert_type(cell(x[:, 0], [state]), tuple[Array, list[Array]])
    assert_type(layer.stream(3).step(x[:, 0]), Array)
    assert_type(layer.stream(), Stream)
    loaded = fastgru.load(path)
    out = loaded(x)
    print(out[0] if isinstance(out, tuple) else out, loaded.name, loaded.built)


def attributes(layer: GRU[Array]) -> None:
    """Constructor's arguments are attributes, of their types."""
    assert_type(layer.units, int)
    assert_type(layer.return_sequences, bool)
    assert_type(layer.dropout, float)
    assert_type(layer.reset_after, bool)
    assert_type(layer.kernel, Variable | None)
    assert_type(layer.name, str)
    assert_type(layer.path, str)
    assert_type(layer.compute_dtype, str)
    assert_type(layer.trainable_variables, list[Variable])
    layer.return_sequences = True
    layer.stateful = False
    print(layer.activation, layer.kernel_initializer, layer.states, layer.cell.units)
    print(layer.retrun_sequences)  # type: ignore[attr-defined]
    GRU(4, retrun_sequences=True)  # type: ignore[call-overload]


def any_layer(layer: GRU, x: Array) -> Array:
    """``GRU`` alone is a type: of a layer with any result."""
    assert_type(fastgru.gates.to_keras("torch", x, x), tuple[Array, Array, Array | None])
    y: Array = layer(x)
    return y


def files(path: str) -> dict[str, Any]:
    """Read and write models."""
    layers = fastgru.io.from_keras(path)
    for name, layer in layers.items():
        fastgru.save(layer, f"{name}.safetensors")
    return {
        "own": fastgru.load(path),
        "torch": fastgru.io.from_torch(path, prefix="encoder"),
        **layers,
    }


def functions(x: np.ndarray[Any, Any], cell: GRUCell) -> None:
    """Use the functions, settings and constants."""
    kernel, recurrent_kernel, bias = cell.get_weights()
    with fastgru.use_backend("reference"), fastgru.num_threads(1):
        y, state = fastgru.gru(x, kernel, recurrent_kernel, bias, return_sequences=True)
        print(fastgru.gru_cell(x[:, 0], state, kernel, recurrent_kernel, bias), y)
    assert_type(fastgru.get_num_threads(), int)
    assert_type(fastgru.__version__, str)
    print(fastgru.activations.tanh(x), fastgru.initializers.get("zeros"))
    print(cell.explain(x))  # type: ignore[attr-defined]
    try:
        GRU("four")  # type: ignore[call-overload]
        fastgru.set_num_threads("all")  # type: ignore[arg-type]
        fastgru.grux(x)  # type: ignore[attr-defined]
        fastgru.io.from_tensorflow(x)  # type: ignore[attr-defined]
    except (TypeError, ValueError, fastgru.BackendError):
        pass
