"""The locks of the library, each held for moments, in the order in which they may nest.

A child of fork gets every lock as it was at that moment, and the thread that held one is not there
to give it back. So who forks takes them all first: the child finds them free, and no weights that
are half written.
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

building = threading.RLock()  # two first calls at once must not make two sets of weights
writing = threading.RLock()  # who writes weights that belong together
packing = threading.Lock()  # calls that need weights packed: the first packs, the others wait
counting = threading.Lock()  # names of layers, draws of dropout masks

_written: object = object()  # another one after every write of weights

if hasattr(os, "register_at_fork"):
    for _lock in (counting, packing, writing, building):  # the one registered last is taken first
        os.register_at_fork(
            before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
        )


def assign_all(changes: list[tuple[Any, str, Any]]) -> None:
    """Set (object, attribute, value), all of them or, if the user interrupts, none.

    Python runs signal handlers, and other threads, between the instructions of its own: there are
    none in here.
    """
    deque(starmap(setattr, changes), maxlen=0)


def publish(changes: list[tuple[Any, str, Any]]) -> None:
    """Write weights as `assign_all` does, and let `at_once` know; by who holds ``writing``."""
    assign_all([*changes, (sys.modules[__name__], "_written", object())])


def at_once(read: Callable[[], T]) -> T:
    """Return what ``read`` finds of weights that belong together, all old or all new.

    It waits for nobody, unless somebody writes at that very moment: a thread that has a lock may
    be out of the processor for long.
    """
    before = _written
    found = read()
    if _written is before:
        return found
    with writing:
        return read()
