"""ONNX models as data: their nodes, also those of nested graphs, and the nodes' constant inputs.

Exporters often make a weight of other tensors by nodes that only move numbers. This module folds
those nodes and runs no others. It counts the bytes that it reads and folds, so that a small altered
file cannot make it take much memory or time.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from numpy.typing import NDArray

# The bytes that may be made of a model: a fixed number, and a multiple of its tensors' bytes. The
# exporters' chains of nodes copy a weight about six times, and the layer has one more copy.
FREE_BYTES = 16 << 20
MOST_COPIES = 16
DEEPEST = 64  # nodes of a chain, and nested graphs
MOST_AXES = 8

# TensorProto.DataType -> the dtype of its raw bytes, and the field of its numbers if they are not
# raw. float16 and bfloat16 are read as their bits.
_FLOAT16, _BFLOAT16 = 10, 16
_TENSORS = {
    1: ("<f4", "float_data"),
    11: ("<f8", "double_data"),
    _FLOAT16: ("<u2", "int32_data"),
    _BFLOAT16: ("<u2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
}


class NotConstant(ValueError):
    """The value depends on the model's inputs, or on a node that is not folded."""


class Model:
    """An ONNX model, and the bytes that may still be made of it.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto

    Attributes
    ----------
    where : str
        Its name in messages.
    proto : onnx.ModelProto
    folder : Path or None
        The folder of its other files.
    scopes : list of Scope
        The graph, then the graphs nested in it.

    Raises
    ------
    ValueError
        The source is not an ONNX model.
    """

    def __init__(self, source: Any) -> None:
        self.where, self.folder, self.proto = _load(source)
        if not self.proto.HasField("graph"):
            raise ValueError(f"{self.where}: expected an ONNX model, got one without a graph")
        self._room = FREE_BYTES
        self._files: set[Path] = set()
        self.scopes = list(self._scopes())

    def add_source(self, nbytes: int, file: Path | None = None) -> None:
        """Count bytes of the model's tensors, or, once, all bytes of a file beside it."""
        if file not in self._files:
            self._room += MOST_COPIES * nbytes
        if file is not None:
            self._files.add(file)

    def spend(self, nbytes: int, place: str) -> None:
        """Count bytes before they are made of the tensors; ValueError if too many."""
        self._room -= nbytes
        if self._room < 0:
            raise ValueError(
                f"{place}: the model would grow to more than {MOST_COPIES} times the numbers it "
                "holds; a file of weights does not"
            )

    def _scopes(self) -> Iterator[Scope]:
        waiting = deque([(Scope(self, self.proto.graph, None), 0)])
        while waiting:
            scope, depth = waiting.popleft()
            yield scope
            if depth == DEEPEST:
                raise ValueError(f"{self.where}: graphs are nested more than {DEEPEST} times")
            for node in scope.graph.node:
                for attribute in node.attribute:
                    graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
                    waiting.extend((Scope(self, graph, scope), depth + 1) for graph in graphs)


