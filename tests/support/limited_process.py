"""Commands in processes of their own, with limits on memory and time, and what they took."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import subprocesses

MB = 1 << 20


class Ended(NamedTuple):
    """How a process ended: its exit code, its output as bytes, its peak memory and its time."""

    code: int
    out: bytes
    err: bytes
    peak: int
    seconds: float


# Between the tests and the command stands a small process: a child that is forked begins with the
# peak memory of its parent, and the tests' is large.
BETWEEN = """
import resource, subprocess, sys
report, space, *command = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (int(space), int(space)))
code = subprocess.call(command)
with open(report, "w") as file:
    print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=file)
"""


def run(*command, address_space=4 << 30, timeout=60, variables=None):
    """Run a command that may have so many bytes of address space and so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report, start = Path(folder, "report"), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", BETWEEN, report, str(address_space), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=subprocesses.environment(**(variables or {})),
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise AssertionError(f"{command}: not done after {timeout} s") from None
        code, peak = map(int, report.read_text().split())
        return Ended(code, out, err, peak * 1024, time.monotonic() - start)


def fastgru(*arguments, **limits):
    """Run the command line."""
    return run(sys.executable, "-P", "-m", "fastgru", *arguments, **limits)
