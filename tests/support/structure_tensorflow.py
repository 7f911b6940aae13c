"""TensorFlow's files, whose structure is drawn large: checkpoints, SavedModels, TensorFlow.js."""

import functools
import json
import os

import numpy as np
import structure_configs as configs
from savedmodel_support import GRAPH, STRING, block, entry, field, stored_text
from savedmodel_support import masked as slow_masked
from structure_configs import ROLES, SHARED, inspect, large, loaders, long_name, often, simple
from structure_fuzz import Case

from fastgru.io import from_keras, read_arrays
from fastgru.io.bundle import crc32c, masked

NUMBERS = {"f": 1, "d": 2, "i": 3, "B": 4, "l": 9, "?": 10, "e": 19}


@functools.lru_cache(100)
def checksum(data):
    return slow_masked(data) if len(data) < 40 else masked(crc32c(data))


# ---- tensor bundles ------------------------------------------------------------------------------


class Tensors:
    """Tensors by key, laid out in shards, and other entries of the index."""

    def __init__(self, rng):
        self.rng, self.pairs = rng, {}
        self.shards = [bytearray() for _ in range(rng.choice((1, 1, 1, large(rng, 60, 1))))]
        self._stored = {}

    def add(self, key, value, alone=False):
        """Store an array, or bytes as a string; equal arrays lie in one place, if not alone."""
        if not isinstance(value, bytes) and id(value) in self._stored and not alone:
            self.pairs[key.encode()] = self._stored[id(value)][1]
            return
        shard = self.rng.randrange(len(self.shards))
        if isinstance(value, bytes):
            stored, checked = stored_text(value)
            dtype, shape = STRING, ()
        else:
            stored = checked = value.tobytes()
            dtype, shape = NUMBERS[value.dtype.char], value.shape
        at = len(self.shards[shard])
        self.shards[shard] += stored
        made = entry(dtype, shape, at, len(stored), checksum(checked), shard)
        self.pairs[key.encode()] = made
        self._stored[id(value)] = value, made

    def write(self, folder, name):
        rng = self.rng
        self.pairs[b""] = field(1, len(self.shards)) + field(3, field(1, 1))
        for i, data in enumerate(self.shards):
            (folder / f"{name}.data-{i:05d}-of-{len(self.shards):05d}").write_bytes(data)
        pairs = sorted(self.pairs.items())
        size = rng.choice((1, 16, 16, 16, 5000))
        blocks = [block(pairs[i : i + size]) for i in range(0, len(pairs), size)]
        if often(rng, 0.05):  # empty ones
            blocks += [block([])] * large(rng, 20_000)
        (folder / f"{name}.index").write_bytes(table(blocks))


def table(blocks):
    """Encode an index of encoded blocks; see `savedmodel_support.table`."""
    out, handles, sums = bytearray(), [], {}
    for content in [*blocks, None]:
        if content is None:
            content = block([(b"%08d" % i, handle) for i, handle in enumerate(handles)])
        if content not in sums:
            sums[content] = checksum(content + b"\0").to_bytes(4, "little")
        handles.append(number(len(out)) + number(len(content)))
        out += content + b"\0" + sums[content]
    footer = number(0) + number(0) + handles[-1]
    return out + footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")


def number(n):
    return field(0, n)[1:]


# ---- objects of a checkpoint ---------------------------------------------------------------------


class Objects:
    """A graph of objects; the model is number 0."""

    def __init__(self):
        self.children, self.extra = [[]], [b""]

    def new(self, extra=b""):
        self.children.append([])
        self.extra.append(extra)
        return len(self.children) - 1

    def variable(self, name, key, extra=b""):
        value = field(1, "VARIABLE_VALUE") + field(2, name) + field(3, key)
        return self.new(extra + field(2, value))

    def link(self, parent, name, child):
        self.children[parent].append((name, child))

    def encoded(self, more=lambda number: b""):
        nodes = []
        for i, (children, extra) in enumerate(zip(self.children, self.extra, strict=True)):
            links = [field(1, field(1, n) + field(2, name)) for name, n in children]
            nodes.append(field(1, b"".join(links) + extra + more(i)))
        return b"".join(nodes)


