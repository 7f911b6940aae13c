"""Files of torch.save before version 1.6: five pickles, then the storages one after another."""

from __future__ import annotations

import mmap as memory_map
from typing import TYPE_CHECKING, Any

from fastgru.io.torch_pickle import MOST_BYTES, Machine, element_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from fastgru.io.budget import Budget

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_PICKLE = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
_PROTOCOL = 1001  # torch's own number of this format


def is_legacy(head: bytes) -> bool:
    """Say whether a file that begins so is of this format, in pickle's protocols 2 to 5."""
    return head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and _MAGIC_PICKLE in head[:24]


class LegacyFile:
    """A file of torch before version 1.6, mapped into memory.

    Parameters
    ----------
    path : Path
    budget : Budget

    Attributes
    ----------
    tree : object
        What was saved, as `load_pickle` gives it.
    order : str
        "little" or "big".

    Raises
    ------
    ValueError
        The file is damaged.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self.where, self._budget = str(path), budget
        with budget.open(path) as file:
            self._data = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_READ)
        try:
            self.tree, self.order = self._parse()
        except BaseException:
            self.close()
            raise

    def _parse(self) -> tuple[Any, str]:
        machines = []
        at = 0
        for _ in range(5):  # magic number, protocol, about the machine, the object, keys
            machine = Machine(self._data, self.where, self._budget, at)
            machines.append((machine, machine.load()))
            if machine.at - at > MOST_BYTES:
                raise ValueError(f"{self.where}: expected pickles of at most {MOST_BYTES} bytes")
            at = machine.at
        (_, magic), (_, protocol), (_, about), (main, tree), (_, keys) = machines
        little = about.get("little_endian") if isinstance(about, dict) else None
        if (magic, protocol) != (_MAGIC, _PROTOCOL) or not isinstance(little, bool):
            raise ValueError(
                f"{self.where}: expected a file of torch.save of protocol {_PROTOCOL}, got "
                f"{protocol if isinstance(protocol, int) else type(protocol).__name__}"
            )
        order = "little" if little else "big"
        if not isinstance(keys, list) or len({key for key in keys if type(key) is str}) != len(
            keys
        ):
            raise ValueError(
                f"{self.where}: damaged: its list of storages has other keys than names"
            )
        self._budget.make_objects(2 * len(keys))
        self._places: dict[str, tuple[int, int]] = {}
        for key in keys:
            storage = main.storages.get(key)
            if storage is None or len(self._data) - at < 8:
                raise ValueError(f"{self.where}: damaged or cut short before storage {key[:50]!r}")
            count = int.from_bytes(self._data[at : at + 8], "little")
            size = count * element_bytes(storage.dtype)
            if at + 8 + size > len(self._data):
                raise ValueError(
                    f"{self.where}: cut short: expected {size} bytes for storage {key[:50]!r}, got "
                    f"{len(self._data) - at - 8}"
                )
            self._places[key] = at + 8, size
            at += 8 + size
        return tree, order

    def read(self, key: str) -> bytes:
        """Return a storage's bytes; ValueError if the file does not have it."""
        if key not in self._places:
            raise ValueError(f"{self.where}: expected a storage {key[:50]!r}, got none")
        start, size = self._places[key]
        self._budget.make(size, key)
        return self._data[start : start + size]

    def close(self) -> None:
        """Close the file."""
        self._data.close()

    def __enter__(self) -> LegacyFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
