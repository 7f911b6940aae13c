"""Read thousands of damaged files in a process of its own, and say how each ended.

    python tests/support/hostile_files.py READER SEED COUNT FILE...

prints a JSON object: how many were read and how many refused with a ValueError, everything that
ended otherwise, executed or wrote something, the slowest in seconds, and the growth of memory in
bytes. The process may not have more than `MOST_MEMORY`: whatever asks for more gets a
MemoryError. It is a process of its own because a C library may crash.
"""

import importlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

MOST_MEMORY = 500 << 20

NUMBERS = [
    0,
    1,
    2,
    3,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
]


def damage(data, rng):
    """Bits flipped, bytes written over, parts cut out, doubled or moved, numbers forged."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        at = rng.randrange(len(data) + 1)
        some = rng.randrange(1, 40)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + some]
        elif kind == 4:
            data[at:at] = data[at : at + some]
        elif kind == 5:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) % 2 ** (8 * size)
            data[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        else:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + some]
    return bytes(data)


def damage_member(data, rng):
    """One member of a zip damaged, renamed or dropped, with a directory and checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    # The member that says what the others mean is the most worth damaging.
    victim = 0 if rng.random() < 0.6 else rng.randrange(len(members))
    name, content = members[victim]
    kind = rng.randrange(12)
    if kind == 0:
        del members[victim]
    elif kind == 1:
        name = damage(name.encode(), rng).decode("latin-1").replace("\0", "0")
        members[victim] = (name or "x", content)
    else:
        members[victim] = (name, damage(content, rng))
    packed = io.BytesIO()
    how = rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(packed, "w", how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names
        for name, content in members:
            archive.writestr(name, content)
    return packed.getvalue()


def damage_header(data, rng):
    """A safetensors header damaged, its length and its padding right."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.5:  # a number for a number
            digits = [i for i, byte in enumerate(header) if chr(byte).isdigit()]
            if digits:
                at = rng.choice(digits)
                number = str(rng.choice([*NUMBERS, -1, 1e400, rng.randrange(99)])).encode()
                header = header[:at] + number + header[at + 1 :]
        else:
            header = damage(header, rng)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def damaged(data, rng):
    if data[:2] == b"PK" and rng.random() < 0.6:
        return damage_member(data, rng)
    if data[8:9] == b"{" and rng.random() < 0.6:
        return damage_header(data, rng)
    return damage(data, rng)


def forbidden(event, arguments):
    """Say whether an audit event means that something is executed or written."""
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        return any(c in (mode or "") for c in "wax+") or bool((flags or 0) & 3)
    return event in ("exec", "compile", "pickle.find_class", "os.system", "os.exec") or (
        event.split(".")[0] in ("subprocess", "socket", "shutil", "urllib", "ctypes")
        or event in ("os.remove", "os.rename", "os.mkdir", "os.posix_spawn", "os.fork", "os.chmod")
    )


def main(reader, seed, count, *files):
    module, name = reader.rsplit(".", 1)
    read = getattr(importlib.import_module(module), name)
    originals = [Path(file).read_bytes() for file in files]
    rng = random.Random(int(seed))
    ends = {"read": 0, "refused": 0, "wrong": [], "slowest": 0.0}
    watching = [False]
    seen = []
    sys.addaudithook(
        lambda event, arguments: (
            watching[0] and forbidden(event, arguments) and seen.append(f"{event} {arguments}")
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged")
        for late in ("difflib", "encodings.cp437"):  # what is imported when it is first needed
            importlib.import_module(late)
        for original in originals:
            path.write_bytes(original)
            read(path)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(int(count)):
            data = damaged(rng.choice(originals), rng)
            path.unlink()  # not written over: an earlier one may still be mapped
            path.write_bytes(data)
            start = time.perf_counter()
            watching[0] = True
            try:
                read(path)
                ends["read"] += 1
            except ValueError as error:
                ends["refused"] += 1
                if not str(error).strip():
                    ends["wrong"].append(f"{number}: no message")
            except BaseException as error:
                ends["wrong"].append(f"{number}: {type(error).__name__}: {str(error)[:300]}")
            watching[0] = False
            ends["slowest"] = max(ends["slowest"], time.perf_counter() - start)
            ends["wrong"] += [f"{number}: {event}" for event in seen]
            seen.clear()
        ends["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ends["memory"] *= 1024
    ends["wrong"] = ends["wrong"][:20]
    print(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
