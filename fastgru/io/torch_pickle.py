"""The pickle inside a torch.save file, read by an interpreter of the instructions it needs.

Python's unpickler is not safe here, even with a restricted `find_class`. It gives its memo the size
that the file asks for (gigabytes). It hashes every key of a dict: a tuple that is doubled forty
times takes forever, and a tuple nested a million deep overflows the stack. In this interpreter no
instruction imports or calls what the file names. An object of another class becomes a `Skipped`,
which knows its name and what was put into it. Keys are strings or numbers, which hash fast, or a
`Skipped` in the place of others. An instruction makes at most one small object, and the budget
counts them, so time and memory are bounded.
"""

from __future__ import annotations

import pickletools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru.io.budget import text_bytes
from fastgru.io.torch_pickle_numpy import ARRAYS, FUNCTIONS, PickledArray, PickledDtype, built, made
from fastgru.io.torch_pickle_objects import LONGEST_NAME, PickledTensor, Skipped, Storage, cut

if TYPE_CHECKING:
    import mmap as memory_map
    from collections.abc import Callable

    from fastgru.io.budget import Budget

_COUNTED = 256  # instructions that are counted together; a tensor takes about 40
MOST_BYTES = 32 << 20
MOST_INTEGER_BYTES = 32  # longer ones take time to hash
# An integer below is its own hash. Larger ones can be made so that all have one hash.
_KEY_BITS = 60
_COMPARED_IN_A_STEP = 4096  # characters of keys, or of a text that is encoded
MOST_AXES = 64

# torch's names of storages, and their element types. NumPy has no bfloat16.
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
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "bytes",
}
_SIZES = {"bfloat16": 2, "qint32": 4} | dict.fromkeys(
    ("qint8", "quint8", "quint4x2", "quint2x4", "bytes"), 1
)
_DICTS = ("collections.OrderedDict", "collections.defaultdict")
# Classes of tensors that are nothing more than a tensor.
_TENSORS = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
_UNLIKE = {"torch._utils._rebuild_sparse_tensor": "a sparse tensor"}
_UNLIKE |= {"torch._utils._rebuild_qtensor": "a quantized tensor"}
_UNLIKE |= {"torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, without numbers"}
_UNLIKE |= {"torch._utils._rebuild_nested_tensor": "a nested tensor"}
_UNLIKE |= dict.fromkeys(ARRAYS, "a pickled array of NumPy")
_ARGUMENTS_KNOWN = (
    *(*_DICTS, "_rebuild_parameter", "_rebuild_parameter_with_state"),
    *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"),
)


def element_bytes(dtype: str) -> int:
    """Return the bytes of one element of a dtype in `STORAGES`."""
    return _SIZES.get(dtype) or np.dtype(dtype).itemsize


class _Global(NamedTuple):
    """The name of a class or function, which nobody looks up."""

    name: str


def load_pickle(data: bytes, where: str, budget: Budget, most: int = MOST_BYTES) -> Any:
    """Return the pickled object: containers, str, bytes, numbers, and what stands for others.

    Those are `PickledTensor`, `PickledArray` and `Skipped`.

    Parameters
    ----------
    data : bytes
    where : str
        For messages.
    budget : Budget
    most : int
        Bytes that the pickle may have.

    Raises
    ------
    ValueError
        The pickle is too large or damaged.
    """
    if len(data) > most:
        raise ValueError(
            f"{where}: expected a pickle of at most {most} bytes, got {len(data)}; save "
            "only the GRU's state_dict()"
        )
    return Machine(data, where, budget).load()


