"""Layers as ONNX models: operator GRU, and nodes that turn its outputs into Keras' outputs.

All runtimes have the time-major operator, so this uses it and puts Transpose nodes before and after
a batch-major layer. In the graph, sequences are (T, B, ...) and states (B, H).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru import gates
from fastgru.io.onnx_activations import to_names
from fastgru.io.onnx_graph import Names, import_onnx
from fastgru.io.replacing import expect_replaceable, replacing
from fastgru.layers import RNN, Bidirectional, GRUCell, Sequential

if TYPE_CHECKING:
    from os import PathLike

# From 2021. Later versions of the operator add only bfloat16; earlier ones lack its layout.
OPSET, IR_VERSION = 14, 7
MOST_BYTES = (1 << 31) - (1 << 20)  # of weights, since protobuf cannot write messages of 2 GB

_DTYPES = {"float16": 10, "float32": 1, "float64": 11, "int32": 6}  # TensorProto.DataType


def to_onnx(
    layer: Any, path: str | PathLike[str], *, lengths: bool = False, initial_state: bool = False
) -> None:
    """Write a layer as an ONNX model with the same outputs as the layer's call.

    Parameters
    ----------
    layer : GRU, RNN of one GRUCell, Bidirectional or Sequential
        Built. Dropout, regularizers and constraints belong to training and are not written.
    path : path
    lengths : bool
        Give the model an input "lengths", int32 (B,), with the meaning it has in the layer's call.
    initial_state : bool
        Give the model an input "initial_state" (B, H). If the layer has several states, the inputs
        are "initial_state_0", "initial_state_1", ... in the order of the call's list.

    Raises
    ------
    ValueError
        The layer is not built, is stateful, has an activation that ONNX's GRU does not have, is of
        bfloat16, or is larger than protobuf can write; or there is a link, a folder, a device or a
        pipe at the path. No file is written then.
    TypeError
        The layer is of another class.
    ImportError
        The package onnx is not installed.

    Notes
    -----
    The model's input is "sequences", (B, T, I) or with ``time_major`` (T, B, I). Its outputs are
    "y" and, with ``return_state``, "state"; if there are several, "y_0", "y_1", "state_0", ...
    """
    onnx = import_onnx()
    expect_replaceable(path)
    layers = layer.layers if isinstance(layer, Sequential) else [layer]
    for one in layers:
        _check(one)
    writer = _Writer(onnx, layer.dtype)
    swapped = not layers[0].time_major
    axes = ["B", "T"] if swapped else ["T", "B"]
    x = writer.input("sequences", [*axes, _halves(layers[0])[0].cell.kernel.shape[0]])
    x = writer.op("Transpose", x, perm=[1, 0, 2]) if swapped else x
    valid = writer.input("lengths", ["B"], np.int32) if lengths else ""
    halves = [half for one in layers for half in _halves(one)]
    starts = [""] * len(halves)
    if initial_state:
        names = _numbered("initial_state", len(halves))
        starts = [writer.input(n, ["B", h.cell.units]) for n, h in zip(names, halves, strict=True)]

    outputs: list[str] = [x]
    states: list[str] = []
    for one in layers:
        mine = [starts.pop(0) for _ in _halves(one)]
        outputs, states = _layer(writer, one, outputs[0], valid, mine)
    last = layers[-1]
    if last.return_sequences and swapped:
        outputs = [writer.op("Transpose", y, perm=[1, 0, 2]) for y in outputs]
    states = states if last.return_state else []
    shapes = last.compute_output_shape((*axes, None))
    shapes = list(shapes) if states or len(outputs) > 1 else [shapes]
    writer.output("y", outputs, shapes)
    writer.output("state", states, shapes[len(outputs) :])
    data = writer.model().SerializeToString()
    with replacing(path) as file:
        file.write(data)


def _check(layer: Any) -> None:
    """Raise unless ONNX can express the layer."""
    if not isinstance(layer, (RNN, Bidirectional)):
        raise TypeError(
            f"layer: expected GRU, RNN, Bidirectional or Sequential, got {type(layer).__name__}"
        )
    for half in _halves(layer):
        if not isinstance(half.cell, GRUCell):
            raise TypeError(
                f"{layer.name}: expected an RNN of one GRUCell, got {type(half.cell).__name__}"
            )
        if not half.cell.built:
            raise ValueError(
                f"{layer.name}: it has no weights yet; call build(input_shape) or the layer first"
            )
        to_names([half.cell.recurrent_activation, half.cell.activation])
    if layer.stateful:
        raise ValueError(
            f"{layer.name}: a model keeps no state between runs; set stateful=False and "
            "return_state=True, and write the model with initial_state=True"
        )
    if layer.dtype not in _DTYPES:
        raise ValueError(
            f"{layer.name}: expected dtype float16, float32 or float64, got {layer.dtype}"
        )


def _halves(layer: Any) -> tuple[Any, ...]:
    return layer.halves if isinstance(layer, Bidirectional) else (layer,)


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


def _layer(
    writer: _Writer, layer: Any, x: str, lengths: str, starts: list[str]
) -> tuple[list[str], list[str]]:
    """Write a layer for x (T, B, I); return its outputs and its halves' states."""
    halves = _halves(layer)
    outputs: list[str] = []
    states: list[str] = []
    cells = [half.cell for half in halves]
    one_node = len({(c.units, c.reset_after, c.use_bias) for c in cells}) == 1
    if one_node and [h.go_backwards for h in halves] == [False, True]:
        parts = _operator(writer, layer.name, halves, x, lengths, starts)
    else:
        parts = [
            part
            for half, start in zip(halves, starts, strict=True)
            for part in _operator(writer, half.name, (half,), x, lengths, [start])
        ]
    for half, start, (y, y_h) in zip(halves, starts, parts, strict=True):
        outputs.append(_output(writer, half, y, y_h, lengths, half is not halves[0]))
        states.append(_if_any_step(writer, lengths, y_h, start) if lengths and start else y_h)
    if len(halves) == 1 or layer.merge_mode is None:
        return outputs, states
    if layer.merge_mode == "concat":
        return [writer.op("Concat", *outputs, axis=-1)], states
    merged = writer.op("Mul" if layer.merge_mode == "mul" else "Add", *outputs)
    if layer.merge_mode == "ave":
        merged = writer.op("Div", merged, writer.number(2))
    return [merged], states


