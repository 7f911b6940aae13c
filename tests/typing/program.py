"""A user's program, checked by mypy as users check theirs: against the installed package, strictly.

It is not run. ``type: ignore`` marks what must be refused: mypy complains where it is not.
"""

from typing import Any, assert_type

import numpy as np

import fastgru
from fastgru import GRU, Bidirectional, GRUCell, Sequential, StackedRNNCells, Variable


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
        for x in sequence:
            y = stream.step(x[None])
        return float(y[0, 0])


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
        GRU("four")  # type: ignore[arg-type]
        fastgru.set_num_threads("all")  # type: ignore[arg-type]
        fastgru.grux(x)  # type: ignore[attr-defined]
        fastgru.io.from_tensorflow(x)  # type: ignore[attr-defined]
    except (TypeError, ValueError, fastgru.BackendError):
        pass
