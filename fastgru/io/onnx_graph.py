"""ONNX models as data: their nodes, also those of nested graphs, and the nodes' constant inputs.

Exporters often make a weight of other tensors by nodes that only move or convert numbers. This
module folds those nodes (`onnx_folds`) and runs no others. It counts the bytes that it reads and
folds, so that a small altered file cannot make it take much memory or time.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgru.io.budget import Budget, BudgetError, listed, short
from fastgru.io.foreign import reader_of
from fastgru.io.onnx_folds import COPIES, FOLDS, OPTIONAL, SPREADS, one_number
from fastgru.io.onnx_size import count_objects
from fastgru.io.onnx_tensors import (
    BFLOAT16,
    check_text,
    is_numeric,
    read_sparse_tensor,
    read_tensor,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DEEPEST = 64  # nodes of a chain, and nested graphs
_LOOKED_AT_IN_A_STEP = 1024  # numbers
DOMAINS = ("", "ai.onnx")


class NotConstant(ValueError):
    """The value depends on the model's inputs, or on a node that is not folded."""


class TooDeep(NotConstant):
    """There are too many nodes before the value; there may be fewer before another one."""


class Model:
    """An ONNX model, and the bytes that may still be made of it.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
    follow_links : bool
        True: a tensor's file may be a link that leads out of the model's folder.
    budget : Budget, optional

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

    def __init__(
        self, source: Any, follow_links: bool = False, budget: Budget | None = None
    ) -> None:
        self.budget = budget or Budget(
            "ModelProto" if hasattr(source, "graph") else str(source)[:99]
        )
        self.where, self.folder, self.proto = _load(source, self.budget)
        self._in_memory = self.proto is source
        self.follow_links = follow_links
        if self.folder is not None and not follow_links:
            self.budget.stay_in(self.folder)
        self.beside: dict[str, Path] = {}
        if not self.proto.HasField("graph"):
            raise ValueError(f"{self.where}: expected an ONNX model, got one without a graph")
        self.scopes = list(self._scopes())

    def add_source(self, nbytes: int) -> None:
        """Count bytes of the model's tensors; those of a file are counted when it is opened."""
        if self._in_memory:
            self.budget.add(nbytes)

    def note_files(self) -> None:
        """Tell the budget of all files that the model's tensors name, read or not."""
        if self.folder is None:
            return
        names: set[str] = set()
        left: list[Any] = [self.proto.graph, *self.proto.functions]
        for training in self.proto.training_info:
            left += [training.initialization, training.algorithm]
        while left:
            holder = left.pop()
            for node in holder.node:
                for attribute in node.attribute:
                    self.budget.step()
                    left += [attribute.g] if attribute.HasField("g") else []
                    left += attribute.graphs
            for tensor in tensors_of(holder):
                for entry in tensor.external_data:
                    self.budget.step()
                    name = entry.value
                    # protobuf gives bytes if it is not UTF-8
                    if entry.key == "location" and isinstance(name, str) and name not in names:
                        names.add(name)
                        self.budget.make_objects(2, 2 * len(name))
        self.budget.members += [self.folder / name for name in names]

    def spend(self, nbytes: int, place: str) -> None:
        """Count bytes before they are made of the tensors; ValueError if too many."""
        self.budget.make_objects(1, nbytes, place)

    def _scopes(self) -> Iterator[Scope]:
        waiting = deque([(Scope(self, self.proto.graph, None), 0)])
        while waiting:
            scope, depth = waiting.popleft()
            yield scope
            if depth == DEEPEST:
                raise ValueError(f"{self.where}: graphs are nested more than {DEEPEST} times")
            for node in scope.graph.node:
                for attribute in node.attribute:
                    self.budget.step()
                    graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
                    waiting.extend((Scope(self, graph, scope), depth + 1) for graph in graphs)


