"""What the figures were taken on."""

import os
import platform
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from worker import REMOVED_VARIABLES

_CPUS = Path("/sys/devices/system/cpu")


def choose_cpus(threads: int) -> list[int]:
    """Choose the processors that every peer is bound to.

    Parameters
    ----------
    threads : int
        How many to choose of those that this process may use.

    Returns
    -------
    list of int
        One of each physical core first, second hyperthreads only when the cores are used up.

    Raises
    ------
    ValueError
        Fewer than `threads` are allowed here.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux: nobody is bound
        return list(range(threads))
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise ValueError(f"{threads} threads asked for, {len(allowed)} processors allowed")
    seen: dict[str, int] = {}

    def rank(cpu: int) -> int:
        siblings = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        core = siblings.read_text().strip() if siblings.exists() else str(cpu)
        seen[core] = seen.get(core, -1) + 1
        return seen[core]

    ranks = {cpu: rank(cpu) for cpu in allowed}
    return sorted(sorted(allowed, key=lambda cpu: (ranks[cpu], cpu))[:threads])


def busy_seconds(cpus: Collection[int]) -> float:
    """Count the seconds that these processors have worked, for whomever, or were stolen from us.

    Parameters
    ----------
    cpus : collection of int

    Returns
    -------
    float
        From an arbitrary start, in steps of 10 ms; 0 where the system does not tell.
    """
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    names = {f"cpu{cpu}" for cpu in cpus}
    ticks = 0
    for line in path.read_text().splitlines():
        name, *counts = line.split()
        if name in names:
            user, nice, system, _idle, _wait, irq, softirq, steal = (int(c) for c in counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def describe_machine() -> dict[str, Any]:
    """Describe the processor, the system and the checkout, for the JSON file."""
    facts = _cpuinfo()
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "logical_cpus": os.cpu_count(),
        "allowed_cpus": _allowed(),
        "flags": sorted(facts.get("flags", facts.get("Features", "")).split()),
        "caches": _caches(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_average": _load(),
        "removed_from_workers": {
            name: os.environ[name] for name in REMOVED_VARIABLES if name in os.environ
        },
        "commit": _commit(),
    }


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _load() -> list[float]:
    return [round(load, 2) for load in os.getloadavg()]


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted((_CPUS / "cpu0" / "cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        caches[f"L{level} {kind.lower()}"] = size
    return caches


def _commit() -> str:
    """Give the checkout's commit, with "+" where files differ from it; "" where git is missing."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
