"""Valid files whose structure is drawn large: read or refused at a cost as their size is.

    python structure_fuzz.py KIND FIRST COUNT

Nothing is altered blindly here: counts, links, sharing, names and sizes are drawn, some of them
large, and the file that they make is valid for its format. Every case is made from its number
alone. Reading one may take ``4 * size + 64 MB`` of memory and ``2 s + 1 s per 50 MB`` of processor
time, ends with a result or a ValueError of at most 2,000 characters, executes and writes nothing,
imports nothing new and opens no file outside of the model's folder.

Prints JSON: how many were read and refused, the slowest in seconds, the most memory in MB, both
also as parts of what is allowed, with the number of the case.
"""

import ctypes
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

FORBIDDEN = {
    *("exec", "compile", "pickle.find_class", "marshal.loads"),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
    *("socket.connect", "socket.bind", "urllib.Request", "ctypes.dlopen", "ctypes.dlsym"),
}
MODULES = ("structure_hdf5", "structure_tensorflow", "structure_torch", "structure_onnx")
MISSING = {}  # module of kinds -> the package that it lacks here
LONGEST_MESSAGE = 2000


class Case(NamedTuple):
    """What a kind makes of a number.

    ``path`` is what is read, ``readers`` are functions of a path of which one is drawn. All files
    lie in the folder that the kind was given.
    """

    path: Path
    readers: list


class TooLongError(BaseException):
    """No reader may catch it."""


def large(rng, most, least=0):
    """Draw a count: each size of number is as likely, so a few are near ``most``."""
    return least + int((most - least + 1) ** rng.random()) - 1


def kinds():
    """Return the kinds of all modules that can be imported here: name -> function(folder, rng)."""
    found = {}
    for name in MODULES:
        try:
            found |= importlib.import_module(name).KINDS
        except ModuleNotFoundError as error:
            MISSING[name] = error.name
    return found


def allowed_bytes(size):
    return 4 * size + (64 << 20)


def allowed_seconds(size):
    return 2 + size / (50 << 20)


_trim = ctypes.CDLL(None).malloc_trim


def resident(name):
    """Return ``VmRSS`` or ``VmHWM`` of this process in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) << 10
    raise AssertionError(name)


def forget_peak():
    """Give freed memory back, make the peak what is resident now, and return it."""
    _trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


class Watch:
    """Notices what is executed, written, imported or opened elsewhere while a file is read."""

    def __init__(self, folder):
        self.folder = folder
        self.on = False
        self.seen = []
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if not self.on:
            return
        if event in FORBIDDEN or (event == "import" and arguments[0] not in sys.modules):
            self.seen.append(f"{event} {arguments!r}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(path, int):  # it was seen when it was opened by name
                return
            real = Path(os.path.realpath(os.fsdecode(path)))
            writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or not real.is_relative_to(self.folder):
                self.seen.append(f"open {arguments!r}")


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def read(reader, path, watch, seconds):
    """Read a file; return "read" or "refused", the seconds and bytes it took."""

    def ring(*_):
        raise TooLongError

    signal.signal(signal.SIGPROF, ring)
    before = forget_peak()
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 2 * seconds + 1)  # only what would not end
    watch.on = True
    try:
        found = reader(path)
        end = "read"
    except ValueError as error:
        found, end = error, "refused"
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    took = time.process_time() - start
    peak = resident("VmHWM") - before
    if end == "refused":
        assert str(found).strip(), "no message"
        assert len(str(found)) <= LONGEST_MESSAGE, f"a message of {len(str(found))} characters"
    return end, took, peak


def run(kind, first, count, folder):
    """Run cases; print what became of them and what the worst cost."""
    make = kinds()[kind]
    warnings.simplefilter("ignore")
    codecs = [f"encodings.utf_{n}{end}" for n in (16, 32) for end in ("", "_be", "_le")]
    for late in ("difflib", "ml_dtypes", "encodings.utf_8_sig", "encodings.cp437", *codecs):
        importlib.import_module(late)
    watch = Watch(Path(os.path.realpath(folder)))
    # Not a bound of the readers: that a fault takes this process, and not the machine.
    resource.setrlimit(resource.RLIMIT_AS, (resident("VmSize") + (3 << 30),) * 2)
    ends = {"read": 0, "refused": 0}
    worst = {"s": (0.0, 0, 0.0), "MB": (0.0, 0, 0.0)}
    for seed in range(min(first, 0) - 10, first + count):
        warm = seed < min(first, 0)  # the first ones load modules and count for nothing
        if not warm and seed < first:
            continue
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        rng = random.Random(seed)
        case = make(folder, rng)
        size = size_of(folder)
        files = sorted(folder.rglob("*"))
        if warm:
            for reader in case.readers:
                try:
                    reader(case.path)
                except ValueError:
                    continue
            continue
        reader = rng.choice(case.readers)
        seconds, most = allowed_seconds(size), allowed_bytes(size)
        try:
            end, took, peak = read(reader, case.path, watch, seconds)
            assert not watch.seen, watch.seen[:5]
            assert sorted(folder.rglob("*")) == files, "files were written"
            assert took <= seconds, f"{took:.2f} s of {seconds:.2f} for {size} bytes"
            assert peak <= most, f"{peak >> 20} MB of {most >> 20} for {size} bytes"
        except BaseException:
            print(f"case {seed} of {kind}, {size} bytes, {reader}", file=sys.stderr)
            raise
        ends[end] += 1
        for what, part, value in (("s", took / seconds, took), ("MB", peak / most, peak / 2**20)):
            worst[what] = max(worst[what], (round(part, 3), seed, round(value, 3)))
    print(json.dumps({**ends, **worst}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        try:
            run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(place))
        except BaseException:
            traceback.print_exc()
            sys.exit(1)
