"""Keras' HDF5 files, alone and in zip archives, whose structure is drawn large."""

import os
import zipfile

import h5py
import numpy as np
import structure_configs as configs
from hdf5_writer import Group, Strings, hdf5
from structure_configs import ROLES, SHARED, inspect, large, loaders, long_name, often, simple
from structure_fuzz import Case

from fastgru.io import from_keras, read_arrays

# ---- groups --------------------------------------------------------------------------------------


def cell(arrays=SHARED, name=""):
    """A group of a cell's variables, of Keras 3."""
    variables = Group(**{str(i): array for i, array in enumerate(arrays)})
    if name:
        variables.attributes["name"] = name
    return Group(vars=variables)


def placed(rng, places):
    """Return Keras 3's groups of the GRUs at these places; some share their cells."""
    root, one = Group(), cell()
    shared = often(rng, 0.5)
    for names, group in places:
        layer = root.at(group)
        layer.links["cell"] = one if shared else cell()
        layer.links["vars"] = Group()
        layer.links["vars"].attributes["name"] = names[-1]
    return root


def graph(rng):
    """Groups that have several names each, in each other."""
    nodes = [Group(x=SHARED[0]), *(Group() for _ in range(large(rng, 60)))]
    if often(rng, 0.3):
        nodes[0] = cell()
    for i, node in enumerate(nodes[1:], 1):
        for n in range(rng.choice((1, 2, 2, large(rng, 8, 1)))):
            node.links[f"layer_{n}"] = nodes[i - 1] if often(rng, 0.7) else rng.choice(nodes)
    return rng.choice(nodes[-2:])


def attributed(rng, node):
    """Give a group attributes: many, or large ones."""
    count, size = rng.choice(((3000, 10), (300, 300), (20, 20_000)))
    for i in range(large(rng, count, 1)):
        name = f"attribute_{i}"
        kind = rng.randrange(4)
        if kind == 0:
            node.attributes[name] = rng.choice("aé😀") * large(rng, size)
        elif kind == 1:
            node.attributes[name] = ["a" * large(rng, size)] * rng.choice((1, 2, 3))
        elif kind == 2:
            node.attributes[name] = Strings(
                [rng.choice("aé😀") * large(rng, 10 * size)] * large(rng, 9)
            )
        else:
            node.attributes[name] = np.zeros(large(rng, min(size, 16_000)))
    return node


def strange(rng, root):
    """Put more into a file: many, deep, shared, large or long-named groups."""
    count = rng.choice((0, 0, 1, 1, 1, 2))
    for _ in range(count):
        place = rng.choice(("more", "layers/more", "model_weights/more", "layers/gru/more"))
        kind = rng.randrange(12)
        node = Group()
        if kind == 0:
            node = graph(rng)
        elif kind == 1:
            one = rng.choice((Group(), cell(), cell().links["vars"], SHARED[0]))
            node.links = {f"n_{i}": one for i in range(large(rng, 5000, 1))}
        elif kind == 2:
            node.links = {f"n_{i}": rng.choice((Group, cell))() for i in range(large(rng, 1000))}
        elif kind == 3:
            node.ends = ("ab" * large(rng, 2000, 1), rng.choice((SHARED[0], cell(), Group())))
        elif kind == 4:
            node.at("/".join(["d"] * large(rng, 200, 1))).links["cell"] = cell()
        elif kind == 5:
            node = attributed(rng, node)
            node = rng.choice((node, Group(**{f"n{i}": node for i in range(large(rng, 300))})))
        elif kind == 6:
            node.links["up"] = root
            node.links["self"] = node
        elif kind == 7:
            inner = Group(**{f"n_{i}": cell() for i in range(large(rng, 300, 1))})
            node.links["n" * large(rng, 50_000, 1)] = inner
        elif kind == 8:
            node.links["big"] = np.zeros(large(rng, 1_000_000), rng.choice(("f4", "f8", "i2")))
        elif kind == 9:
            node.links = {f"a{i}": np.zeros((0,) * (i % 30), "f4") for i in range(large(rng, 2000))}
        elif kind == 10:
            one = Group(**{str(i): SHARED[0] for i in range(large(rng, 5000, 1))})
            for i in range(large(rng, 2000, 1)):
                node.links[f"n_{i}"] = Group(vars=one)
        else:
            one = np.zeros(large(rng, 100_000), "f4")
            node.links = {f"n_{i}": one for i in range(large(rng, 3000))}
        root.put(place, node)