class Scope:
    """The values of one graph by name, and those of the graphs around it."""

    def __init__(self, model: Model, graph: Any, outer: Scope | None) -> None:
        self.model, self.graph, self.outer = model, graph, outer
        self._folded: dict[str, NDArray[Any]] = {}
        self._refused: dict[str, str] = {}  # why a value is not constant
        self._states: dict[str, str] = {}  # kinds of initial states
        self._bfloat16: set[str] = set()  # of the folded values, which are float32 here
        budget = model.budget
        budget.make_objects(4 * len(graph.node) + 4 * len(graph.initializer) + len(graph.input))
        budget.make_objects(8 * len(graph.sparse_initializer))  # protobuf makes some to look inside
        made: dict[str, Any] = {}

        def add(name: str, maker: Any) -> None:
            if check_text(name, model.where) in made:
                raise ValueError(f"{model.where}: the name {short(name)!r} stands for two values")
            made[name] = maker

        for tensor in graph.initializer:
            add(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            add(sparse.values.name, sparse)
        for node in graph.node:
            budget.make_objects(len(node.input) + len(node.output))
            names = [node.name, node.op_type, node.domain, *node.input, *node.output]
            for name in names:
                check_text(name, model.where)
            # Each is kept here or among the names that are used, as a text of its own.
            budget.make(2 * sum(name.__sizeof__() for name in names))
            for name in filter(None, node.output):
                add(name, node)
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
        self.model.budget.step()
        if name in scope._folded:
            return scope._folded[name]
        if name in scope._refused:
            raise NotConstant(scope._refused[name])
        place = f"{self.model.where}: value {short(name)!r}"
        if maker is None:
            raise NotConstant(f"{short(name)!r} is an input of the graph")
        if depth > DEEPEST:
            raise TooDeep(f"{short(name)!r} has more than {DEEPEST} nodes before it")
        if not hasattr(maker, "op_type"):  # an initializer
            array = scope._read(maker, name, place)
        elif maker.op_type == "Constant" and maker.domain in DOMAINS:
            array = scope._constant(maker, name, place)
        else:
            try:
                array = scope._fold(maker, name, depth, f"{place}, made by {maker.op_type}")
            except NotConstant as error:
                if depth == 0 or not isinstance(error, TooDeep):
                    scope._refused[name] = str(error)
                raise
        scope._folded[name] = array
        return array

    def stored(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the graph's tensors of numbers: initializers, and the outputs of Constants."""
        for name, maker in self._makers.items():
            if maker is None or (hasattr(maker, "op_type") and maker.op_type != "Constant"):
                continue
            try:
                if is_numeric(maker):
                    yield name, self.constant(name)
            except NotConstant:  # a Constant of text
                continue

    def _read(self, tensor: Any, name: str, place: str) -> NDArray[Any]:
        """Return a tensor, dense or sparse, and keep in mind whether it is of bfloat16."""
        sparse = hasattr(tensor, "indices")
        if getattr(tensor.values if sparse else tensor, "data_type", 0) == BFLOAT16:
            self._bfloat16.add(name)
        read = read_sparse_tensor if sparse else read_tensor
        return read(self.model, tensor, place)

    def _constant(self, node: Any, name: str, place: str) -> NDArray[Any]:
        values = attributes(node, place)
        for key in ("value", "sparse_value"):
            if key in values:
                return self._read(values[key], name, place)
        for kind_name, kind in (("float", np.float32), ("int", np.int64)):
            for key in (f"value_{kind_name}", f"value_{kind_name}s"):
                if key in values:
                    try:
                        return np.array(values[key], kind)
                    except (ValueError, TypeError) as error:
                        raise ValueError(f"{place}: {key}: {error}") from None
        raise NotConstant(f"{short(name)!r} is a Constant of {listed(values) or 'nothing'}")

    def _fold(self, node: Any, name: str, depth: int, place: str) -> NDArray[Any]:
        kind = node.op_type
        fold = FOLDS.get(kind) if node.domain in DOMAINS else None
        if fold is None or len(node.output) != 1:
            raise NotConstant(f"{short(name)!r} is made by operator {short(kind)}")
        self.model.budget.step(len(node.input), place)
        inputs = [self.constant(given, depth + 1) if given else None for given in node.input]
        arrays = [array for array in inputs if array is not None]
        if not arrays or (kind not in OPTIONAL and len(arrays) < len(inputs)):
            raise ValueError(f"{place}: an input is missing")
        enough = sum(array.nbytes for array in arrays) if kind in COPIES else 0
        self.model.spend(enough, place)  # few give more, and those copy nothing before it is known
        given = attributes(node, place)
        if "value" in given:  # of a ConstantOfShape
            given["value"] = read_tensor(self.model, given["value"], place)
        self._note_bfloat16(node, name, place)
        try:
            result = fold(given, *inputs)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{place}: it cannot be folded: {error!r}") from None
        # What Expand gives takes no memory, but whatever reads or copies it takes as much time.
        if kind in COPIES or result.size > arrays[0].size:
            self.model.spend(max(0, result.nbytes - enough), place)
        elif not np.may_share_memory(result, arrays[0]):
            self.model.spend(result.nbytes, place)
        return result

    def _note_bfloat16(self, node: Any, name: str, place: str) -> None:
        """Keep in mind whether a folded value is of bfloat16, which is kept as float32."""
        given = attributes(node, place)
        if node.op_type == "Cast":
            narrow = given.get("to") == BFLOAT16
        elif node.op_type == "ConstantOfShape":
            narrow = getattr(given.get("value"), "data_type", 0) == BFLOAT16
        else:
            narrow = any(self._is_bfloat16(one) for one in node.input if one)
        if narrow:
            self._bfloat16.add(name)
            if node.op_type == "DequantizeLinear":
                raise ValueError(
                    f"{place}: a scale of bfloat16 rounds the weights to bfloat16, which is not "
                    "read; store the scale as float32, or the weights dequantised"
                )

    def _is_bfloat16(self, name: str) -> bool:
        return name in self.find(name)[0]._bfloat16

    def state_kind(self, name: str) -> str:
        """Return the kind of a node's initial state: "zeros", "constant" or "given".

        Zeros that are expanded to a batch of unknown size also count as "zeros".
        """
        if name not in self._states:
            self._states[name] = self._state_kind(name)
        return self._states[name]

    def _state_kind(self, name: str) -> str:
        scope, maker = self.find(name)
        for _ in range(DEEPEST):
            try:
                start = scope.constant(name)
            except NotConstant:
                pass
            else:  # many nodes may have one large array by other names
                self.model.budget.step(start.size // _LOOKED_AT_IN_A_STEP, name)
                return "constant" if start.any() else "zeros"
            if maker is None or maker.op_type not in SPREADS or not maker.input:
                break
            name = maker.input[0]
            scope, maker = scope.find(name)
        if maker is not None and maker.op_type == "ConstantOfShape":
            place = f"{self.model.where}: value {name!r}"
            given = attributes(maker, place)
            if "value" in given:
                given["value"] = read_tensor(self.model, given["value"], place)
            try:
                return "constant" if one_number(given).any() else "zeros"
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
        return "given"


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


class Names:
    """Names that are all different: of equal ones the second, third, ... get "_1", "_2", ..."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def add(self, stem: str) -> str:
        """Return the first of ``stem``, ``stem_1``, ``stem_2``, ... that is not taken, and take it.

        It goes on where the last one of this stem was found, so that equal names cost little.
        """
        name, count = stem, self._counts.get(stem, 0)
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._counts[stem] = count
        self._taken.add(name)
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


def _load(source: Any, budget: Budget) -> tuple[str, Path | None, Any]:
    """Return the model's name in messages, its folder or None, and the onnx.ModelProto."""
    onnx = import_onnx()
    from google.protobuf.message import DecodeError

    if isinstance(source, onnx.ModelProto):
        return "ModelProto", None, source
    if isinstance(source, (bytes, bytearray, memoryview)):
        where, folder, data = "ONNX model", None, bytes(source)
        budget.add(len(data))
    else:
        path = Path(source)
        with budget.open(path) as file:
            where, folder, data = str(path), path.parent, file.read(budget.size)
    budget.make(2 * len(data), "its graph")
    if data[:2] in (b"PK", b"\x1f\x8b"):
        got = _other_file(source) or "an archive; unpack it"
        raise ValueError(f"{where}: expected an ONNX model, got {got}")
    model = onnx.ModelProto()
    try:
        count_objects(data, model.DESCRIPTOR, where, budget)
        model.ParseFromString(data)
    except BudgetError:
        raise
    except (DecodeError, ValueError) as error:
        got = _other_file(source) or str(error)
        raise ValueError(f"{where}: expected an ONNX model, got {got}") from None
    return where, folder, model


def _other_file(source: Any) -> str | None:
    """Return what a file is that was not called .onnx, and who reads it; None if unknown."""
    if isinstance(source, (bytes, bytearray, memoryview)) or Path(source).suffix == ".onnx":
        return None
    return reader_of(source)
