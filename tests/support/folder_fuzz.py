"""Altered models of several files, read or refused: ``python folder_fuzz.py KIND FIRST COUNT``.

Every case is made from its number alone. The process may use 500 MB more than it had at the start,
a case 2 seconds of processor time; nothing may be executed or written, and no file opened outside
the model's folder.
Prints JSON: how many were read and refused, the slowest in seconds, the growth of memory in MB.
"""

import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import savedmodel_support as support
from keras_fuzz import BYTES, FORBIDDEN, SECONDS, TooLongError, altered, altered_config

import fastgru
from fastgru.io import from_keras, from_torch, load_keras_weights, read_arrays, to_keras_weights
from fastgru.io.budget import Budget
from fastgru.io.bundle import Bundle

DATA = Path(__file__).parents[1] / "data" / "tensorflow"
CHECKPOINTS = ("keras2", "keras3", "cells", "alone", "saver", "two", "shards", "cudnn")


def checkpoint(folder, rng):
    """Copy a checkpoint, and return its files and the readers of it."""
    name = rng.choice(CHECKPOINTS)
    files = {file.name: file.read_bytes() for file in DATA.glob(f"{name}.*")}
    files["checkpoint"] = f'model_checkpoint_path: "{name}"\n'.encode()
    path = folder / rng.choice((name, f"{name}.index", "."))
    first = fastgru.GRU(
        rng.choice((3, 6)), name=rng.choice(("first", "decoder", "one", "cudnn", "encoder/gru"))
    )
    return files, path, [from_keras, read_arrays, lambda p: load_keras_weights(first, p)]


def tensorflow_js(folder, rng):
    source = rng.choice(sorted(DATA.glob("js_*")))
    files = {file.name: file.read_bytes() for file in source.iterdir()}
    layer = rng.choice(
        [
            fastgru.Bidirectional(fastgru.GRU(2), name="both"),
            fastgru.GRU(3, name="enc", reset_after=False),
            fastgru.RNN([fastgru.GRUCell(n, reset_after=False) for n in (3, 2)], name="cells"),
        ]
    )
    readers = [from_keras, read_arrays, lambda p: load_keras_weights(layer, p)]
    return files, folder / "model.json", readers


def keras_shards(folder, rng):
    layers = [fastgru.GRU(3, return_sequences=True, name="a"), fastgru.GRU(2, name="b")]
    model = built(fastgru.Sequential(layers))
    file = folder / "m_00000.weights.h5"
    to_keras_weights(model, file)
    files = {file.name: file.read_bytes()}
    file.unlink()
    names = {f"/layers/{name}/cell/vars": [file.name] for name in ("gru", "gru_1")}
    files["m.weights.json"] = json.dumps({"metadata": {}, "weight_map": names}).encode()
    readers = [read_arrays, lambda p: load_keras_weights(layers[0], p)]
    return files, folder / "m.weights.json", readers


def torch_shards(folder, rng):
    import safetensors.numpy

    arrays = fastgru.io.to_torch(built(fastgru.GRU(3)))
    names = {
        name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(sorted(arrays))
    }
    files = {
        file: safetensors.numpy.save({n: arrays[n] for n in arrays if names[n] == file})
        for file in sorted(set(names.values()))
    }
    index = "model.safetensors.index.json"
    files[index] = json.dumps({"metadata": {"total_size": 1}, "weight_map": names}).encode()
    return files, folder / index, [from_torch, read_arrays]


def built(layer):
    layer.build((None, None, 4))
    return layer


KINDS = {
    "checkpoint": checkpoint,
    "tensorflow_js": tensorflow_js,
    "keras_shards": keras_shards,
    "torch_shards": torch_shards,
}


def altered_index(folder, name, rng):
    """The index of a checkpoint with an entry, a key or a block altered, and right checksums."""
    bundle = Bundle(folder, name, Budget("it"))
    files = len(list(folder.glob(f"{name}.data-*")))
    header = support.field(1, files) + support.field(3, support.field(1, 1))
    pairs = {b"": header, **{k.encode(): bytes(v) for k, v in bundle.entries.items()}}
    key = rng.choice(sorted(pairs))
    value = pairs.pop(key)
    if rng.random() < 0.2:
        key = altered(key or b"x", rng)
    pairs[key] = altered(value, rng) if value else value
    ordered = sorted(pairs.items())
    blocks = [support.block(ordered[:5]), support.block(ordered[5:])]
    if rng.random() < 0.3:
        blocks[rng.randrange(2)] = altered(blocks[0], rng) + b"\0" * 8
    return support.table(blocks)


def write_case(kind, folder, seed):
    """Write the files of a case; return the path to read and the readers."""
    rng = random.Random(seed)
    for file in folder.iterdir():
        file.unlink()
    files, path, readers = KINDS[kind](folder, rng)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if seed >= 0:
        name = rng.choice([*files, *(n for n in files if n.endswith(("json", "index")))])
        data = files[name]
        if name.endswith(".json") and rng.random() < 0.7:
            data = altered_config(data, rng)
        elif name.endswith(".index") and rng.random() < 0.6:
            data = altered_index(folder, name.removesuffix(".index"), rng)
        else:
            data = altered(data, rng)
        (folder / name).write_bytes(data)
    return path, readers


def run(kind, first, count, folder):
    """Run cases; print what became of them and what the worst cost."""
    watched = [False]

    def watch(event, arguments):
        if not watched[0]:
            return
        if event in FORBIDDEN or (event == "import" and arguments[0] not in sys.modules):
            raise AssertionError(f"{event} {arguments!r}")
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):  # it was seen when it was opened by name
                return
            inside = Path(os.fsdecode(path)).parent
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or inside != folder:
                raise AssertionError(f"open {arguments!r}")

    def ring(*_):
        raise TooLongError

    warnings.simplefilter("ignore")
    codecs = [f"encodings.utf_{n}{end}" for n in (16, 32) for end in ("", "_be", "_le")]
    for late in ("difflib", "ml_dtypes", "encodings.utf_8_sig", *codecs):
        importlib.import_module(late)
    for seed in range(-20, 0):  # as they are: BLAS, threads and all modules, and all are read
        path, readers = write_case(kind, folder, seed)
        for reader in readers[:-1] if kind in ("checkpoint", "tensorflow_js") else readers:
            reader(path)
    for layer in (fastgru.GRU(3), fastgru.Bidirectional(fastgru.GRU(2))):
        built(layer)(np.zeros((2, 3, 4), "float32"))
    sys.addaudithook(watch)
    signal.signal(signal.SIGPROF, ring)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = {"read": 0, "refused": 0, "s": 0.0}
    for seed in range(first, first + count):
        path, readers = write_case(kind, folder, seed)
        files = sorted(os.listdir(folder))
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        watched[0] = True
        try:
            found = readers[seed % len(readers)](path)
            ends["read"] += 1
            for layer in found.values() if isinstance(found, dict) else ():
                if not isinstance(layer, np.ndarray) and layer.count_params() < 10_000:
                    layer(np.zeros((2, 3, layer.weights[0].shape[0]), layer.dtype))
        except ValueError:
            ends["refused"] += 1
        except BaseException:
            print(f"case {seed} of {kind}", file=sys.stderr)
            raise
        finally:
            watched[0] = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        assert sorted(os.listdir(folder)) == files, f"case {seed}: files were written"
        ends["s"] = max(ends["s"], time.process_time() - start)
    ends["MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(json.dumps(ends))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(place))