# ---- the kinds -----------------------------------------------------------------------------------


def weights_h5(folder, rng):
    """Keras 3's weights alone."""
    names = [long_name(rng, f"gru_{i}") for i in range(rng.choice((1, 1, 2, large(rng, 800, 1))))]
    places = [((name,), f"layers/gru{f'_{i}' if i else ''}/") for i, name in enumerate(names)]
    root = placed(rng, places)
    strange(rng, root)
    path = folder / "m.weights.h5"
    path.write_bytes(hdf5(root))
    return Case(path, [read_arrays, inspect, *loaders(rng, simple(names[0]))])


def put_names(rng, node, attribute, names):
    """Give a group a list of names, as several attributes where one cannot hold it."""
    if often(rng, 0.5) and max(len(n.encode()) for n in names) * len(names) < 60_000:
        node.attributes[attribute] = list(names)
    elif len(names) < 3000:
        node.attributes[attribute] = Strings(names)
    else:
        for i, first in enumerate(range(0, len(names), 3000)):
            node.attributes[f"{attribute}{i}"] = Strings(names[first : first + 3000])


def legacy(rng, places):
    """The groups of Keras 2's layers: each with a list of the names of its arrays."""
    tops = {}
    for names, _ in places:
        tops.setdefault(names[0], []).append(names)
    root, arrays = Group(), dict(zip(ROLES, SHARED, strict=True))
    stem = rng.choice(("gru_cell", "gru_cell", "", long_name(rng, "cell", 60_000)))
    for top, layers in tops.items():
        group = root.links[top.replace("/", "|")] = Group()
        stored = []
        for names in layers:
            place = "/".join(filter(None, (names[-1].strip("/"), stem)))
            parent = group.at(place) if often(rng, 0.5) or not stored else group
            for role, array in arrays.items():
                parent.links[f"{role}:0"] = array
                stored.append(f"{place}/{role}:0")
        if often(rng, 0.1):
            stored += [f"a_{i}/bias:0" for i in range(large(rng, 3000))]
        if often(rng, 0.05):
            stored += stored[:1] * large(rng, 3000)
        put_names(rng, group, "weight_names", stored)
    if often(rng, 0.1):  # all of them one group
        one = next(iter(root.links.values()))
        root.links = dict.fromkeys(root.links, one)
    listed = [top.replace("/", "|") for top in tops]
    if often(rng, 0.1):
        listed = listed * large(rng, 2000 // len(listed) + 1, 1)
    put_names(rng, root, "layer_names", listed)
    root.attributes |= {"backend": "tensorflow", "keras_version": rng.choice(("2.4.0", "3.1.0"))}
    return root


def h5(folder, rng):
    """A whole model, or weights alone, as Keras 1 and 2 write them."""
    model = configs.draw(rng)
    weights = legacy(rng, model.places)
    root = weights
    if often(rng, 0.8):
        root = Group(model_weights=weights)
        root.attributes["model_config"] = model.text(rng)
        root.attributes["keras_version"] = "2.4.0"
    strange(rng, root)
    path = folder / "m.h5"
    path.write_bytes(hdf5(root))
    name = simple(model.places[0][0][-1])
    return Case(path, [read_arrays, inspect, *[from_keras] * 4, *loaders(rng, name)])


def keras(folder, rng):
    """A ``.keras`` file: a zip archive, or a folder now and then."""
    model = configs.draw(rng)
    root = placed(rng, model.places)
    if often(rng, 0.3):
        strange(rng, root)
    metadata = {"keras_version": long_name(rng, "3.1.0", 10**6)}
    metadata |= {f"m{i}": {} for i in range(large(rng, 9000))} if often(rng, 0.05) else {}
    members = {
        "metadata.json": configs.json.dumps(metadata),
        "config.json": model.text(rng),
        "model.weights.h5": hdf5(root),
    }
    name = simple(model.places[0][0][-1])
    readers = [read_arrays, inspect, *[from_keras] * 4, *loaders(rng, name)]
    if often(rng, 0.1):
        path = folder / "m"
        path.mkdir()
        for member, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            (path / member).write_bytes(data)
        return Case(path, [from_keras, read_arrays])
    if often(rng):
        stem = long_name(rng, "assets/a", 60_000)
        members |= {f"{stem}{i}": b"" for i in range(large(rng, 3000))}
    if often(rng, 0.1):
        members["zeros"] = bytes(large(rng, 30_000_000))
    if often(rng, 0.05):
        members["metadata.json"] += " " * large(rng, 50_000_000)
    if often(rng, 0.05):
        members["config.json"] += " " * large(rng, 50_000_000)
    path = folder / "m.keras"
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    names = list(members)
    if often(rng, 0.3):
        rng.shuffle(names)
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for member in names:
            archive.writestr(member, members[member])
    return Case(path, readers)


def keras_shards(folder, rng):
    """Keras 3's weights in several files, with the index of them."""
    count = rng.choice((1, 1, 2, large(rng, 300, 1)))
    places = [((f"gru_{i}",), f"layers/gru{f'_{i}' if i else ''}/") for i in range(count)]
    shards = rng.choice((1, 1, 2, large(rng, 100, 1)))
    weights, files = {}, []
    data = None
    for shard in range(shards):
        own = places[shard::shards]
        name = f"m_{shard:05d}.weights.h5"
        if data is None or often(rng, 0.5):
            root = placed(rng, own)
            if often(rng):
                strange(rng, root)
            data = hdf5(root)
            (folder / name).write_bytes(data)
        elif often(rng, 0.5):
            os.link(folder / files[-1], folder / name)
        else:
            (folder / name).symlink_to(files[-1])
        files.append(name)
        weights |= {f"/{group}cell/vars": [name] for _, group in own}
    if often(rng):
        stem = long_name(rng, "more")
        weights |= {f"{stem}{i}": rng.choice(files) for i in range(large(rng, 3000))}
    if often(rng, 0.1):
        weights["again"] = files * large(rng, 10_000, 1)
    path = folder / "m.weights.json"
    path.write_text(configs.json.dumps({"metadata": {}, "weight_map": weights}))
    return Case(path, [read_arrays, inspect, *loaders(rng, "gru_0")])


# ---- arrays of all kinds, as h5py writes them ----------------------------------------------------


def h5_arrays(folder, rng):
    """Arrays in layouts and of types that Keras does not write."""
    path = folder / rng.choice(("m.h5", "m.weights.h5"))
    options = {"libver": "latest"} if often(rng, 0.05) else {}
    with h5py.File(path, "w", track_order=often(rng, 0.05), **options) as file:
        for i, array in enumerate(SHARED):
            file[f"layers/gru/cell/vars/{i}"] = array
        for number in range(rng.choice((0, 1, 1, 2, large(rng, 60)))):
            _dataset(file, f"more/d{number}", rng)
        _links(file, rng)
    return Case(path, [read_arrays, read_arrays, inspect, *loaders(rng, "gru")])


def _dataset(file, name, rng):
    shape = tuple(large(rng, rng.choice((5, 5, 300))) for _ in range(large(rng, 5)))
    kind = rng.randrange(20 if often(rng, 0.3) else 6)
    types = ("f4", "f8", "f2", ">f4", "i4", ">i8", "u1", "S5", "V2", "?")
    if kind < 4:
        shape = shape[:2]
        file.create_dataset(name, data=np.zeros(shape, rng.choice(types[:8])))
    elif kind == 4:  # no storage: its shape costs nothing
        shape = tuple(large(rng, 10**6) for _ in range(large(rng, 3, 1)))
        file.create_dataset(name, shape, rng.choice(types))
    elif kind == 5:
        shape = (0, *(large(rng, 2**31) for _ in range(large(rng, 30))))
        file.create_dataset(name, shape, rng.choice(types))
    elif kind == 6:
        chunks = tuple(large(rng, 100, 1) for _ in range(2))
        shape = tuple(large(rng, 10**6, 100) for _ in range(2))
        data = file.create_dataset(
            name, shape, "f4", chunks=chunks, compression=rng.choice((None, "gzip")), fillvalue=7
        )
        data[: large(rng, 20, 1) * chunks[0] % 500, :1] = 1
    elif kind == 7:
        file[name] = h5py.Empty(rng.choice(("f4", "S10")))
    elif kind == 8:
        space = h5py.h5s.create_simple((large(rng, 50, 1),) * large(rng, 2, 1))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(
            file.id,
            f"compact{name[-3:]}".encode().replace(b"/", b""),
            h5py.h5t.IEEE_F32LE,
            space,
            plist,
        )
    elif kind == 9:
        file[name] = np.dtype([(f"f{i}", "f4") for i in range(large(rng, 300, 1))])
    elif kind == 10:
        file.create_dataset(name, (3,), [("a", "f4", (large(rng, 50, 1),)), ("b", "S7")])
    elif kind == 11:
        file[name] = np.array(["x" * large(rng, 9000)] * large(rng, 99, 1), object)
    elif kind == 12:
        file.create_dataset(name, (large(rng, 99),), h5py.ref_dtype)
    elif kind == 13:
        file.create_dataset(name, (large(rng, 99),), h5py.regionref_dtype)
    elif kind == 14:
        file.create_dataset(name, shape[:2], h5py.enum_dtype({f"e{i}": i for i in range(50)}))
    elif kind == 15:
        file.create_dataset(name, (large(rng, 9),), h5py.vlen_dtype("f4"))
    elif kind == 16:
        file.create_dataset(name, (large(rng, 1000, 1),), f"S{large(rng, 9000, 1)}")
    elif kind == 17:
        file.create_dataset(name, shape[:3], rng.choice(("c8", "V7", "(3,)f4")))
    elif kind == 18:
        data = file.create_dataset(name, (2, 2), "f4", data=np.ones((2, 2)))
        for i in range(large(rng, 100)):
            data.attrs[f"a{i}"] = "x" * large(rng, 500)
    else:
        layout = h5py.VirtualLayout((4, 4), "f4")
        layout[:2] = h5py.VirtualSource("/etc/hostname", "x", (2, 4))
        file.create_virtual_dataset(name, layout)


def _links(file, rng):
    if often(rng, 0.1):
        file["soft"] = h5py.SoftLink(rng.choice(("/layers", "/nowhere", "/soft")))
    if often(rng, 0.05):
        file["outside"] = h5py.ExternalLink("/etc/hostname", "/")
    if often(rng, 0.2):
        for i in range(large(rng, 200)):
            file[f"again/{i}"] = file["layers/gru/cell"]
    if often(rng, 0.1):
        name = rng.choice(("слой", "a" * large(rng, 60_000, 1), "😀"))
        for i in range(large(rng, 60, 1)):
            file[f"wide/{name}{i}/vars/0"] = file["layers/gru/cell/vars/0"]
    if often(rng, 0.1):
        group = file.create_group("many", track_order=often(rng, 0.3))
        for i in range(large(rng, 60, 1)):
            group.attrs[f"a{i}"] = ["é" * 5] * large(rng, 300, 1)


KINDS = {
    "h5": h5,
    "weights_h5": weights_h5,
    "keras": keras,
    "keras_shards": keras_shards,
    "h5_arrays": h5_arrays,
}