class Machine:
    """The interpreter: its stack, its memo and its place in the data, which may go on after it.

    ``storages`` has every storage that the pickle names, also in objects that are skipped.
    """

    def __init__(
        self, data: bytes | memory_map.mmap, where: str, budget: Budget, at: int = 0
    ) -> None:
        self.data, self.budget = data, budget
        self.where = where
        self.at = at
        self.count = 0  # instructions that the budget does not know yet
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return the object that the instructions make; ValueError if that fails."""
        try:
            return self._run()
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{self.where}: damaged or cut short at byte {self.at} ({error})"
            ) from None

    def _run(self) -> Any:
        """Run the instructions up to STOP; return the object that is left."""
        while (code := self.data[self.at]) != _STOP:
            self.at += 1
            self.count += 1
            if self.count >= _COUNTED:
                self.count = 0
                self.budget.make_objects(_COUNTED, what="its pickle")
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                names = [op.name for op in pickletools.opcodes if op.code == chr(code)]
                raise self.wrong(f"instruction {names[0] if names else hex(code)}")
            instruction(self)
        self.at += 1
        if len(self.stack) != 1:
            raise self.wrong(f"{len(self.stack)} objects at its end instead of one")
        return self.stack[0]

    def wrong(self, got: str) -> ValueError:
        """Return the error for a pickle that torch.save does not write."""
        return ValueError(
            f"{self.where}: expected a pickle of torch.save, got {got} at byte {self.at}; nothing "
            "in a file is executed; save the weights alone: torch.save(model.state_dict(), path)"
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
        """Return the next line, which is a part of a class's name."""
        end = self.data.find(b"\n", self.at, self.at + 4 * LONGEST_NAME)
        if end < 0:
            raise IndexError("a line does not end, or is longer than a name")
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


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def instruction(m: Machine) -> None:
        start = len(m.stack) - count
        if start < m.floor():
            raise IndexError("nothing on the stack")
        m.stack[start:] = [tuple(m.stack[start:])]

    return instruction


def _long(m: Machine, size: int) -> None:
    if size < 0:
        raise IndexError("an integer of negative size")
    data = m.take(size)
    small = size <= MOST_INTEGER_BYTES
    m.push(int.from_bytes(data, "little", signed=True) if small else Skipped("int"))


def _bytes(m: Machine, size: int) -> None:
    if size > len(m.data) - m.at:
        raise IndexError("a string does not end")
    m.budget.make(2 * size, "its pickle")  # the bytes, and the text or the array
    m.push(m.take(size))


def _text(m: Machine, size: int) -> None:
    _bytes(m, size)
    m.push(m.pop(bytes).decode("utf-8", "surrogatepass"))


def _old_text(m: Machine, size: int) -> None:
    """Push a str of Python 2, whose bytes may be anything."""
    _bytes(m, size)
    data = m.pop(bytes)
    try:
        m.push(data.decode())
    except UnicodeDecodeError:
        m.push(data)


def _extend(m: Machine, items: list[Any], kind: type | tuple[type, ...]) -> None:
    target = m.pop(object)
    if not isinstance(target, kind):
        raise m.wrong(f"{type(target).__name__} where a list belongs")
    if isinstance(target, list):
        target.extend(items)
    m.push(target)


def _set(m: Machine, pairs: list[Any]) -> None:
    target = m.pop(object)
    if len(pairs) % 2:
        raise IndexError("a key without a value")
    if not isinstance(target, (dict, Skipped)):
        raise m.wrong(f"{type(target).__name__} where dict belongs")
    if isinstance(target, Skipped) and target.items is None:
        target.items = {}
    items: Any = target.items if isinstance(target, Skipped) else target
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        # Only these hash fast, and without many of one hash. Each other key is one of its own.
        plain = isinstance(key, (str, int, float, type(None), Skipped))
        if isinstance(key, int):
            plain = key.bit_length() <= _KEY_BITS
        elif isinstance(key, str):
            _compare(m, key)
        items[key if plain else Skipped(type(key).__name__)] = value
    m.push(target)


