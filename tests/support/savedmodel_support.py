"""SavedModels for tests: those that TensorFlow wrote, and any others, forged ones included.

The writer knows no more of `fastgru.io` than the format. Its checksums are right unless a test says
otherwise, so that a forgery gets past them to what it is meant for.
"""

import json
import zipfile
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data" / "savedmodel"
CONFIG = {"name": "gru", "units": 3, "implementation": 2, "reset_after": True}
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
FLOAT, DOUBLE, STRING, INT64 = 1, 2, 7, 9


def unpack(name, folder):
    """Unpack one of TensorFlow's SavedModels and return its folder."""
    target = Path(folder) / name
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        archive.extractall(target)
    return target


def expected(name):
    """Return TensorFlow's outputs for one of its models, by output name."""
    with np.load(DATA / "expected.npz") as stored:
        return {key.partition("/")[2]: stored[key] for key in stored if key.startswith(f"{name}/")}


def inputs():
    with np.load(DATA / "expected.npz") as stored:
        return stored["x"], stored["x2"]


# ---- Protocol Buffers and checksums --------------------------------------------------------------


def varint(n):
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    """Encode one field: a number, text, or bytes (a message)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed32(number, value):
    return varint(number << 3 | 5) + value.to_bytes(4, "little")


def _table():
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        yield register


CRC = list(_table())


def crc32c(data):
    register = 0xFFFFFFFF
    for byte in data:
        register = CRC[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked(data):
    checksum = crc32c(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2**32


# ---- tensor bundles ------------------------------------------------------------------------------


def entry(dtype, shape, offset, size, checksum, shard=0, more=b""):
    dims = b"".join(field(2, field(1, n)) for n in shape)
    parts = [field(1, dtype), field(2, dims), field(3, shard), field(4, offset), field(5, size)]
    return b"".join(parts) + fixed32(6, checksum) + more


def block(pairs, shared=True):
    """Encode sorted pairs of bytes, each key as what differs from the one before."""
    out, last = b"", b""
    for key, value in pairs:
        same = 0
        while shared and same < min(len(key), len(last)) and key[same] == last[same]:
            same += 1
        out += varint(same) + varint(len(key) - same) + varint(len(value)) + key[same:] + value
        last = key
    return out + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def table(blocks):
    """Encode an index of encoded blocks."""
    out, handles = b"", []
    for content in [*blocks, None]:
        if content is None:
            pairs = [(b"%08d" % i, varint(at) + varint(n)) for i, (at, n) in enumerate(handles)]
            content = block(pairs)
        handles.append((len(out), len(content)))
        out += content + b"\0" + masked(content + b"\0").to_bytes(4, "little")
    at, n = handles[-1]
    footer = varint(0) + varint(0) + varint(at) + varint(n)
    return out + footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")


def stored_text(text):
    """Encode a tensor of one string; return its bytes and what its checksum is of."""
    length = len(text).to_bytes(4, "little")
    check = masked(length).to_bytes(4, "little")
    return varint(len(text)) + check + text, length + check + text


def random_weights(seed=0, I=4, H=3, bias=(2, 9)):
    rng = np.random.default_rng(seed)
    shapes = [(I, 3 * H), (H, 3 * H), *([bias] if bias else [])]
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def write_bundle(folder, tensors, header=None, entries=None, per_block=16):
    """Write a checkpoint of arrays, and of bytes as strings; `entries` replaces entries."""
    data, pairs = b"", {b"": header or field(1, 1) + field(3, field(1, 1))}
    for name, value in tensors.items():
        if isinstance(value, bytes):
            stored, checked = stored_text(value)
            dtype, shape = STRING, ()
        else:
            stored = checked = value.tobytes()
            dtype, shape = {"f": FLOAT, "d": DOUBLE, "l": INT64}[value.dtype.char], value.shape
        pairs[name.encode()] = entry(dtype, shape, len(data), len(stored), masked(checked))
        data += stored
    pairs.update((entries or {}).items())
    pairs = sorted(pairs.items())
    cut = [pairs[i : i + per_block] for i in range(0, len(pairs), per_block)]
    (folder / "variables").mkdir(parents=True, exist_ok=True)
    (folder / "variables/variables.index").write_bytes(table([block(c) for c in cut]))
    (folder / "variables/variables.data-00000-of-00001").write_bytes(data)


# ---- whole models --------------------------------------------------------------------------------


def node(children=(), variable=None):
    """Encode an object: what it holds by name, and for a variable (full name, key)."""
    out = b"".join(field(1, field(1, n) + field(2, name)) for name, n in dict(children).items())
    if variable:
        name, key = variable
        out += field(2, field(1, "VARIABLE_VALUE") + field(2, name) + field(3, key))
    return out


def write_gru(folder, weights, config=None, metadata=None, class_name="GRU", **bundle):
    """Write a model that holds one GRU as ``root.gru``.

    With neither config nor metadata (whole JSON text) the model does not describe the layer.
    """
    if config is not None:
        metadata = json.dumps({"class_name": class_name, "config": config})
    described = {} if metadata is None else {"gru": metadata}
    return write_layers(folder, weights, ["gru"], described, **bundle)


def write_layers(folder, weights, paths, described, **bundle):
    """Write a model whose GRUs, at ``root.PATH`` for each path, all have the same weights.

    `described` has the JSON text of the metadata by path, of other layers too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    roles = ("kernel", "recurrent_kernel", "bias")[: len(weights)]
    children = [{}, {role: 2 + i for i, role in enumerate(roles)}]  # the model, the cell
    variables = [(f"gru/gru_cell/{r}", f"w/{r}") for r in roles]
    nodes = {1: node(children[1])} | {2 + i: node(variable=v) for i, v in enumerate(variables)}
    children += [{}] * len(roles)
    for path in paths:
        at = 0
        for name in path.split("."):
            if name not in children[at]:
                children[at][name] = len(children)
                children.append({})
            at = children[at][name]
        children[at]["cell"] = 1
    graph = [nodes.get(i) or node(held) for i, held in enumerate(children)]
    tensors = {f"w/{r}": w for r, w in zip(roles, weights, strict=True)}
    tensors[GRAPH] = b"".join(field(1, n) for n in graph)
    write_bundle(folder, tensors, **bundle)
    (folder / "saved_model.pb").write_bytes(field(1, 1))
    kind, stored = field(4, "_tf_keras_layer"), b""
    for path, text in described.items():
        stored += field(1, field(3, f"root.{path}") + kind + field(5, text))
    if stored:
        (folder / "keras_metadata.pb").write_bytes(stored)
    return folder