class Scope:
    """The values of one graph by name, and those of the graphs around it."""

    def __init__(self, model: Model, graph: Any, outer: Scope | None) -> None:
        self.model, self.graph, self.outer = model, graph, outer
        self._folded: dict[str, NDArray[Any]] = {}
        for node in graph.node:
            for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
                check_text(name, model.where)
        made: dict[str, Any] = {}
        names = [(check_text(tensor.name, model.where), tensor) for tensor in graph.initializer]
        names += [(name, node) for node in graph.node for name in node.output if name]
        for name, maker in names:
            if name in made:
                raise ValueError(f"{model.where}: the name {name!r} stands for two values")
            made[name] = maker
        # An input with the name of an initializer only says that callers may replace the value.
        self._makers = {**dict.fromkeys((value.name for value in graph.input), None), **made}

    def find(self, name: str) -> tuple[Scope, Any]:
        """Return the scope of a value and what makes it: a node, a tensor, or None for an input."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope._makers:
                return scope, scope._makers[name]
            scope = scope.outer
        raise ValueError(f"{self.model.where}: nothing in the model makes the value {name!r}")

    def constant(self, name: str, depth: int = 0) -> NDArray[Any]:
        """Return a value that does not depend on the model's inputs. Do not write to it.

        Raises
        ------
        NotConstant
            The value depends on an input, or on an operator that is not folded.
        ValueError
            A tensor or node on the way is damaged.
        """
        scope, maker = self.find(name)
        if name in scope._folded:
            return scope._folded[name]
        place = f"{self.model.where}: value {name!r}"
        if maker is None:
            raise NotConstant(f"{name!r} is an input of the graph")
        if depth > DEEPEST:
            raise NotConstant(f"{name!r} has more than {DEEPEST} nodes before it")
        if not hasattr(maker, "op_type"):  # an initializer
            array = read_tensor(self.model, maker, place)
        elif maker.op_type == "Constant":
            array = _constant(self.model, maker, place)
        else:
            array = scope._fold(maker, name, depth, f"{place}, made by {maker.op_type}")
        scope._folded[name] = array
        return array

    def _fold(self, node: Any, name: str, depth: int, place: str) -> NDArray[Any]:
        fold = _FOLDS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if fold is None or len(node.output) != 1:
            raise NotConstant(f"{name!r} is made by operator {node.op_type}")
        inputs = [self.constant(given, depth + 1) for given in node.input if given]
        if len(inputs) < len(node.input) or not inputs:
            raise ValueError(f"{place}: an input is missing")
        enough = sum(array.nbytes for array in inputs)
        self.model.spend(enough, place)  # only Expand gives more, and it copies nothing
        try:
            result = fold(attributes(node, place), *inputs)
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"{place}: it cannot be folded: {error!r}") from None
        self.model.spend(max(0, result.nbytes - enough), place)
        return result

    def state_kind(self, name: str) -> str:
        """Return the kind of a node's initial state: "zeros", "constant" or "given".

        Zeros that are expanded to a batch of unknown size also count as "zeros".
        """
        scope, maker = self.find(name)
        for _ in range(DEEPEST):
            try:
                return "constant" if scope.constant(name).any() else "zeros"
            except NotConstant:
                pass
            if maker is None or maker.op_type not in _SPREADS or not maker.input:
                break
            name = maker.input[0]
            scope, maker = scope.find(name)
        if maker is not None and maker.op_type == "ConstantOfShape":
            place = f"{self.model.where}: value {name!r}"
            value = attributes(maker, place).get("value")
            if value is None:
                return "zeros"
            number = read_tensor(self.model, value, place)
            if number.size != 1:
                raise ValueError(f"{place}: expected one value, got shape {number.shape}")
            return "constant" if number.any() else "zeros"
        return "given"


def check_text(text: Any, place: str) -> str:
    """Return text; ValueError for bytes, which protobuf gives if they are not UTF-8."""
    if not isinstance(text, str):
        raise ValueError(f"{place}: expected names in UTF-8, got {text!r}")
    return text


def attributes(node: Any, place: str) -> dict[str, Any]:
    """Return a node's attributes: int, float, bytes, a message, or lists of them."""
    from onnx import helper

    values: dict[str, Any] = {}
    for attribute in node.attribute:
        if check_text(attribute.name, place) in values:
            raise ValueError(f"{place}: attribute {attribute.name!r} stands there twice")
        try:
            value = helper.get_attribute_value(attribute)
        except ValueError as error:
            raise ValueError(f"{place}: attribute {attribute.name!r}: {error}") from None
        if value is None:
            raise ValueError(f"{place}: attribute {attribute.name!r} has no type")
        values[attribute.name] = value
    return values


