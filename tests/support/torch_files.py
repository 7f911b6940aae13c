"""Files as torch.save writes them, or nearly, made without torch; and state dicts."""

import struct
import zipfile

import numpy as np


def state_dict(rng, I, H, layers=1, directions=1, bias=True, dtype="float32", prefix=""):
    """Random weights by torch's names."""
    weights = {}
    for k in range(layers):
        for suffix in ("", "_reverse")[:directions]:
            inputs = directions * H if k else I
            shapes = {"weight_ih": (3 * H, inputs), "weight_hh": (3 * H, H)}
            if bias:
                shapes |= {"bias_ih": (3 * H,), "bias_hh": (3 * H,)}
            for role, shape in shapes.items():
                weights[f"{prefix}{role}_l{k}{suffix}"] = rng.normal(size=shape).astype(dtype)
    return weights


def torch_gru(weights, x):
    """What torch.nn.GRU's formula gives: y (B, T, directions H) and h_n, in float64."""
    x, states = np.asarray(x, float), []
    layers = 1 + max(int(key.split("_l")[1].split("_")[0]) for key in weights)
    for k in range(layers):
        outputs = []
        for suffix in [s for s in ("", "_reverse") if f"weight_hh_l{k}{s}" in weights]:
            w = {
                role: np.asarray(weights.get(f"{role}_l{k}{suffix}", 0.0), float)
                for role in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            h, steps = np.zeros((len(x), w["weight_hh"].shape[1])), []
            for t in range(x.shape[1])[:: -1 if suffix else 1]:
                r, z, n = np.split(x[:, t] @ w["weight_ih"].T + w["bias_ih"], 3, axis=1)
                hr, hz, hn = np.split(h @ w["weight_hh"].T + w["bias_hh"], 3, axis=1)
                z = 1 / (1 + np.exp(-z - hz))
                h = (1 - z) * np.tanh(n + hn / (1 + np.exp(-r - hr))) + z * h
                steps.append(h)
            outputs.append(np.stack(steps[:: -1 if suffix else 1], axis=1))
            states.append(h)
        x = np.concatenate(outputs, axis=2)
    return x, np.stack(states)


# ---- pickles, instruction by instruction ---------------------------------------------------------


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value):
    return (
        b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
        if abs(value) >> 63
        else (b"\x8a\x08" + value.to_bytes(8, "little", signed=True))
    )


def integers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(key, size, shape, strides, offset=0, storage="FloatStorage"):
    """The instructions that push a tensor."""
    place = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (place + integer(size) + b"tQ" + integer(offset))
        + (integers(shape) + integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR")
    )


def pickled_dict(items):
    """A whole pickle of a dict of instructions."""
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in items.items()) + b"u."


def plain_tensor(key, array):
    names = {"float64": "Double", "float32": "Float", "float16": "Half"}
    strides = [s // array.itemsize for s in array.strides]
    storage = f"{names[array.dtype.name]}Storage"
    return tensor(key, array.size, array.shape, strides, storage=storage)


def write(path, pickled, members=(), root="archive/", **how):
    """Write an archive: data.pkl, then members by name, whatever they are."""
    with zipfile.ZipFile(path, "w", **how) as archive:
        archive.writestr(f"{root}data.pkl", pickled)
        for name, data in dict(members).items():
            archive.writestr(name if name.startswith("!") else f"{root}{name}", data)
    return path


def write_state_dict(path, weights, order="little", **how):
    """Write arrays as torch would on a machine of a byte order."""
    ends = {"little": "<", "big": ">"}[order]
    members = {"byteorder": order.encode()}
    for key, array in enumerate(weights.values()):
        members[f"data/{key}"] = array.astype(array.dtype.newbyteorder(ends)).tobytes()
    items = {name: plain_tensor(str(i), w) for i, (name, w) in enumerate(weights.items())}
    return write(path, pickled_dict(items), members, **how)
