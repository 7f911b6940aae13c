"""Alter ONNX files in thousands of ways and read them, in a process that may not grow.

Usage: python onnx_mutations.py COUNT SEED FILE...
Prints JSON: how many were read and refused, the slowest in seconds. Any other end is a failure: an
error that is no ValueError, a read of more than 2 s, more than 500 MB, a crash.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import onnx

import fastgru
from fastgru.io import from_onnx

SECONDS, BYTES = 2, 500 << 20
WHOLE = [0, 1, -1, 2, 7, 1 << 16, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 40)]


def varint(n):
    """How protobuf writes a length."""
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def altered_bytes(rng, data):
    """The file's bytes: flipped, cut, moved, or with a length that lies."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, to = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
        kind = rng.integers(8)
        if kind < 3 and data:
            data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 20))]
        elif kind == 5:
            data[at:at] = data[at : min(to, at + 200)]
        elif kind == 6:
            data[at : at + 1] = varint(WHOLE[rng.integers(len(WHOLE))])
        else:
            data[at:to] = rng.bytes(min(to - at, 40))
    return bytes(data)


def messages(message):
    """The message and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if is_list(field) else [value]:
                yield from messages(inner)


def is_list(field):
    return not isinstance(field.default_value, (int, float, str, bytes, type(None)))


def altered_message(rng, data):
    """A file that is well formed and says something else: numbers, names, types, order."""
    model = onnx.ModelProto.FromString(data)
    names = [
        name for node in model.graph.node for name in (*node.input, *node.output, node.op_type)
    ]
    for _ in range(int(rng.integers(1, 4))):
        found = [(m, f, v) for m in messages(model) for f, v in m.ListFields()]
        message, field, value = found[rng.integers(len(found))]
        if is_list(field):
            at = int(rng.integers(len(value))) if len(value) else 0
            if rng.integers(3) == 0:
                del value[at:]
            elif field.type == field.TYPE_MESSAGE:
                value.append(value[at])
            elif len(value):
                value[at] = other(rng, value[at], names)
        elif field.type == field.TYPE_MESSAGE or rng.integers(4) == 0:
            message.ClearField(field.name)
        else:
            try:
                setattr(message, field.name, other(rng, value, names))
            except ValueError:  # out of the field's range, or of its enumeration
                message.ClearField(field.name)
    return model.SerializeToString()


def other(rng, value, names):
    """Another value of the same type."""
    if isinstance(value, str):
        return ["", "../x", *names][rng.integers(2 + len(names))]
    if isinstance(value, bytes):
        return [b"", value[:-1], value * 2, b"reverse", b"\xff"][rng.integers(5)]
    if isinstance(value, float):
        return [0.0, -1.0, 1e30, float("nan"), float("inf")][rng.integers(5)]
    return int(WHOLE[rng.integers(len(WHOLE))])


def main():
    count, seed, *paths = sys.argv[1:]
    files = [Path(path).read_bytes() for path in paths]
    for data in files:
        from_onnx(data)  # what is imported and allocated once is there before the limit
    fastgru.GRU(2)(np.zeros((1, 1, 1), "f4"))
    grown = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (grown + BYTES, grown + BYTES))
    ends = {"read": 0, "refused": 0, "slowest": 0.0}
    for i in range(int(count)):
        rng = np.random.default_rng([int(seed), i])
        alter = altered_message if i % 2 else altered_bytes
        data = alter(rng, files[rng.integers(len(files))])
        start = time.perf_counter()
        try:
            from_onnx(data)
        except ValueError:
            ends["refused"] += 1
        except BaseException:
            print(f"mutation {i} of seed {seed}", file=sys.stderr)
            raise
        else:
            ends["read"] += 1
        seconds = time.perf_counter() - start
        ends["slowest"] = max(ends["slowest"], seconds)
        if seconds > SECONDS:
            raise SystemExit(f"mutation {i} of seed {seed} took {seconds:.1f} s")
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