def read_tensor(model: Model, proto: Any, place: str) -> NDArray[Any]:
    """Return a tensor's numbers; ValueError if they do not fill its shape."""
    from onnx import TensorProto

    if not isinstance(proto, TensorProto) or proto.data_type not in _TENSORS:
        raise ValueError(
            f"{place}: expected a tensor of float32, float64, float16, bfloat16, int32 or int64, "
            f"got {getattr(proto, 'data_type', proto)!r}"
        )
    if proto.HasField("segment"):
        raise ValueError(f"{place}: expected a whole tensor, got a segment of one")
    form, field = _TENSORS[proto.data_type]
    shape, dtype = tuple(proto.dims), np.dtype(form)
    if len(shape) > MOST_AXES or any(n < 0 for n in shape):
        raise ValueError(f"{place}: expected at most {MOST_AXES} axes of length >= 0, got {shape}")
    count = math.prod(shape)
    if proto.data_location == TensorProto.EXTERNAL:
        array = _external(model, proto, count, dtype, place)
    else:
        raw = proto.HasField("raw_data")
        numbers = proto.raw_data if raw else getattr(proto, field)
        wanted = count * dtype.itemsize if raw else count
        if len(numbers) != wanted:
            raise ValueError(
                f"{place}: shape {shape} takes {wanted} {'bytes' if raw else 'numbers'}, got "
                f"{len(numbers)}; the file is damaged"
            )
        try:
            array = np.frombuffer(numbers, dtype) if raw else np.fromiter(numbers, dtype, count)
        except OverflowError as error:
            raise ValueError(f"{place}: {error}") from None
        model.add_source(array.nbytes)
    if proto.data_type == _FLOAT16:
        array = array.view("<f2")
    elif proto.data_type == _BFLOAT16:  # the upper 16 bits of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(shape)


def _external(
    model: Model, proto: Any, count: int, dtype: np.dtype[Any], place: str
) -> NDArray[Any]:
    """Read a tensor from a file in the model's folder."""
    entries = {
        check_text(entry.key, place): check_text(entry.value, place)
        for entry in proto.external_data
    }
    location = entries.get("location", "")
    if model.folder is None:
        raise ValueError(
            f"{place}: its numbers are in another file, {location!r}; give the model's path, or "
            "what onnx.load(path) returns"
        )
    path = _beside(model.folder, location, place)
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "0" if key == "offset" else str(count * dtype.itemsize))
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise ValueError(f"{place}: expected {key} to be a number of bytes, got {text[:40]!r}")
        numbers[key] = int(text)
    offset, length, size = numbers["offset"], numbers["length"], path.stat().st_size
    if length != count * dtype.itemsize or offset + length > size:
        raise ValueError(
            f"{place}: shape {tuple(proto.dims)} takes {count * dtype.itemsize} bytes, got "
            f"{length} from byte {offset} of {path}, which has {size}; a file is damaged"
        )
    model.add_source(size, path)
    model.spend(length, place)
    array = np.fromfile(path, dtype, count, offset=offset)
    if array.size != count:
        raise ValueError(f"{place}: {path} ends before byte {offset + length}")
    return array


def _beside(folder: Path, location: str, place: str) -> Path:
    """Follow links and return the path of a file; ValueError unless in the model's folder."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if (
        not location
        or "\0" in location
        or windows.drive
        or windows.root  # also a POSIX root "/"
        or ".." in (*posix.parts, *windows.parts)
    ):
        raise ValueError(
            f"{place}: expected the name of a file in the model's folder, got {location[:200]!r}"
        )
    try:
        path = (folder / location).resolve()
        inside, there = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{place}: {location[:200]!r} cannot be read: {error}") from None
    if not inside:
        raise ValueError(
            f"{place}: {location!r} is a link that leads out of the model's folder, to {path}; "
            "copy that file beside the model"
        )
    if not there:
        raise ValueError(f"{place}: expected a file {location!r} beside the model, found none")
    return path


def _constant(model: Model, node: Any, place: str) -> NDArray[Any]:
    values = attributes(node, place)
    if "value" in values:
        return read_tensor(model, values["value"], place)
    for name, kind in (("float", np.float32), ("int", np.int64)):
        for key in (f"value_{name}", f"value_{name}s"):
            if key in values:
                try:
                    return np.array(values[key], kind)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{place}: {key}: {error}") from None
    raise NotConstant(f"{node.output[0]!r} is a Constant of {', '.join(values) or 'nothing'}")


def unique(stem: str, taken: Container[str]) -> str:
    """Return the first of ``stem``, ``stem_1``, ``stem_2``, ... that is not taken."""
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name


def import_onnx() -> Any:
    """Return the package onnx; ImportError with the command that installs it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX models need the package onnx; pip install 'fastgru[onnx]'"
        ) from error
    return onnx


