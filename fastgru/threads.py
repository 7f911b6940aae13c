"""The number of threads that a call may use.

The default is the smallest of the process's CPU affinity, its cgroup's CPU quota and
OMP_NUM_THREADS. In a container, the host's number of processors would be wrong.
"""

from __future__ import annotations

import contextvars
import math
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastgru.problem import check_num_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_default: int | None = None  # computed when it is first needed
_process: int = 0  # the number of set_num_threads; 0 before its first call
_followers: list[Callable[[int], None]] = []
_block: contextvars.ContextVar[int] = contextvars.ContextVar("fastgru_num_threads", default=0)


def get_num_threads() -> int:
    """Return the number of threads that a call without ``num_threads=`` may use."""
    return _block.get() or _process or default_num_threads()


def set_num_threads(num_threads: int) -> None:
    """Set the number of threads for the whole process.

    Parameters
    ----------
    num_threads : int
        At least 1. It is an upper bound: small calls run on one thread. Calls that run at the same
        time share the threads: each call has its caller's thread, and all together have at most
        ``num_threads - 1`` further threads.

    Raises
    ------
    TypeError
        It is not an integer.
    ValueError
        It is less than 1.
    """
    global _process
    _process = _checked(num_threads)
    for follower in _followers:
        follower(_process)


def call_on_change(follower: Callable[[int], None]) -> None:
    """Call ``follower(n)`` with the process's number of threads, now and at each change."""
    _followers.append(follower)
    follower(_process or default_num_threads())


@contextmanager
def num_threads(num_threads: int) -> Iterator[None]:
    """Set the number of threads inside a ``with`` block, for this Python thread or task only.

    Blocks nest, and the innermost one counts. It overrides `set_num_threads`. Threads that start
    inside the block do not inherit it.

    Parameters
    ----------
    num_threads : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        As `set_num_threads`.
    """
    token = _block.set(_checked(num_threads))
    try:
        yield
    finally:
        _block.reset(token)


def _checked(count: Any) -> int:
    if count is None:
        raise TypeError("num_threads: expected an integer >= 1, got None")
    return check_num_threads(count)


def default_num_threads() -> int:
    """Return min(affinity, cgroup quota rounded up, OMP_NUM_THREADS), computed once."""
    global _default
    if _default is None:
        _default = min(processors(), _omp_limit() or processors())
    return _default


def processors() -> int:
    """Return the number of processors of this process, min(affinity, cgroup quota rounded up)."""
    return max(1, min(_affinity(), _cgroup_limit("/") or _affinity()))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _omp_limit() -> int | None:
    # "4" or, per nesting level, "4,2". Like OpenMP, this ignores other values.
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _cgroup_limit(root: str) -> int | None:
    """Return the CPU quota of this process in whole CPUs, rounded up; None without one.

    A group's quota also limits the groups below it, so this reads all groups up to the root. In a
    container the path in /proc may be the host's and not exist; then the root's files have the
    quota.
    """
    quotas = []
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if controllers == "":
            base = os.path.join(root, "sys/fs/cgroup")
        elif "cpu" in names:
            base = os.path.join(root, "sys/fs/cgroup", controllers)
            if not os.path.isdir(base):
                base = os.path.join(root, "sys/fs/cgroup/cpu")
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            group = os.path.join(base, *parts[:depth])
            quotas.append(_quota(group, version_2=controllers == ""))
    cpus = [quota for quota in quotas if quota is not None]
    return max(1, math.ceil(min(cpus))) if cpus else None


def _quota(group: str, version_2: bool) -> float | None:
    if version_2:
        words = _read(group, "cpu.max").split()
    else:
        words = [_read(group, f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # there is no such file, or it says "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(*parts: str) -> str:
    try:
        # Not by pathlib, which `import fastgru` would import for this alone.
        with open(os.path.join(*parts), encoding="utf-8") as file:
            return file.read()
    except OSError:  # the system is not Linux, or the file system is not mounted
        return ""
