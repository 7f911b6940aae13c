"""One peer in one process: both ends of the pipe.

`Worker` is the parent's handle; run as a script, this file is the process behind it. Messages are
pickles over the process' standard input and output, one answer to each request:

    request   ("prepare", task, problem)          answer   the peer's output, float32 arrays
              ("block", seconds, calls)                    a dict of figures, see `time_block`
              ("measure", seconds, size)                   that of the limits, see limits.py
              ("do", name, arguments)                      what that method of the peer returns
    answers   ("ok", value) | ("missing", reason) | ("failed", reason)

The first answer comes unasked: the peer's versions, or why it is missing.
"""

import gc
import os
import pickle
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from problems import TASKS, Float32Array, Problem

# Removed from every worker: the first two pin OpenBLAS to AVX2 (five times slower at batch 1 on an
# AVX-512 machine), the others would bind or spin one peer's threads unlike another's.
REMOVED_VARIABLES = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "XLA_FLAGS",
    "FASTGRU_BACKEND",
    "FASTGRU_ISA",
)
# NPROC is where XLA's CPU client looks before it counts the processors of the affinity.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NPROC",
)
WARM_SECONDS = 0.01
ANSWER_SECONDS = 600.0


class WorkerError(Exception):
    """A worker answered that it failed, died, or did not answer in time."""


class MissingPeer(WorkerError):
    """The peer cannot be imported here."""


