"""Altered Keras files, each read to a layer or a ValueError: ``python keras_fuzz.py FIRST COUNT``.

Every case is made from its number alone. The process may use 500 MB more than it had at the start,
a case 2 seconds of processor time; nothing may be executed, no file written, and none opened but
the case's.
"""

import copy
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

import fastgru
from fastgru.io import from_keras, load_keras_weights, read_arrays, to_keras_weights

DATA = Path(__file__).parents[1] / "data" / "keras"
SOURCES = ["before.h5", "before.keras", "nested.h5", "cudnn.h5", "cudnn.keras", "cudnn_weights.h5"]
OWN = "own.weights.h5"  # written at the start, with a layer called "two" as in cudnn_weights.h5
SOURCES += [OWN, "before_weights.h5"]
# Written at the start too: names that are not ASCII, in both forms of storage, and bfloat16.
WRITTEN = ["compact.weights.h5", "dense.weights.h5", "legacy_weights.h5", "half.weights.h5"]
SOURCES += WRITTEN
SECONDS, BYTES = 2, 500 << 20
HOSTILE = [
    *(
        None,
        True,
        -1,
        0,
        1.5,
        2**31,
        2**63,
        10**30,
        -(10**400),
        float("nan"),
        1e308,
        "",
        "x" * 9999,
    ),
    *([], {}, [[]], {"class_name": "GRU"}, {"class_name": "GRU", "config": {}}, "../../etc/passwd"),
    {"class_name": "__lambda__", "config": {"value": "4wEAAAAAAAAA"}},
    {"module": "os", "class_name": "system", "config": {"command": "touch /tmp/executed"}},
    {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"},
]
NUMBERS = [
    0,
    1,
    8,
    96,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 2,
    2**64 - 1,
]


def altered(data, rng):
    """Bytes with one to three of the changes that break formats."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, size = rng.randrange(len(data)), 1 << rng.randrange(4)
        aligned = at & -size
        kind = rng.randrange(8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[max(at, 1) :]
        elif kind == 2:  # a length or an address, forged
            number = rng.choice((*NUMBERS, rng.randrange(len(data)))) % (1 << 8 * size)
            data[aligned : aligned + size] = number.to_bytes(size, "little")
        elif kind == 3:  # a structure somewhere else: links to oneself, types swapped
            other = rng.randrange(len(data)) & -8
            length = rng.choice((8, 16, 40, 200))
            data[at & -8 : (at & -8) + length] = data[other : other + length]
        elif kind == 4:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 6:
            data[at : at + size] = rng.randbytes(size)
        else:
            data[at : at + 4096] = bytes(4096)
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def write_more(folder):
    """Write the files of `WRITTEN`, each with a layer called "two" among others."""
    import h5py

    arrays = two_built().get_weights()
    for name, count in (("compact", 3), ("dense", 30)):
        with h5py.File(folder / f"{name}.weights.h5", "w") as file:
            for n in range(count):
                file[f"layers/слой_{n}/vars/0"] = np.ones((2, 2), "float32")
            write_two(file, "layers/две/", arrays)
    with h5py.File(folder / "half.weights.h5", "w") as file:
        write_two(file, "layers/bidirectional/", arrays, half=True)
    with h5py.File(folder / "legacy_weights.h5", "w") as file:
        names = [f"слой_{n}" for n in range(20)] + ["two"]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            group = file.create_group(name)
            parts = [f"two/{half}_gru/gru_cell" for half in ("forward", "backward")]
            roles = ("kernel", "recurrent_kernel", "bias")
            weights = [f"{part}/{role}:0" for part in parts for role in roles]
            weights = weights if name == "two" else []
            group.attrs["weight_names"] = np.array([w.encode() for w in weights], "S99")
            for weight, array in zip(weights, arrays, strict=False):
                group[weight] = array


def write_two(file, place, arrays, half=False):
    file.require_group(f"{place}vars").attrs["name"] = "two"
    for n, array in enumerate(arrays):
        side = "forward_layer" if n < 3 else "backward_layer"
        stored = (array.view("u4") >> 16).astype("u2").view("V2") if half else array
        file[f"{place}{side}/cell/vars/{n % 3}"] = stored


def altered_config(text, rng):
    """JSON with values replaced, removed, renamed, repeated or nested a thousand deep."""
    config = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        holders = [config]
        for holder in holders:
            below = holder.values() if isinstance(holder, dict) else holder
            holders += [v for v in below if isinstance(v, dict | list) and v]
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = rng.randrange(6)
        if kind < 3:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            other = rng.choice(holders)
            holder[key] = copy.deepcopy(other)
        elif isinstance(holder, list):
            holder *= 50
        else:
            holder[rng.choice(("layers", "layer", "cell", "units", "extra"))] = holder.pop(key)
        if not isinstance(config, dict) or not config:
            break
    text = json.dumps(config)
    if rng.random() < 0.02:
        text = text.replace("null", "[" * 20000 + "]" * 20000, 1)
    return text.encode()


GRU = '{"class_name":"GRU","config":{}}'
MODEL, END = '{"class_name":"Model","config":{"layers":[', "]}}"
CELLS = '{"class_name":"RNN","config":{"cell":{"class_name":"StackedRNNCells","config":{"cells":['
# Configs of some megabytes that would cost gigabytes or minutes.
BOMBS = {
    "lists": lambda: f"[{'[],' * 10**6}[]]",
    "brackets": lambda: "[" * 10**6,
    "digits": lambda: "9" * 10**6,
    "layers": lambda: f"{MODEL}{(GRU + ',') * 60_000}{GRU}{END}",
    "models": lambda: f"{MODEL * 10_000}{GRU}{END * 10_000}",
    "layers of models": lambda: f"{MODEL * 200}{(GRU + ',') * 60_000}{GRU}{END * 200}",
    "cells": lambda: f"{CELLS}{','.join([GRU.replace('GRU', 'GRUCell')] * 60_000)}]}}}}}}}}",
    "wrappers": lambda: '{"class_name":"Bidirectional","config":{"layer":' * 200 + GRU + "}}" * 200,
    "too long": lambda: f'"{"x" * 5_000_000}"',
}


def case(seed, folder):
    """Write the file of a case, and return its path and what the file was made of."""
    if seed in BOMBS:
        path = folder / f"{seed}.keras"
        with zipfile.ZipFile(DATA / "before.keras") as archive:
            weights = archive.read("model.weights.h5")
        with zipfile.ZipFile(path, "w") as new:
            new.writestr("config.json", BOMBS[seed]())
            new.writestr("model.weights.h5", weights)
        return path, seed
    rng = random.Random(seed)
    source = rng.choice(SOURCES)
    path = folder / f"case_{seed}{Path(source).suffix}"
    data = (place_of(source, folder) / source).read_bytes()
    if source.endswith(".h5") or rng.random() < 0.3:
        path.write_bytes(altered(data, rng))
        return path, source
    with zipfile.ZipFile(DATA / source) as archive, zipfile.ZipFile(path, "w") as new:
        member = rng.choice(("config.json", "model.weights.h5"))
        for name in archive.namelist():
            part = archive.read(name)
            if name == member:
                part = altered_config(part, rng) if name == "config.json" else altered(part, rng)
            new.writestr(name, part, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return path, source


def place_of(source, folder):
    return folder if source in (OWN, *WRITTEN) else DATA


def two_built():
    layer = two()
    layer.build((None, None, 2))
    return layer


def two():
    return fastgru.Bidirectional(fastgru.GRU(3, return_sequences=True), name="two")


READERS = ("layers", "layers", "weights", "arrays", "cell")


def read(path, source, reader="layers"):
    """Read a case; the layers that come out must work."""
    layers = {}
    if reader == "arrays":
        read_arrays(path)
    elif reader == "cell":
        load_keras_weights(fastgru.RNN(fastgru.GRUCell(3)), path)
    elif "weights" in source or reader == "weights":
        layer = two()
        load_keras_weights(layer, path)
        layers = {"two": layer}
    else:
        layers = from_keras(path)
    for layer in layers.values():
        if layer.dtype in ("float32", "float64") and layer.count_params() < 10_000:
            inputs = layer.weights[0].shape[0]
            layer(np.zeros((2, 3, inputs), layer.dtype))


class TooLongError(BaseException):
    """Raised by the alarm; nobody catches it."""


def ring(*_):
    raise TooLongError


FORBIDDEN = {"exec", "compile", "marshal.loads", "pickle.find_class", "os.system", "os.exec"}
FORBIDDEN |= {"subprocess.Popen", "socket.connect", "os.remove", "os.rename", "os.mkdir"}
allowed = None  # the one path that may be opened, while a case is read


def watch(event, arguments):
    if allowed is None:
        return
    if event in FORBIDDEN or (event == "import" and arguments[0] not in sys.modules):
        raise AssertionError(f"{event} {arguments!r}")
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int):  # it was seen when it was opened by name
            return
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if str(path) != str(allowed) or writes:
            raise AssertionError(f"open {arguments!r}")


def run(first, count, folder):
    """Run cases; print how many were read, how many refused, and what the worst cost."""
    global allowed
    importlib.import_module("difflib")  # what error messages and dtypes import when first needed
    importlib.import_module("ml_dtypes")
    model = fastgru.Sequential([fastgru.GRU(2, return_sequences=True), two()])
    model.build((None, None, 4))
    to_keras_weights(model, folder / OWN)
    write_more(folder)
    for source in SOURCES:  # BLAS, threads, and all the modules
        if source != "before_weights.h5":
            read(place_of(source, folder) / source, source)
        read(place_of(source, folder) / source, source, "arrays")
    sys.addaudithook(watch)
    signal.signal(signal.SIGPROF, ring)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES,) * 2)
    loaded, slowest = 0, 0.0
    for seed in [*BOMBS, *range(first, first + count)]:
        path, source = case(seed, folder)
        allowed = path
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            read(path, source, READERS[seed % len(READERS)] if seed not in BOMBS else "layers")
            loaded += 1
        except ValueError:
            pass
        except BaseException:
            print(f"case {seed} of {source}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            allowed = None
        slowest = max(slowest, time.process_time() - start)
        os.unlink(path)
    for source in (OWN, *WRITTEN):
        os.unlink(folder / source)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    refused = count + len(BOMBS) - loaded
    print(json.dumps({"loaded": loaded, "refused": refused, "s": slowest, "MB": most}))


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
