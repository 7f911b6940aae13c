"""The library's locks, in the order in which they may nest. Threads hold each for a short time.

After a fork the child has the locks in their states at that moment, but not the other threads,
which could release them. So a fork first acquires all locks. Then all are free in the child, and no
weights are half written.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from itertools import starmap
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

building = threading.RLock()  # so that two first calls do not make two sets of weights
writing = threading.RLock()  # held while weights that belong together are written
packing = threading.Lock()  # of calls that need packed weights, the first packs and others wait
counting = threading.Lock()  # held while layers are named and draws of dropout masks counted

_written: object = object()  # replaced by a new object at every write of weights

if hasattr(os, "register_at_fork"):
    for _lock in (counting, packing, writing, building):  # a fork acquires the last one first
        os.register_at_fork(
            before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
        )


def assign_all(changes: list[tuple[Any, str, Any]]) -> None:
    """Set every (object, attribute, value), or none if the user interrupts.

    Python runs signal handlers and other threads only between instructions of Python code, and
    this line runs all assignments within one instruction; a layer's own `__setattr__` is Python's.
    """
    deque(starmap(object.__setattr__, changes), maxlen=0)


def publish(changes: list[tuple[Any, str, Any]]) -> None:
    """Write weights as `assign_all` does, visibly for `at_once`. The caller holds ``writing``."""
    assign_all([*changes, (sys.modules[__name__], "_written", object())])


def at_once(read: Callable[[], T]) -> T:
    """Return what ``read`` returns of weights that belong together: all old or all new ones.

    It takes no lock unless a thread writes during the read, because a thread that holds a lock may
    lose the processor for long.
    """
    before = _written
    found = read()
    if _written is before:
        return found
    with writing:
        return read()
