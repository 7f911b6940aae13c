"""The pickle inside a torch.save file, read by an interpreter of the instructions it needs.

Python's unpickler is not safe here, even with a restricted `find_class`. It gives its memo the size
that the file asks for (gigabytes). It hashes every key of a dict: a tuple that is doubled forty
times takes forever, and a tuple nested a million deep overflows the stack. This interpreter has the
instructions of plain containers and tensors and no others. None of them imports or calls what the
file names. Keys must be strings or numbers, which hash fast. An instruction makes at most one small
object, so the size of the file bounds time and memory.
"""

from __future__ import annotations

import pickletools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# A tensor takes about 200 bytes. The worst pickle of this size takes a second and 200 MB.
MOST_BYTES = 2 << 20

# torch's names of storages, and the element type of each. NumPy has no bfloat16.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_GLOBALS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{name}" for name in STORAGES),
}


class Storage(NamedTuple):
    """A storage: the member ``data/<key>`` of the archive has its ``size`` elements."""

    key: str
    dtype: str
    size: int


class PickledTensor(NamedTuple):
    """A view of a storage; offset and strides count elements. Only the types are checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(NamedTuple):
    """A name among `_GLOBALS`, which nobody looks up."""

    name: str


def load_pickle(data: bytes, where: str) -> Any:
    """Return the pickled object: dicts, lists, tuples, str, bytes, numbers and `PickledTensor`.

    Parameters
    ----------
    data : bytes
    where : str
        For messages.

    Raises
    ------
    ValueError
        The pickle is too large, damaged, or names objects other than tensors and OrderedDict.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(
            f"{where}: expected a pickle of at most {MOST_BYTES} bytes, got {len(data)}; save "
            "only the GRU's state_dict()"
        )
    machine = _Machine(data, where)
    try:
        return machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: damaged or cut short at byte {machine.at} ({error})") from None


class _Machine:
    """The interpreter: its stack, its memo and its place in the file."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Run the instructions up to STOP; return the object that is left."""
        while (code := self.data[self.at]) != _STOP:
            self.at += 1
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                names = [op.name for op in pickletools.opcodes if op.code == chr(code)]
                raise self.wrong(f"instruction {names[0] if names else hex(code)}")
            instruction(self)
        if len(self.stack) != 1:
            raise self.wrong(f"{len(self.stack)} objects at its end instead of one")
        return self.stack[0]

    def wrong(self, got: str) -> ValueError:
        """Return the error for a pickle that is not of a state dict."""
        return ValueError(
            f"{self.where}: expected tensors in plain containers, got {got} at byte {self.at}; "
            "nothing in a file is executed, so save state_dict() and no objects of other classes: "
            "torch.save(model.state_dict(), path)"
        )

    # -- parts of instructions -------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """Return the next bytes; if fewer are left, reading the next instruction raises."""
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        """Return the next number; ``code`` is its format for `struct`."""
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self) -> str:
        """Return the next line."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise IndexError("a line does not end")
        return self.take(end + 1 - self.at)[:-1].decode()

    def push(self, value: Any) -> None:
        """Put an object on the stack."""
        self.stack.append(value)

    def floor(self) -> int:
        """Return the stack index after the last mark."""
        return self.marks[-1] if self.marks else 0

    def pop(self, kind: type) -> Any:
        """Remove and return the top object; ValueError unless it is of this type."""
        if len(self.stack) <= self.floor():
            raise IndexError("nothing on the stack")
        value = self.stack.pop()
        if not isinstance(value, kind):
            raise self.wrong(f"{type(value).__name__} where {kind.__name__} belongs")
        return value

    def pop_mark(self) -> list[Any]:
        """Remove and return all objects above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def remember(self, number: int) -> None:
        """Keep the top object under a number, in a dict: its size does not depend on the number."""
        self.memo[number] = self.stack[-1]


# ---- the instructions, as pickletools describes them ---------------------------------------------


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def instruction(m: _Machine) -> None:
        start = len(m.stack) - count
        if start < m.floor():
            raise IndexError("nothing on the stack")
        m.stack[start:] = [tuple(m.stack[start:])]

    return instruction