def model(rng, objects, tensors, count):
    """Add layers with cells to a graph; return numbers and names of the layers.

    Cells, variables and tensors are each shared or not.
    """
    share_cells, share_variables, share_keys = (often(rng, 0.3) for _ in range(3))
    cell, variables, layers = None, {}, []
    stem = long_name(rng, "gru", 1_000_000 // count)
    for i in range(count):
        layer = objects.new()
        name = stem if often(rng, 0.01) else f"{stem}_{i}"
        objects.link(0, rng.choice((f"layer_with_weights-{i}", f"l{i}", name)), layer)
        layers.append((layer, name))
        if cell is not None and share_cells:
            objects.link(layer, "cell", cell)
            continue
        cell = objects.new()
        objects.link(layer, "cell", cell)
        for role, array in zip(ROLES, SHARED, strict=True):
            if role not in variables or not share_variables:
                key = f"k/{role}" if share_keys else f"l{i}/{role}/.ATTRIBUTES/VARIABLE_VALUE"
                tensors.add(key, array, alone=often(rng, 0.2))
                extra = b""
                if often(rng, 0.01):  # attributes before the value
                    extra = field(2, field(1, "other")) * large(rng, 3000)
                full = f"{name}/gru_cell/{role}"
                variables[role] = objects.variable(full, key, extra)
            objects.link(cell, role, variables[role])
        if often(rng, 0.02):
            for j in range(large(rng, 5000)):
                objects.link(cell, f"c{j}", rng.choice((0, cell, variables["bias"])))
    return layers


def strange(rng, objects, tensors):
    """Add more to a checkpoint: many, deep, shared or long-named objects and tensors."""
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.randrange(10)
        if kind == 0:  # a graph with many ways
            nodes = [objects.new() for _ in range(large(rng, 500, 1))]
            for node in nodes:
                for i in range(large(rng, 30)):
                    objects.link(node, f"n{i}", rng.choice(nodes))
            objects.link(0, "more", nodes[0])
        elif kind == 1:  # deep
            node = 0
            for _ in range(large(rng, 3000)):
                below = objects.new()
                objects.link(node, long_name(rng, "d", 3000), below)
                node = below
        elif kind == 2:
            for i in range(large(rng, 3000)):
                tensors.add(f"{i:05d}", np.zeros((), rng.choice("fdi")), alone=True)
        elif kind == 3:  # each key has all of the one before
            stem = "k" * large(rng, 4000)
            one = np.zeros(1, "f")
            for i in range(large(rng, 5000)):
                tensors.add(f"{stem}{i:04d}", one)
        elif kind == 4:  # one variable with many names
            key = "k/shared"
            tensors.add(key, SHARED[0])
            for i in range(large(rng, 3000)):
                name = f"v{i}/{rng.choice(ROLES)}"
                objects.link(0, f"v{i}", objects.variable(name, key))
        elif kind == 5:  # an entry of many fields
            tensors.add("k/wide", SHARED[0])
            more = rng.choice((field(9, 1), field(2, b""), field(2, field(2, field(1, 1)))))
            tensors.pairs[b"k/wide"] += more * large(rng, 600)
            objects.link(0, "wide", objects.variable("wide/kernel", "k/wide"))
            for i in range(large(rng, 2000)):
                tensors.pairs[b"k/wide%d" % i] = tensors.pairs[b"k/wide"]
        elif kind == 6:  # slices
            tensors.add("k/slices", SHARED[0])
            part = field(7, field(1, field(1, 0) + field(2, 1)))
            tensors.pairs[b"k/slices"] += part * large(rng, 5000, 1)
        elif kind == 7:
            tensors.add("k/big", np.zeros(large(rng, 1_000_000), "f"))
        elif kind == 8:  # sizes of nothing
            shape = [0, *(large(rng, 2**64 - 1) for _ in range(large(rng, 10)))]
            rng.shuffle(shape)
            tensors.pairs[b"k/empty"] = entry(1, shape, 0, 0, masked(crc32c(b"")))
        else:
            optimizer = objects.new()
            objects.link(0, "optimizer", optimizer)
            for i in range(large(rng, 2000)):
                objects.link(optimizer, f"m{i}", objects.variable(f"m{i}/kernel", "k/kernel"))


def checkpoint(folder, rng):
    """A checkpoint, of objects or by names alone."""
    tensors, objects = Tensors(rng), Objects()
    layers = model(rng, objects, tensors, rng.choice((1, 1, 2, large(rng, 1000, 1))))
    strange(rng, objects, tensors)
    if often(rng, 0.8):
        tensors.add(GRAPH, objects.encoded())
    tensors.write(folder, "m")
    if often(rng, 0.1):
        data = sorted(folder.glob("m.data-*"))
        for file in data[1:]:
            file.unlink()
            os.link(data[0], file)
    path = folder / rng.choice(("m", "m.index"))
    if often(rng):
        state = 'model_checkpoint_path: "m"\n' + 'all_model_checkpoint_paths: "m"\n' * large(
            rng, 2000
        )
        (folder / "checkpoint").write_text(state)
        path = folder
    name = simple(rng.choice(layers)[1])
    return Case(path, [from_keras, from_keras, read_arrays, inspect, *loaders(rng, name)])


# ---- SavedModels ---------------------------------------------------------------------------------


def savedmodel(folder, rng):
    """A SavedModel with Keras' metadata in either of its files, or without."""
    path = folder / "m"
    (path / "variables").mkdir(parents=True)
    tensors, objects = Tensors(rng), Objects()
    layers = model(rng, objects, tensors, rng.choice((1, 1, 2, large(rng, 600, 1))))
    strange(rng, objects, tensors)
    tensors.add(GRAPH, objects.encoded())
    tensors.write(path / "variables", "variables")
    described = []  # number and text of the objects that have a description
    names = {child: name for name, child in objects.children[0]}
    where = {}
    for number, name in layers:
        form = configs.gru(rng, name, odd=often(rng, 0.1))
        form |= {"name": name}
        described.append((number, "_tf_keras_rnn_layer", form))
        where[number] = f"root.{names[number]}"
    if often(rng, 0.2):
        drawn = configs.draw(rng, 200).config
        described.insert(0, (0, "_tf_keras_model", drawn))
        where[0] = "root"
    if often(rng, 0.1):
        size = len(json.dumps(described[-1][2]))
        described += described[-1:] * min(large(rng, 2000), 3_000_000 // size)
    kind = rng.choice(("metadata", "metadata", "graph", "none"))
    graph = b""
    if kind == "metadata":
        stem = long_name(rng, "", 100_000).replace("/", ".")[: 10_000_000 // len(described)]
        nodes = [
            field(1, field(3, where[n] + stem) + field(4, identifier) + field(5, json.dumps(form)))
            for n, identifier, form in described
        ]
        if often(rng, 0.1):
            nodes += [field(1, field(3, "root.x") + field(4, "_other"))] * large(rng, 9000)
        (path / "keras_metadata.pb").write_bytes(b"".join(nodes))
    elif kind == "graph":
        users = {}
        for n, identifier, form in described:
            user = field(1, identifier) + field(3, json.dumps(form))
            users[n] = users.get(n, b"") + field(4, user)
        graph = field(2, field(7, objects.encoded(lambda n: users.get(n, b""))))
    functions = field(2, field(2, field(1, b"f" * large(rng, 100)) * large(rng, 2000)))
    (path / "saved_model.pb").write_bytes(field(1, 1) + functions + graph)
    return Case(path, [from_keras, from_keras, from_keras, read_arrays, inspect])


# ---- TensorFlow.js -------------------------------------------------------------------------------


def tfjs(folder, rng):
    """A layers model of TensorFlow.js, with names of Keras 2 or places of Keras 3."""
    drawn = configs.draw(rng, 400)
    modern = often(rng, 0.4)
    weights, data = [], bytearray()
    stem = rng.choice(("gru_cell", "gru_cell", long_name(rng, "gru_cell", 60_000)))
    for names, group in drawn.places:
        for i, (role, array) in enumerate(zip(ROLES, SHARED, strict=True)):
            name = f"{group}cell/vars/{i}" if modern else f"{'/'.join(names)}/{stem}/{role}"
            weights.append(weight(rng, name, array, data))
    for _ in range(rng.choice((0, 0, 1, 2))):
        more_weights(rng, weights, data)
    groups, shards = [], {}
    if often(rng, 0.2):
        spread(rng, weights, data, groups, shards)
    else:
        count = rng.choice((1, 1, 2, large(rng, 200, 1)))
        step = -(-len(data) // count) or 1
        for i in range(0, max(len(data), 1), step):
            shards[f"group1-shard{i // step + 1}of{count}.bin"] = data[i : i + step]
        groups.append({"paths": list(shards), "weights": weights})
    if often(rng, 0.1):  # one file many times
        shards["again.bin"] = bytes(large(rng, 100_000, 1))
        times = large(rng, 900, 1)
        size = len(shards["again.bin"]) * times
        again = {"name": "again", "shape": [size], "dtype": "bool"}
        groups.append({"paths": ["again.bin"] * times, "weights": [again]})
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    if often(rng, 0.1):
        first = next(iter(shards))
        os.link(folder / first, folder / "linked")
        (folder / first).unlink()
        (folder / first).symlink_to("linked")
    version = rng.choice(("2.4.0", "tfjs-layers 1.0", "3.1.0"))
    topology = {"model_config": drawn.config, "keras_version": version}
    whole = {"format": "layers-model", "modelTopology": topology, "weightsManifest": groups}
    path = folder / "model.json"
    path.write_text(json.dumps(whole, ensure_ascii=often(rng, 0.5)))
    name = simple(drawn.places[0][0][-1])
    return Case(path, [from_keras, from_keras, read_arrays, inspect, *loaders(rng, name)])


def weight(rng, name, array, data):
    """Append an array to the data, quantized now and then; return its entry in the manifest."""
    made = {"name": name, "shape": list(array.shape), "dtype": "float32"}
    if often(rng, 0.1):
        kind = rng.choice(("uint8", "uint16", "float16"))
        made["quantization"] = {"dtype": kind, "scale": 0.5, "min": -1, "original_dtype": "float32"}
        array = array.astype(kind)
    data += array.tobytes()
    return made


def more_weights(rng, weights, data):
    kind = rng.randrange(6)
    if kind == 0:
        weights += [
            {"name": f"w{i}", "shape": [0], "dtype": "bool"} for i in range(large(rng, 9000))
        ]
    elif kind == 1:
        array = np.zeros(large(rng, 1_000_000), "f4")
        weights.append(weight(rng, "big", array, data))
    elif kind == 2:
        shape = [0, *(large(rng, 2**70) for _ in range(large(rng, 7)))]
        weights.append({"name": "empty", "shape": shape, "dtype": "float32"})
    elif kind == 3:
        parts = "/".join("p" * large(rng, 300, 1))
        weights += [
            {"name": f"w{i}/{parts}", "shape": [0], "dtype": "int32"}
            for i in range(large(rng, 2000))
        ]
    elif kind == 4:
        name = long_name(rng, "layers/x/vars/0", 10**6)
        weights.append({"name": name, "shape": [0], "dtype": "int32"})
    else:
        count = large(rng, 2_000_000)
        how = {"dtype": "uint8", "scale": 1e-3, "min": 0}
        data += bytes(count)
        weights.append({"name": "q", "shape": [count], "dtype": "float32", "quantization": how})


def spread(rng, weights, data, groups, shards):
    """Put each weight into a group of its own, or some of them into each."""
    size = large(rng, 50, 1)
    at = 0
    for number, first in enumerate(range(0, len(weights), size)):
        some, start = weights[first : first + size], at
        for one in some:
            kind = one.get("quantization", {}).get("dtype", one["dtype"])
            width = np.dtype(kind).itemsize
            at += int(np.prod(one["shape"], dtype=object)) * width
        shards[f"group{number}.bin"] = data[start:at]
        groups.append({"paths": [f"group{number}.bin"], "weights": some})


KINDS = {"checkpoint": checkpoint, "savedmodel": savedmodel, "tfjs": tfjs}
