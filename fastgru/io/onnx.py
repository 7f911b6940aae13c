"""ONNX models: every node of operator GRU as a layer.

The operator differs from Keras' GRU in four things, which docs/io_onnx.md explains to users:

- Its arrays are time-major, (T, B, I), unless layout=1, and so are the layers' (``time_major``).
- Y has an axis of directions, (T, D, B, H); a `Bidirectional` layer concatenates, (T, B, 2H).
- The Y of direction="reverse" is in input order; ``go_backwards`` gives processing order.
- Y is zeros at steps beyond sequence_lens, so the layers have ``zero_output_for_mask``.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru import gates
from fastgru.io.budget import Budget, reading
from fastgru.io.imported_layer import ImportedLayer, by_name, verify_layer
from fastgru.io.onnx_activations import from_names
from fastgru.io.onnx_graph import DOMAINS, Model, Names, NotConstant, Scope, attributes
from fastgru.layers import GRU, Bidirectional

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_LAYERS = 1000  # the smallest takes a fraction of a millisecond to build

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# The operator's attributes: type, and whether there is a list of them. output_sequence is of the
# first versions and repeats which outputs there are.
_ATTRIBUTES = {
    "activations": (bytes, True),
    "activation_alpha": (float, True),
    "activation_beta": (float, True),
    "clip": (float, False),
    "direction": (bytes, False),
    "hidden_size": (int, False),
    "layout": (int, False),
    "linear_before_reset": (int, False),
    "output_sequence": (int, False),
}


class _Operator(NamedTuple):
    """A node of operator GRU: its name, the scope of its values, and the onnx.NodeProto."""

    name: str
    scope: Scope
    node: Any


def from_onnx(
    source: Any,
    node: str | None = None,
    *,
    verify: Any = None,
    follow_links: bool = False,
    max_bytes: int | None = None,
) -> Any:
    """Read the GRUs of an ONNX model.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
    node : str, optional
        Name of the wanted node. A node without a name has the name of its first output. Of nodes
        with one name the second, third, ... get "_1", "_2", ... at the end.
    verify : pair of array_like, optional
        An input and its expected output, both in the layer's layout; this runs the layer on the
        input and compares. If the model has several nodes, give ``node`` too.
    follow_links : bool
        True: a file of weights beside the model may be a link that leads out of the model's folder,
        as downloaders make them. By default such links are refused: pass True only if you trust
        the folder.
    max_bytes : int, optional
        Bytes of memory that reading may take; by default 64 MB and four times the files' bytes.

    Returns
    -------
    dict of str to GRU or Bidirectional, in the order of the nodes; or the layer called ``node``
        Their ``time_major``, ``return_sequences`` and ``return_state`` follow from the node's
        layout and used outputs: they return Y if it is used, and Y_h if both are. If the node has
        sequence_lens or initial_h, pass ``lengths`` or ``initial_state`` to each call of the
        layer, whether the model computes or stores them.

    Raises
    ------
    ValueError
        The source is not an ONNX model or is damaged; there is no such node; the output differs
        from ``verify``'s; or no layer equals a node, because it has clip, an unknown activation,
        weights that are not constant, or a constant initial_h that is not zeros.
    ImportError
        The package onnx is not installed.

    Notes
    -----
    Weights of float16 and bfloat16 become float32, which holds them exactly.
    """
    with reading(_where(source), max_bytes) as budget:
        model, operators = _operators(source, node, follow_links, budget)
        found = _read_all(model, operators)
        layers = by_name(found, node, model.where)
    if verify is not None:
        if len(found) > 1:
            raise ValueError(
                f"verify: {model.where} has several GRUs; name one of {', '.join(layers)} by node="
            )
        _verify(model, operators[0], found[0].layer, verify)
    return layers


def _where(source: Any) -> str:
    path = isinstance(source, str) or hasattr(source, "__fspath__")
    return str(source) if path else "ModelProto" if hasattr(source, "graph") else "ONNX model"


def find(
    source: Any,
    node: str | None = None,
    *,
    follow_links: bool = False,
    budget: Budget | None = None,
) -> list[ImportedLayer]:
    """Return every node of operator GRU, or the one called ``node``; see `from_onnx`.

    The budget knows afterwards all files of the model, also those that no GRU needs.
    """
    model, operators = _operators(source, node, follow_links, budget)
    found = _read_all(model, operators)
    model.note_files()
    return found


def _operators(
    source: Any, wanted: str | None, follow_links: bool, budget: Budget | None
) -> tuple[Model, list[_Operator]]:
    model = Model(source, follow_links, budget)
    operators = _named_operators(model)
    if wanted is None:
        return model, operators
    chosen = [operator for operator in operators if operator.name == wanted]
    if not chosen:
        names = ", ".join(operator.name for operator in operators) or "none"
        raise ValueError(f"{model.where}: expected node to be one of: {names}; got {wanted!r}")
    return model, chosen


def _named_operators(model: Model) -> list[_Operator]:
    operators: dict[str, _Operator] = {}
    names = Names()
    for scope in model.scopes:
        for node in scope.graph.node:
            if not _is_gru(node):
                continue
            if len(operators) == MOST_LAYERS:
                raise ValueError(f"{model.where}: expected at most {MOST_LAYERS} GRUs, got more")
            name = names.add(node.name or next(filter(None, node.output), "GRU"))
            operators[name] = _Operator(name, scope, node)
    for function in model.proto.functions:
        if any(map(_is_gru, function.node)):
            raise ValueError(
                f"{model.where}: a GRU stands in the model's function {function.name!r}, where it "
                "has no weights of its own; call onnx.inliner.inline_local_functions(model) first"
            )
    return list(operators.values())


def _is_gru(node: Any) -> bool:
    return node.op_type == "GRU" and node.domain in DOMAINS


# ---- one node ------------------------------------------------------------------------------------


def _read_all(model: Model, operators: list[_Operator]) -> list[ImportedLayer]:
    used = _used(model)
    return [_read(operator, used) for operator in operators]


def _used(model: Model) -> set[str]:
    """Return the values that are inputs of a node or outputs of a graph."""
    used: set[str] = set()
    for scope in model.scopes:
        used.update(name for node in scope.graph.node for name in node.input)
        used.update(value.name for value in scope.graph.output)
    return used


def _read(operator: _Operator, used: set[str], other_formula: bool = False) -> ImportedLayer:
    """Make a layer of a node; with ``other_formula`` of the other linear_before_reset."""
    name, scope, node = operator
    place = f"{scope.model.where}: node {name!r}"
    given = _attributes(node, place)
    direction, layout = given["direction"].decode(errors="replace"), given["layout"]
    reset_after = bool(given["linear_before_reset"]) != other_formula
    _, w, r, b, lengths, start = [*node.input, *[""] * 6][:6]
    weights = _weights(scope, (w, r, b), len(_DIRECTIONS[direction]), given, place)
    functions = _functions(given, len(_DIRECTIONS[direction]), place)
    notes = [f"operator GRU, direction={direction}, layout={layout}"]
    if lengths:
        notes.append("sequence_lens is lengths= of the call")
    if start and _needs_initial_state(scope, start, place):
        notes.append("initial_h is initial_state= of the call")

    sequences, state = _outputs(node, used)
    layers, converted = [], []
    for d, backwards in enumerate(_DIRECTIONS[direction]):
        converted.append(_converted([array[d] for array in weights], reset_after))
        kernel, recurrent_kernel = converted[-1][:2]
        bias = converted[-1][2] if len(weights) == 3 else None
        recurrent_activation, activation = functions[2 * d : 2 * d + 2]
        layers.append(
            GRU(
                recurrent_kernel.shape[0],
                activation,
                recurrent_activation,
                use_bias=bias is not None,
                return_sequences=sequences,
                return_state=state,
                go_backwards=backwards,
                reset_after=reset_after,
                time_major=layout == 0,
                zero_output_for_mask=sequences,
                dtype=kernel.dtype,
                name=name,
            )
        )
    layer: Any = layers[0]
    if len(layers) == 2:
        layers[1].name = f"backward_{name}"
        layer = Bidirectional(layers[0], backward_layer=layers[1], name=name)
    for half, arrays in zip(getattr(layer, "halves", layers), converted, strict=True):
        _build(half, arrays)
    layer.build((None, None, weights[0].shape[2]))
    convention = f"gates z r h in rows, linear_before_reset={reset_after:d}"
    return ImportedLayer(name, layer, convention, "; ".join(notes))


def _attributes(node: Any, place: str) -> dict[str, Any]:
    """Return the node's attributes; ValueError for wrong types. Only some have defaults."""
    given: dict[str, Any] = {"direction": b"forward", "layout": 0, "linear_before_reset": 0}
    given.update(attributes(node, place))
    for key, value in given.items():
        if key not in _ATTRIBUTES:
            raise ValueError(f"{place}: the operator has no attribute {key!r}")
        kind, several = _ATTRIBUTES[key]
        if isinstance(value, list) != several or not all(
            isinstance(v, kind) for v in (value if several else [value])
        ):
            raise ValueError(
                f"{place}: expected {key} of {kind.__name__}, {'several' if several else 'one'}, "
                f"got {reprlib.repr(value)}"
            )
    if given["direction"].decode(errors="replace") not in _DIRECTIONS:
        raise ValueError(
            f"{place}: expected direction {', '.join(_DIRECTIONS)}, got {given['direction']!r}"
        )
    if given["layout"] not in (0, 1):
        raise ValueError(f"{place}: expected layout 0 or 1, got {given['layout']}")
    if "clip" in given:
        raise ValueError(
            f"{place}: clip={given['clip']:g} limits what goes into the activations, and Keras' "
            "GRU has no such limit; where it never takes effect, delete the attribute"
        )
    return given


