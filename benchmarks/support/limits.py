"""What this machine allows: multiply-adds a second, and bytes a second from a buffer of some size.

limits.c is compiled with the system's compiler when the process starts, for this very processor.
The threads are Python's: ctypes lets go of the interpreter for the length of a call, about 1 ms.
"""

import ctypes
import mmap
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).resolve().parent / "limits.c"
_HUGE_PAGE = 1 << 21
_READ_STEP = 512  # bytes; limits.c reads so many at a time
_SMALLEST = 1 << 14  # bytes a thread; below it the loop's ends would be measured
_FMA_ROUNDS = 200_000
_READ_BYTES = 1 << 26  # bytes a call


class Limits:
    """The loops of limits.c on so many threads; asked in a process of its own, as a peer is."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "limits.so")
            command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", path, str(_SOURCE)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise ImportError("there is no C compiler, cc") from None
            if done.returncode:
                raise ImportError(f"limits.c does not compile: {done.stderr.strip()}")
            self._library = ctypes.CDLL(path)
        self._library.fma_loop.argtypes = [ctypes.c_size_t, ctypes.c_float, ctypes.c_float]
        self._library.fma_flop.argtypes = [ctypes.c_size_t]
        self._library.fma_flop.restype = ctypes.c_size_t
        self._library.read_loop.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.measure(0.01, _SMALLEST)  # what cannot run here says so now

    def versions(self) -> dict[str, str]:
        """Give the compiler's first line."""
        done = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False)
        return {"cc": done.stdout.partition("\n")[0]}

    def measure(self, seconds: float, size: int) -> dict[str, Any]:
        """Measure both, each for half of the time.

        Parameters
        ----------
        seconds : float
        size : int
            Bytes, of all threads together: each reads its own part over and over.

        Returns
        -------
        dict
            ``gflops`` and ``gbytes_s``, sums over the threads of the median call of each.
        """
        library = self._library
        flop = library.fma_flop(_FMA_ROUNDS)
        part = max(size // self._threads, _SMALLEST) // _READ_STEP * _READ_STEP
        reads = max(1, _READ_BYTES // part)
        buffers = [_huge_pages(part) for _ in range(self._threads)]

        def fma(_: int) -> None:
            library.fma_loop(_FMA_ROUNDS, 0.999, 0.001)  # stays near 1

        def read(thread: int) -> None:
            library.read_loop(buffers[thread][1], part, reads)

        return {
            "gflops": round(flop * self._calls_a_second(fma, seconds / 2) / 1e9, 2),
            "gbytes_s": round(part * reads * self._calls_a_second(read, seconds / 2) / 1e9, 2),
        }

    def _calls_a_second(self, call: Callable[[int], None], seconds: float) -> float:
        rates = [0.0] * self._threads
        start = threading.Barrier(self._threads)

        def repeat(thread: int) -> None:
            call(thread)  # brings the buffer into cache, the processor to its clock
            start.wait()
            times: list[float] = []
            end = time.perf_counter() + seconds
            while not times or time.perf_counter() < end:
                before = time.perf_counter()
                call(thread)
                times.append(time.perf_counter() - before)
            rates[thread] = 1.0 / statistics.median(times)

        threads = [threading.Thread(target=repeat, args=(n,)) for n in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)


def _huge_pages(size: int) -> tuple[mmap.mmap, int]:
    """Allocate a buffer on 2 MiB pages where there are any; returns it and an address within.

    On small pages a read from L2 is up to a quarter slower on some processors; the limit is what
    the machine can give.
    """
    length = (size // _HUGE_PAGE + 2) * _HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):  # private: shared memory has huge pages by another setting
        memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    else:
        memory = mmap.mmap(-1, length)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    address = start + -start % _HUGE_PAGE
    ctypes.memset(address, 1, size)  # pages that nobody wrote are all the same page of zeros
    return memory, address