def _operator(
    writer: _Writer, name: str, halves: Any, x: str, lengths: str, starts: list[str]
) -> list[tuple[str, str]]:
    """Write one GRU node with a direction for each half.

    Returns
    -------
    list of (y, y_h), one for each half: (T, B, H) in input order, and (B, H).
    """
    cell = halves[0].cell
    formula = f"onnx_lbr{cell.reset_after:d}"
    weights = [gates.from_keras(formula, *half.get_weights()) for half in halves]
    arrays = [np.stack(directions) for directions in zip(*weights, strict=True)]
    inputs = [x, *(writer.constant(f"{name}.{w}", a) for w, a in zip("WRB", arrays, strict=False))]
    inputs += [""] * (4 - len(inputs)) + [lengths]
    if starts[0]:
        parts = [writer.op("Unsqueeze", start, writer.integers(0)) for start in starts]
        inputs.append(parts[0] if len(parts) == 1 else writer.op("Concat", *parts, axis=0))
    functions = [f for h in halves for f in (h.cell.recurrent_activation, h.cell.activation)]
    names, alphas, betas = to_names(functions)
    reverse = "reverse" if halves[0].go_backwards else "forward"
    y, y_h = writer.node(
        "GRU",
        name,
        inputs,
        ["Y", "Y_h"],
        hidden_size=cell.units,
        linear_before_reset=int(cell.reset_after),
        direction=reverse if len(halves) == 1 else "bidirectional",
        activations=names,
        **({"activation_alpha": alphas} if alphas else {}),
        **({"activation_beta": betas} if betas else {}),
    )
    return [
        (
            writer.op("Gather", y, writer.integer(d), axis=1),
            writer.op("Gather", y_h, writer.integer(d), axis=0),
        )
        for d in range(len(halves))
    ]