def _load(source: Any) -> tuple[str, Path | None, Any]:
    """Return the model's name in messages, its folder or None, and the onnx.ModelProto."""
    onnx = import_onnx()
    from google.protobuf.message import DecodeError

    if isinstance(source, onnx.ModelProto):
        return "ModelProto", None, source
    if isinstance(source, (bytes, bytearray, memoryview)):
        where, folder, data = "ONNX model", None, bytes(source)
    else:
        path = Path(source)
        where, folder, data = str(path), path.parent, path.read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: expected an ONNX model, got {error}") from None
    return where, folder, model


# ---- nodes that only move numbers ----------------------------------------------------------------
# Each function takes the node's attributes and its inputs. Before opset 10 to 13 some of the inputs
# were attributes.


def _integers(array: NDArray[Any], what: str) -> list[int]:
    array = np.asarray(array)
    if array.dtype.kind != "i" or array.size > MOST_AXES:
        raise ValueError(f"expected {what} as at most {MOST_AXES} integers, got {array!r}")
    return array.reshape(-1).tolist()


def _axes(given: dict[str, Any], *axes: Any) -> tuple[int, ...] | None:
    if not axes and "axes" not in given:
        return None
    return tuple(_integers(axes[0] if axes else given["axes"], "axes"))


def _unsqueeze(given: dict[str, Any], x: NDArray[Any], *axes: Any) -> NDArray[Any]:
    return np.expand_dims(x, _axes(given, *axes) or ())


def _squeeze(given: dict[str, Any], x: NDArray[Any], *axes: Any) -> NDArray[Any]:
    return np.squeeze(x, _axes(given, *axes))


def _transpose(given: dict[str, Any], x: NDArray[Any]) -> NDArray[Any]:
    return np.transpose(x, given.get("perm"))


def _reshape(given: dict[str, Any], x: NDArray[Any], *shape: Any) -> NDArray[Any]:
    wanted = _integers(shape[0] if shape else given["shape"], "shape")
    if not given.get("allowzero"):  # then 0 means: the length of x
        wanted = [n or x.shape[axis] for axis, n in enumerate(wanted)]
    return x.reshape(wanted)


def _concat(given: dict[str, Any], *parts: NDArray[Any]) -> NDArray[Any]:
    if len({part.dtype for part in parts}) > 1:
        raise ValueError(f"expected one dtype, got {[part.dtype.name for part in parts]}")
    return np.concatenate(parts, axis=int(given["axis"]))


def _slice(given: dict[str, Any], x: NDArray[Any], *arguments: Any) -> NDArray[Any]:
    names = ("starts", "ends", "axes", "steps")
    values = dict(zip(names, arguments, strict=False)) or given
    parts = {name: _integers(values[name], name) for name in names if name in values}
    starts, ends = parts["starts"], parts["ends"]
    axes = parts.get("axes", range(len(starts)))
    cut = [slice(None)] * x.ndim
    for axis, *bounds in zip(
        axes, starts, ends, parts.get("steps", [1] * len(starts)), strict=True
    ):
        cut[axis] = slice(*bounds)
    return x[tuple(cut)]


def _expand(given: dict[str, Any], x: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_integers(shape, "shape"))))


def _shape(given: dict[str, Any], x: NDArray[Any]) -> NDArray[Any]:
    return np.array(x.shape[given.get("start", 0) : given.get("end")], np.int64)


def _mul(given: dict[str, Any], x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    # Of lengths only; a product of weights is not folded.
    _integers(x, "a length"), _integers(y, "a length")
    return np.multiply(x, y)


_FOLDS: dict[str, Callable[..., NDArray[Any]]] = {
    "Identity": lambda given, x: x,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Concat": _concat,
    "Slice": _slice,
    "Expand": _expand,
    "Shape": _shape,
    "Mul": _mul,
}
# Nodes whose output consists of numbers of their first input.
_SPREADS = {"Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Expand", "Tile"}
