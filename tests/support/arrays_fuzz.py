"""Altered files of every format, each read by `read_arrays` and as named arrays, or refused.

Usage: python arrays_fuzz.py COUNT SEED FOLDER FILE...
Prints JSON: how many were read and refused, the slowest in seconds. Any other end is a failure: an
error that is no ValueError, a read of more than 2 s, more than 500 MB, a crash, a written file.
"""

import json
import resource
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from fastgru.io import read_arrays
from fastgru.io.named_arrays import find

SECONDS, BYTES = 2, 500 << 20
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 31, (1 << 40) - 1, (1 << 63) - 1]


def flipped(rng, data):
    """The bytes: flipped, cut, doubled, or with a number that lies."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        # Headers and tables are at the ends of these files.
        where = [len(data), min(len(data), 300)][rng.integers(2)]
        at = int(rng.integers(0, where + 1))
        at = len(data) - at if rng.integers(3) == 0 else at
        kind = rng.integers(7)
        if kind < 3 and data:
            data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            size = int(2 ** rng.integers(0, 4))
            number = NUMBERS[rng.integers(len(NUMBERS))] % (1 << 8 * size)
            data[at : at + size] = number.to_bytes(size, "little")
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 30))]
        elif kind == 5:
            data[at:at] = data[max(0, at - 60) : at]
        elif rng.integers(4) == 0:
            del data[at:]
        else:
            data[at : at + 10] = rng.bytes(10)
    return bytes(data)


def altered(rng, path, target):
    """Write an altered file: of a zip file half the time one of its members."""
    data = path.read_bytes()
    if data[:2] != b"PK" or rng.integers(2):
        target.write_bytes(flipped(rng, data))
        return
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        infos = source.infolist()
        chosen = int(rng.integers(len(infos)))
        for number, info in enumerate(infos):
            member = source.read(info)
            name = info.filename
            if number == chosen:
                member = flipped(rng, member)
            archive.writestr(name, member)


def main():
    count, seed, folder, *paths = sys.argv[1:]
    files, folder = [Path(path) for path in paths], Path(folder)
    for path in files:
        read_arrays(path)  # what is imported and allocated once is there before the limit
        try:
            find(path)
        except ValueError:
            continue
    grown = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (grown + BYTES, grown + BYTES))
    ends = {"read": 0, "refused": 0, "slowest": 0.0}
    for i in range(int(count)):
        rng = np.random.default_rng([int(seed), i])
        path = files[i % len(files)]
        target = folder / f"case{path.suffix}"
        altered(rng, path, target)
        start = time.process_time()
        try:
            read_arrays(target)
            ends["read"] += 1
            if path.suffix in (".npz", ".h5"):
                find(target)
        except ValueError:
            ends["refused"] += 1
        except BaseException:
            print(f"mutation {i} of seed {seed}: {path}", file=sys.stderr)
            raise
        seconds = time.process_time() - start
        ends["slowest"] = max(ends["slowest"], seconds)
        if seconds > SECONDS:
            raise SystemExit(f"mutation {i} of seed {seed} took {seconds:.1f} s: {path}")
        target.unlink()
        if left := list(folder.iterdir()):
            raise SystemExit(f"mutation {i} of seed {seed} wrote {left}")
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