def _output(writer: _Writer, half: Any, y: str, y_h: str, lengths: str, back_half: bool) -> str:
    """Write the output of one direction, y (T, B, H) or its last step (B, H).

    Beyond a row's length the operator's Y is zeros. Keras' outputs there are zeros too if time runs
    backwards, since these steps come first. Forwards they repeat the last valid output, unless
    zero_output_for_mask is set.
    """
    repeats = lengths and not half.go_backwards and not half.zero_output_for_mask
    zeros = writer.number(0)
    if not half.return_sequences:
        if not lengths:
            return y_h
        if half.go_backwards or repeats:
            return _if_any_step(writer, lengths, y_h, zeros)
        whole = writer.op("Equal", lengths, _steps(writer, y))
        return writer.op("Where", writer.op("Unsqueeze", whole, writer.integers(1)), y_h, zeros)
    if repeats:
        last = _if_any_step(writer, lengths, y_h, zeros)
        times = writer.op("Range", writer.int32(0), _steps(writer, y), writer.int32(1))
        valid = writer.op("Less", writer.op("Unsqueeze", times, writer.integers(1)), lengths)
        y = writer.op("Where", writer.op("Unsqueeze", valid, writer.integers(2)), y, last)
    # The operator has input order, Keras has processing order. Bidirectional reverses the outputs
    # of its second half once more.
    if half.go_backwards != back_half:
        first, beyond, axis, step = (writer.integers(n) for n in (-1, -(1 << 62), 0, -1))
        y = writer.op("Slice", y, first, beyond, axis, step)
    return y


def _steps(writer: _Writer, y: str) -> str:
    """Write T, int32 like the lengths."""
    steps = writer.op("Gather", writer.op("Shape", y), writer.integer(0), axis=0)
    return writer.op("Cast", steps, to=_DTYPES["int32"])


def _if_any_step(writer: _Writer, lengths: str, value: str, otherwise: str) -> str:
    """Write value (B, H) for rows with a step, ``otherwise`` for rows without one."""
    some = writer.op("Greater", lengths, writer.int32(0))
    return writer.op("Where", writer.op("Unsqueeze", some, writer.integers(1)), value, otherwise)


class _Writer:
    """A graph that is being built; a value is the string of its name."""

    def __init__(self, onnx: Any, dtype: str) -> None:
        self._onnx, self._dtype = onnx, np.dtype(dtype)
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._values, self._named = Names(), Names()  # of values and of nodes

    def _value(self, stem: str) -> str:
        """Return a name that no value has yet."""
        return self._values.add(stem)

    def input(self, name: str, shape: list[Any], dtype: Any = None) -> str:
        """Add an input, by default of the layer's dtype."""
        number = _DTYPES[np.dtype(dtype or self._dtype).name]
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, number, shape))
        return self._value(name)

    def output(self, name: str, values: list[str], shapes: list[Any]) -> None:
        """Make values the outputs called ``name``."""
        number = _DTYPES[self._dtype.name]
        for called, value, shape in zip(_numbered(name, len(values)), values, shapes, strict=False):
            output = self.node("Identity", called, [value], [called])[0]
            self._outputs.append(self._onnx.helper.make_tensor_value_info(output, number, shape))

    def node(
        self, kind: str, name: str, inputs: Any, outputs: list[str], **attributes: Any
    ) -> list[str]:
        """Add a node and return its outputs."""
        outputs = [self._value(output) for output in outputs]
        name = self._named.add(name)
        make = self._onnx.helper.make_node
        self._nodes.append(make(kind, inputs, outputs, name, **attributes))
        return outputs

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output and return the output."""
        return self.node(kind, kind, inputs, [kind.lower()], **attributes)[0]

    def constant(self, name: str, array: Any) -> str:
        """Add an array and return its name."""
        name = self._value(name)
        self._constants[name] = array
        return name

    def integers(self, *values: int) -> str:
        """Add a list of int64, such as axes."""
        return self.constant("integers", np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Add an int64 number, such as an index."""
        return self.constant("integer", np.array(value, np.int64))

    def int32(self, value: int) -> str:
        """Add an int32 number, the dtype of lengths."""
        return self.constant("int32", np.array(value, np.int32))

    def number(self, value: float) -> str:
        """Add a number of the layer's dtype."""
        return self.constant("number", np.array(value, self._dtype))

    def model(self) -> Any:
        """Return the model, without nodes and constants that no output needs."""
        helper = self._onnx.helper
        used = {value.name for value in self._outputs}
        nodes: list[Any] = []
        for node in reversed(self._nodes):
            outputs = [name if name in used else "" for name in node.output]
            if any(outputs):
                del node.output[:]
                node.output.extend(outputs)
                nodes.insert(0, node)
                used.update(node.input)
        constants = {name: a for name, a in self._constants.items() if name in used}
        size = sum(array.nbytes for array in constants.values())
        if size > MOST_BYTES:
            raise ValueError(f"layer: expected weights of less than 2 GB, got {size} bytes")
        from_array = self._onnx.numpy_helper.from_array
        tensors = [from_array(array, name) for name, array in constants.items()]
        graph = helper.make_graph(nodes, "fastgru", self._inputs, self._outputs, tensors)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="fastgru",
        )