def _long(m: _Machine) -> None:
    size = m.number("<B")
    if size > 8:
        raise m.wrong(f"an integer of {size} bytes")
    m.push(int.from_bytes(m.take(size), "little", signed=True))


def _append(m: _Machine) -> None:
    item, target = m.pop(object), m.pop(list)
    target.append(item)
    m.push(target)


def _appends(m: _Machine) -> None:
    items, target = m.pop_mark(), m.pop(list)
    target.extend(items)
    m.push(target)


def _set(m: _Machine, target: dict[Any, Any], pairs: list[Any]) -> None:
    if len(pairs) % 2:
        raise IndexError("a key without a value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, (str, int, float, type(None))):  # these hash fast
            raise m.wrong(f"{type(key).__name__} as a key")
        target[key] = value


def _set_item(m: _Machine) -> None:
    value, key = m.pop(object), m.pop(object)
    target = m.pop(dict)
    _set(m, target, [key, value])
    m.push(target)


def _set_items(m: _Machine) -> None:
    pairs = m.pop_mark()
    target = m.pop(dict)
    _set(m, target, pairs)
    m.push(target)


def _build(m: _Machine) -> None:
    """Drop the attributes that are set on an OrderedDict: torch's _metadata."""
    m.pop(object)
    m.push(m.pop(dict))


def _global(m: _Machine, module: str, name: str) -> None:
    full = f"{module}.{name}"
    if full not in _GLOBALS:
        raise m.wrong(full if len(full) < 200 else full[:200] + "...")
    m.push(_Global(full))


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(str), m.pop(str)
    _global(m, module, name)


def _storage(m: _Machine) -> None:
    match m.pop(tuple):
        case ("storage", _Global(name), str(key), str(), int(count)) if name[6:] in STORAGES:
            m.push(Storage(key, STORAGES[name[6:]], count))
        case _:
            raise m.wrong("a persistent id that is no storage")


def _reduce(m: _Machine) -> None:
    arguments, function = m.pop(tuple), m.pop(_Global).name.rpartition(".")[2]
    match function, arguments:
        case "OrderedDict", ():
            m.push({})
        case "_rebuild_parameter", (PickledTensor() as tensor, *_):
            m.push(tensor)
        case (
            "_rebuild_tensor_v2",
            (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
        ) if all(type(n) is int for n in (*shape, *strides)):
            m.push(PickledTensor(storage, offset, shape, strides))
        case _:
            raise m.wrong(f"other arguments than torch.save gives {function}")


_STOP = ord(".")
_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "K": lambda m: m.push(m.number("<B")),
        "M": lambda m: m.push(m.number("<H")),
        "J": lambda m: m.push(m.number("<i")),
        "\x8a": _long,
        "G": lambda m: m.push(m.number(">d")),
        "\x8c": lambda m: m.push(m.take(m.number("<B")).decode("utf-8", "surrogatepass")),
        "X": lambda m: m.push(m.take(m.number("<I")).decode("utf-8", "surrogatepass")),
        "C": lambda m: m.push(m.take(m.number("<B"))),
        "B": lambda m: m.push(m.take(m.number("<I"))),
        "(": lambda m: m.marks.append(len(m.stack)),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "]": lambda m: m.push([]),
        "a": _append,
        "e": _appends,
        "}": lambda m: m.push({}),
        "s": _set_item,
        "u": _set_items,
        "q": lambda m: m.remember(m.number("<B")),
        "r": lambda m: m.remember(m.number("<I")),
        "\x94": lambda m: m.remember(len(m.memo)),
        "h": lambda m: m.push(m.memo[m.number("<B")]),
        "j": lambda m: m.push(m.memo[m.number("<I")]),
        "c": lambda m: _global(m, m.line(), m.line()),
        "\x93": _stack_global,
        "Q": _storage,
        "R": _reduce,
        "b": _build,
    }.items()
}