def settle(limit: float = 1.0, interval: float = 0.01) -> bool:
    """Wait until this process uses next to no processor time.

    Thread pools spin for a while after their work (OpenBLAS for about 100 ms) and would take a core
    from whoever is measured next.

    Parameters
    ----------
    limit, interval : float
        Seconds: when to give up, and the window that must be quiet.

    Returns
    -------
    bool
        False if it was still busy at the limit.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = time.process_time()  # of all threads together
        time.sleep(interval)
        if time.process_time() - before < 0.1 * interval:
            return True
    return False


def time_block(call: Callable[[], Any], seconds: float, calls: int) -> dict[str, Any]:
    """Time single calls for a while.

    Parameters
    ----------
    call : callable
    seconds, calls : float, int
        Goes on until both this much time was measured and this many calls were made.

    Returns
    -------
    dict
        ``median_us``, ``best_us``, ``p90_us`` (microseconds a call), ``calls``, ``cpu_per_wall``
        (processor seconds per second; near the thread count where all of them work or spin),
        ``quiet`` (the process was idle again when it answered) and ``cpu_s`` (all processor
        seconds from the request to the answer).
    """
    clock = time.perf_counter_ns
    cpu_asked = time.process_time()
    warm_end = clock() + int(WARM_SECONDS * 1e9)
    call()
    while clock() < warm_end:  # wakes the pool, brings the weights back into cache
        call()
    budget = int(seconds * 1e9)
    times: list[int] = []
    spent = 0
    collecting = gc.isenabled()
    gc.disable()
    cpu_start, wall_start = time.process_time(), clock()
    while spent < budget or len(times) < calls:
        start = clock()
        call()
        took = clock() - start
        times.append(took)
        spent += took
    wall, cpu = (clock() - wall_start) * 1e-9, time.process_time() - cpu_start
    if collecting:
        gc.enable()
    times.sort()
    quiet = settle()
    return {
        "median_us": statistics.median(times) / 1e3,
        "best_us": times[0] / 1e3,
        "p90_us": times[int(0.9 * (len(times) - 1))] / 1e3,
        "calls": len(times),
        "cpu_per_wall": round(cpu / wall, 2),
        "quiet": quiet,
        "cpu_s": round(time.process_time() - cpu_asked, 4),
    }


class Worker:
    """The parent's handle of one peer's process; a context manager.

    Parameters
    ----------
    name : str
        A name of `peers.PEERS` or `gpu_peers.PEERS`, or ``name@VARIABLE=value,...``: the same peer
        with these variables in its environment, such as ``numpy@OPENBLAS_CORETYPE=Haswell``; or
        "limits".
    environment : mapping
        What the peer itself needs (`peers.ENVIRONMENT`); the variables in the name come last.
    threads : int
    cpus : collection of int
        The processors the process is bound to, before it imports anything.
    """

    def __init__(
        self, name: str, environment: Mapping[str, str], threads: int, cpus: Collection[int]
    ) -> None:
        self.name = name
        self.peer, _, variables = name.partition("@")
        self.environment = dict.fromkeys(THREAD_VARIABLES, str(threads)) | dict(environment)
        self.environment |= parse_variables(variables)
        inherited = {k: v for k, v in os.environ.items() if k not in REMOVED_VARIABLES}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).resolve()),
                self.peer,
                str(threads),
                ",".join(str(cpu) for cpu in sorted(cpus)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=inherited | self.environment,
        )

    def start(self) -> dict[str, str]:
        """Wait for the imports; returns the versions, raises `MissingPeer` where they fail."""
        versions: dict[str, str] = self._receive()
        return versions

    def prepare(self, task: str, problem: Problem) -> list[Float32Array]:
        """Give it the problem; returns its answer, as the task's reference lists it."""
        answer: list[Float32Array] = self._ask("prepare", task, problem)
        return answer

    def block(self, seconds: float, calls: int) -> dict[str, Any]:
        """Time the prepared problem; see `time_block`."""
        figures: dict[str, Any] = self._ask("block", seconds, calls)
        return figures

    def measure(self, seconds: float, size: int) -> dict[str, float]:
        """Ask the process "limits" for its figures; see `limits.Limits.measure`."""
        figures: dict[str, float] = self._ask("measure", seconds, size)
        return figures

    def do(self, name: str, *arguments: Any) -> Any:
        """Call a method of the peer."""
        return self._ask("do", name, arguments)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def __enter__(self) -> "Worker":
        """Give itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        try:
            pickle.dump(request, self._process.stdin, protocol=5)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._how_it_ended()) from None
        return self._receive()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        # Strictly one answer to a request: nothing can be waiting in the buffer already.
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            self._process.kill()
            raise WorkerError(f"no answer in {ANSWER_SECONDS:.0f} s")
        try:
            kind, value = pickle.load(self._process.stdout)
        except EOFError:
            raise WorkerError(self._how_it_ended()) from None
        if kind == "ok":
            return value
        raise (MissingPeer if kind == "missing" else WorkerError)(value)

    def _how_it_ended(self) -> str:
        code = self._process.wait(timeout=10)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with status {code}: {lines[-1] if lines else 'no message'}"


def parse_variables(text: str) -> dict[str, str]:
    """Read ``NAME=value,NAME=value``."""
    variables = {}
    for pair in filter(None, text.split(",")):
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ValueError(f"{pair!r} is not of the form VARIABLE=value")
        variables[name] = value
    return variables


def serve(peer_name: str, threads: int, cpus: set[int]) -> None:
    """Be the process of one peer, until the parent closes the pipe."""
    # Libraries print: what they print goes to the log, and the pipe is ours alone.
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(kind: str, value: Any) -> None:
        pickle.dump((kind, value), answers, protocol=5)
        answers.flush()

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    import gpu_peers
    from limits import Limits
    from peers import PEERS

    try:
        peer = (PEERS | gpu_peers.PEERS | {"limits": Limits})[peer_name](threads)
        answer("ok", peer.versions() | {"python": platform.python_version()})
    except ImportError as error:
        answer("missing", f"{type(error).__name__}: {error}")
        return
    except Exception as error:
        answer("missing", f"it does not start: {type(error).__name__}: {error}")
        return
    prepared = None
    while True:
        try:
            verb, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if verb == "prepare":
                task, problem = arguments
                prepared = None  # frees the last shape's memory first
                prepared = getattr(peer, task)(problem)
                output = []
                for _ in range(TASKS[task].calls if peer_name in PEERS else 1):
                    arrays = prepared.to_numpy(prepared.call())
                    arrays = arrays if isinstance(arrays, tuple) else (arrays,)
                    # Copied: the next call may write into the same buffer.
                    output += [np.array(array, np.float32) for array in arrays]
                settle()
                answer("ok", output)
            elif verb == "block":
                if prepared is None:
                    raise RuntimeError("nothing is prepared")
                answer("ok", time_block(prepared.call, *arguments))
            elif verb == "measure":
                answer("ok", peer.measure(*arguments))
            elif verb == "do":
                name, values = arguments
                answer("ok", getattr(peer, name)(*values))
            else:
                raise ValueError(f"unknown request {verb!r}")
        except Exception as error:  # whatever a library raises, the parent reports it by name
            answer("failed", f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), {int(cpu) for cpu in sys.argv[3].split(",")})