def _compare(m: Machine, key: str) -> None:
    """Count the work to compare a key with one that is equal, and another object."""
    if len(key) >= _COMPARED_IN_A_STEP:
        m.budget.step(len(key) // _COMPARED_IN_A_STEP, "its pickle")


def _set_item(m: Machine) -> None:
    m.count += 1
    value, key = m.pop(object), m.pop(object)
    _set(m, [key, value])


def _build(m: Machine) -> None:
    """Keep the attributes of a skipped object; drop those of an OrderedDict (_metadata)."""
    state, target = m.pop(object), m.pop(object)
    if isinstance(target, Skipped):
        target.state = state
    elif isinstance(target, (PickledArray, PickledDtype)):
        built(target, state)
    elif not isinstance(target, dict):
        raise m.wrong(f"attributes of {type(target).__name__}")
    m.push(target)


def _global(m: Machine, module: str, name: str) -> None:
    m.count += 1  # it takes as long as two others
    name = cut(f"{module}.{name}")
    m.budget.make(text_bytes(name), "its pickle")
    m.push(_Global(name))


def _stack_global(m: Machine) -> None:
    name, module = m.pop(str), m.pop(str)
    if len(name) + len(module) > 4 * LONGEST_NAME:  # not joined again and again
        raise m.wrong(f"a name of {len(name) + len(module)} characters")
    _global(m, module, name)


def _storage(m: Machine) -> None:
    match m.pop(tuple):
        case ("storage", _Global(name), str(key), str() | None, int(count), *view):
            kind = name.rpartition(".")[2]
            if kind not in STORAGES or not name.startswith("torch.") or view not in ([], [None]):
                m.push(Skipped(name))
                return
            storage = Storage(key, STORAGES[kind], count)
            _compare(m, key)
            if m.storages.setdefault(key, storage) != storage:
                raise m.wrong(f"two descriptions of storage {key[:99]!r}")
            m.push(storage)
        case ("module", _Global() as kind, *_):  # with its source text
            m.push(kind)
        case _:
            raise m.wrong("a persistent id that is no storage")


def _reduce(m: Machine) -> None:
    m.count += 1
    arguments, function = m.pop(tuple), m.pop(object)
    m.push(_made(m, function, arguments))


def _new_object(m: Machine, *, named: bool) -> None:
    if named:
        m.pop(object)
    m.pop(object)
    cls = m.pop(object)
    if not isinstance(cls, (_Global, Skipped)):
        raise m.wrong(f"{type(cls).__name__} where a class belongs")
    m.push({} if cls.name in _DICTS else Skipped(cls.name))


def _made(m: Machine, function: Any, arguments: tuple[Any, ...]) -> Any:
    """Return what a function of torch makes of tensors; a `Skipped` for all other functions."""
    if not isinstance(function, (_Global, Skipped)):
        raise m.wrong(f"{type(function).__name__} where a function belongs")
    name = function.name if isinstance(function, _Global) else ""
    if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
        match arguments:
            case (_Global(inner), _Global(cls), tuple(args), *_) if inner != name:
                if cls in _TENSORS:
                    return _made(m, _Global(inner), args)
                return Skipped(cls)
    if name == "_codecs.encode" and arguments and isinstance(arguments[0], str):
        # The text may be in the file once and be encoded many times.
        m.budget.step(len(arguments[0]) // _COMPARED_IN_A_STEP, "its pickle")
        m.budget.make(len(arguments[0]), "its pickle")
    if name in FUNCTIONS and (result := made(name, arguments)) is not None:
        return result
    short = name.rpartition(".")[2] if name.startswith("torch._utils.") else name
    if short not in _ARGUMENTS_KNOWN:
        return Skipped(_UNLIKE.get(name, function.name))
    match short, arguments:
        case ("collections.OrderedDict", ()) | ("collections.defaultdict", _):
            return {}
        case "collections.OrderedDict", (list(pairs) | tuple(pairs),):
            # They may be in the file once and be used many times.
            m.budget.make_objects(len(pairs))
            if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
                raise m.wrong("other pairs than keys and values")
            m.push({})
            _set(m, [part for pair in pairs for part in pair])
            return m.pop(dict)
        case "_rebuild_parameter" | "_rebuild_parameter_with_state", (first, *_):
            if isinstance(first, (PickledTensor, Skipped)):
                return first
        case (
            "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3",
            (storage, int(offset), tuple(shape), tuple(strides), *rest),
        ) if max(len(shape), len(strides)) <= MOST_AXES and all(
            type(n) is int for n in (*shape, *strides)
        ):
            tensor = PickledTensor(storage, offset, shape, strides)
            return _tensor(m, short, storage, tensor, rest)
    raise m.wrong(f"other arguments than torch.save gives {short}")


def _tensor(m: Machine, function: str, storage: Any, tensor: PickledTensor, rest: list[Any]) -> Any:
    """Return a tensor, or what it is if its numbers are not those in the storage."""
    if isinstance(storage, Skipped):
        return storage
    if not isinstance(storage, Storage):
        raise m.wrong(f"other arguments than torch.save gives {function}")
    version_3 = function == "_rebuild_tensor_v3"
    metadata = rest[2 + version_3] if len(rest) > 2 + version_3 else None
    if isinstance(metadata, dict) and metadata:  # {"neg": True}: the numbers are their negatives
        return Skipped("a view that negates or conjugates its numbers")
    if version_3:
        match rest:
            case (_, _, _Global(dtype), *_) if dtype.startswith("torch."):
                return tensor._replace(storage=storage._replace(dtype=dtype[6:99]))
        raise m.wrong(f"other arguments than torch.save gives {function}")
    return tensor if storage.dtype != "bytes" else Skipped("a tensor of bytes without a dtype")


_STOP = ord(".")
_INSTRUCTIONS: dict[int, Callable[[Machine], None]] = {
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
        "\x8a": lambda m: _long(m, m.number("<B")),
        "\x8b": lambda m: _long(m, m.number("<i")),
        "G": lambda m: m.push(m.number(">d")),
        "\x8c": lambda m: _text(m, m.number("<B")),
        "X": lambda m: _text(m, m.number("<I")),
        "\x8d": lambda m: _text(m, m.number("<Q")),
        "U": lambda m: _old_text(m, m.number("<B")),
        "T": lambda m: _old_text(m, m.number("<I")),
        "C": lambda m: _bytes(m, m.number("<B")),
        "B": lambda m: _bytes(m, m.number("<I")),
        "\x8e": lambda m: _bytes(m, m.number("<Q")),
        "\x96": lambda m: _bytes(m, m.number("<Q")),  # BYTEARRAY8
        "(": lambda m: m.marks.append(len(m.stack)),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "]": lambda m: m.push([]),
        "a": lambda m: _extend(m, [m.pop(object)], (list, Skipped)),
        "e": lambda m: _extend(m, m.pop_mark(), (list, Skipped)),
        "\x8f": lambda m: m.push(Skipped("set")),
        "\x90": lambda m: _extend(m, m.pop_mark(), Skipped),
        "\x91": lambda m: m.push(Skipped(f"frozenset of {len(m.pop_mark())}")),
        "}": lambda m: m.push({}),
        "s": _set_item,
        "u": lambda m: _set(m, m.pop_mark()),
        "0": lambda m: m.pop(object),
        "q": lambda m: m.remember(m.number("<B")),
        "r": lambda m: m.remember(m.number("<I")),
        "\x94": lambda m: m.remember(len(m.memo)),
        "h": lambda m: m.push(m.memo[m.number("<B")]),
        "j": lambda m: m.push(m.memo[m.number("<I")]),
        "c": lambda m: _global(m, m.line(), m.line()),
        "\x93": _stack_global,
        "Q": _storage,
        "R": _reduce,
        "\x81": lambda m: _new_object(m, named=False),
        "\x92": lambda m: _new_object(m, named=True),
        "b": _build,
    }.items()
}