def _weights(
    scope: Scope, names: Any, directions: int, given: dict[str, Any], place: str
) -> list[NDArray[Any]]:
    """Return W (D, 3H, I), R (D, 3H, H) and, if the node has it, B (D, 6H)."""
    arrays: dict[str, NDArray[Any]] = {}
    for what, name in zip("WRB", names, strict=True):
        if not name and what == "B":
            continue
        try:
            arrays[what] = scope.constant(name)
        except NotConstant as error:
            raise ValueError(
                f"{place}: expected {what} to be a constant, but {error}; make it an initializer "
                "(exporters and simplifiers call that constant folding)"
            ) from None
    columns = {what: array.shape[-1] if array.ndim else 0 for what, array in arrays.items()}
    hidden = given.get("hidden_size")
    D, I, H = directions, columns["W"], columns["R"] if hidden is None else int(hidden)
    expected = dict(zip("WRB", [(D, 3 * H, I), (D, 3 * H, H), (D, 6 * H)], strict=True))
    shapes = {what: array.shape for what, array in arrays.items()}
    if H < 1 or I < 1 or any(shape != expected[what] for what, shape in shapes.items()):
        raise ValueError(
            f"{place}: with hidden_size {H} and {D} direction(s) expected W (D, 3H, I), R (D, 3H, "
            f"H) and B (D, 6H), got {', '.join(f'{k} {v}' for k, v in shapes.items())}"
        )
    dtypes = {array.dtype.name for array in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= {"float16", "float32", "float64"}:
        raise ValueError(f"{place}: expected weights of one floating dtype, got {sorted(dtypes)}")
    dtype = np.float64 if dtypes == {"float64"} else np.float32
    scope.model.spend(sum(array.size for array in arrays.values()) * dtype().itemsize, place)
    return list(arrays.values())


def _converted(arrays: list[NDArray[Any]], reset_after: bool) -> list[NDArray[Any]]:
    """Return kernel, recurrent kernel and bias of a direction, in a dtype that layers have."""
    found = gates.to_keras(f"onnx_lbr{reset_after:d}", *arrays)
    narrow = [array for array in found if array is not None]
    del found
    dtype = np.float64 if narrow[0].dtype == np.float64 else np.float32
    # Each goes when its copy is made, so that not all are there twice.
    return [narrow.pop(0).astype(dtype, copy=False) for _ in range(len(narrow))]


def _functions(given: dict[str, Any], directions: int, place: str) -> list[Any]:
    """Return the activations of the gates and of the candidate, for each direction."""
    names = [name.decode(errors="replace") for name in given.get("activations", ())]
    names = names if "activations" in given else ["Sigmoid", "Tanh"] * directions
    if len(names) != 2 * directions:
        raise ValueError(f"{place}: expected {2 * directions} activations, got {names}")
    alphas, betas = (given.get(f"activation_{which}", ()) for which in ("alpha", "beta"))
    return from_names(names, alphas, betas, place)


def _needs_initial_state(scope: Scope, start: str, place: str) -> bool:
    """Say whether initial_h must be given; ValueError if it is a constant that is not zeros."""
    kind = scope.state_kind(start)
    if kind == "constant":
        raise ValueError(
            f"{place}: initial_h is the constant {start!r}, which is not zeros, and a layer stores "
            "no initial state: clear the node's input (node.input[5] = ''), and give its value to "
            "each call as initial_state="
        )
    return kind == "given"


def _outputs(node: Any, used: set[str]) -> tuple[bool, bool]:
    """Return return_sequences and return_state; if no output is used, the named ones count."""
    names = [*node.output, "", ""][:2]
    y, y_h = (bool(name) and name in used for name in names)
    if not (y or y_h):
        y, y_h = map(bool, names)
    return y or not y_h, y and y_h


def _build(layer: Any, weights: list[NDArray[Any]]) -> None:
    """Build a layer with its weights."""
    layer.cell.adopt(*weights)
    layer.build((None, None, weights[0].shape[0]))


def _verify(model: Model, operator: _Operator, layer: Any, verify: Any) -> None:
    try:
        verify_layer(layer, verify, operator.name)
    except ValueError as error:
        try:
            other = _read(operator, _used(model), other_formula=True)
            verify_layer(other.layer, verify, operator.name)
        except ValueError:
            raise error from None
        raise ValueError(
            f"{error}. With the other formula ({other.convention}) they agree: the file's "
            "attribute is wrong, which PyTorch's exporter left out for a time (onnxscript#2852). "
            "Set it in the node and read the model again"
        ) from None
