"""Files with PyTorch's weights whose structure is drawn large; see `structure_fuzz`.

All is written by hand, so that neither torch nor safetensors is needed to make a file.
"""

import json
import struct
import zipfile
from functools import partial

import numpy as np
from structure_fuzz import Case, large
from torch_files import integer, integers, tensor, text

import fastgru
from fastgru.cli import models, run
from fastgru.io import from_torch, read_arrays

MAGIC = 0x1950A86A20F9469CFC6C
SELDOM = 0.03
ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def readers():
    return [from_torch, partial(from_torch, prefix="gru"), read_arrays, models.find, fastgru.load]


def numbers(rng, count):
    """Floats that differ from each other."""
    return np.random.default_rng(rng.getrandbits(32)).normal(size=count).astype("float32")


def many(rng, most, least=0):
    """Draw a count that is seldom near ``most``, so that thousands of cases take minutes."""
    return large(rng, most if rng.random() < SELDOM else max(most // 200, least), least)


def chosen(rng, features, most=3):
    """A few of the features, most often one or two."""
    return rng.sample(features, rng.randint(0, most))


# ---- pickles -------------------------------------------------------------------------------------


class Saved:
    """The items of a pickled dict, as instructions, and the storages that they name."""

    def __init__(self, rng):
        self.rng = rng
        self.items = []  # (key's instructions, value's)
        self.storages = {}  # key -> bytes of float32
        self.memos = 0

    def add(self, name, value):
        self.items.append((text(name) if isinstance(name, str) else name, value))

    def storage(self, data):
        key = str(len(self.storages))
        self.storages[key] = data
        return key

    def tensor(self, array):
        key = self.storage(array.tobytes())
        strides = [s // 4 for s in array.strides]
        return tensor(key, array.size, array.shape, strides)

    def kept(self, value):
        """Return the instructions that push a value and keep it, and those that push it again."""
        self.memos += 1
        number = struct.pack("<I", self.memos)
        return value + b"r" + number, b"j" + number

    def pickled(self):
        return b"\x80\x02" + dict_of(self.items) + b"."


def dict_of(items):
    return b"}(" + b"".join(key + value for key, value in items) + b"u"


def list_of(values):
    return b"](" + b"".join(values) + b"e"


def shapes(layer, directions, I, H):
    return ((3 * H, directions * H if layer else I), (3 * H, H), (3 * H,), (3 * H,))


def gru(saved, prefix="gru."):
    """A GRU as torch has it; its tensors may be one tensor."""
    rng = saved.rng
    I, H = 1 + large(rng, 40), 1 + large(rng, rng.choice((8, 40, 200)))
    layers, directions, roles = large(rng, 40, 1), rng.randint(1, 2), rng.choice((2, 4))
    shared = rng.random() < 0.5
    again = {}
    for layer in range(layers):
        for suffix in ("", "_reverse")[:directions]:
            for role, shape in zip(ROLES[:roles], shapes(layer, directions, I, H), strict=False):
                if not (shared and shape in again):
                    value, again[shape] = saved.kept(
                        saved.tensor(numbers(rng, int(np.prod(shape))).reshape(shape))
                    )
                else:
                    value = again[shape]
                saved.add(f"{prefix}{role}_l{layer}{suffix}", value)


def many_layers(saved):
    """A thousand layers of one tensor."""
    rng = saved.rng
    H = large(rng, 30, 1)
    square, again = saved.kept(saved.tensor(numbers(rng, 3 * H * H).reshape(3 * H, H)))
    directions, bias = rng.randint(1, 2), rng.random() < 0.5
    flat, again_flat = saved.kept(saved.tensor(numbers(rng, 3 * H)))
    wide = (3 * H, H * directions)
    if directions == 2:
        wide, again_wide = saved.kept(saved.tensor(numbers(rng, 6 * H * H).reshape(wide)))
    for layer in range(many(rng, 1000, 1)):
        for suffix in ("", "_reverse")[:directions]:
            end = f"_l{layer}{suffix}"
            first, square = square, again
            if directions == 2 and layer:
                first, wide = wide, again_wide
            saved.add(f"deep.weight_ih{end}", first)
            saved.add(f"deep.weight_hh{end}", again)
            for role in ROLES[2:] if bias else ():
                saved.add(f"deep.{role}{end}", flat)
                flat = again_flat


def shared_tensor(saved):
    """One tensor under very many names, or many times in a list."""
    rng = saved.rng
    value, again = saved.kept(saved.tensor(numbers(rng, many(rng, 50_000))))
    if rng.random() < 0.5:
        saved.add("list", list_of([value, again * many(rng, 300_000)]))
        return
    saved.add("t", value)
    for number in range(many(rng, 30_000)):
        saved.add(f"t{number}", again)


def many_grus(saved):
    """One GRU under very many prefixes."""
    rng = saved.rng
    H = large(rng, 20, 1)
    square, same = saved.kept(saved.tensor(numbers(rng, 3 * H * H).reshape(3 * H, H)))
    inner = [(text("weight_ih_l0"), square), (text("weight_hh_l0"), same)]
    inner, again = saved.kept(dict_of(inner))
    fresh = dict_of([(text("weight_ih_l0"), same), (text("weight_hh_l0"), same)])
    saved.add("many0", inner)
    for number in range(1, many(rng, 12_000)):
        saved.add(f"many{number}", fresh if rng.random() < 0.9 else again)


def views(saved):
    """Views of one storage: other offsets, other strides, strides of 0, many axes."""
    rng = saved.rng
    size = many(rng, 1_000_000, 1)
    key = saved.storage(bytes(4 * size))
    H = max(1, min(int((size / 3) ** 0.5), large(rng, 300, 1)))
    for number in range(many(rng, 3000)):
        kind = rng.randrange(5)
        shape, strides, offset = (3 * H, H), (H, 1), large(rng, size)
        if kind == 0:
            strides = (0, 0)
        elif kind == 1:
            shape, strides = (large(rng, 1 << 62),), (rng.choice((0, 1, 1 << 62)),)
        elif kind == 2:
            shape = strides = (1,) * large(rng, 70)
        elif kind == 3:
            shape, strides, offset = (0, 1 << 62), (1, 1), 0
        name = f"view.{ROLES[number % 2]}_l{number // 2}" if kind == 4 else f"views{number}"
        saved.add(name, tensor(key, size, shape, strides, 0 if kind == 4 else offset))


def overlap(saved):
    """One storage is the weights of many layers, but not as the same tensor."""
    rng = saved.rng
    H = large(rng, 300, 1)
    key = saved.storage(numbers(rng, 3 * H * H).tobytes())
    for layer in range(many(rng, 600)):
        for role in ROLES[:2]:
            saved.add(
                f"over.{role}_l{layer}", tensor(key, 3 * H * H, (3 * H, H), rng.choice([(H, 1)]))
            )


def long_keys(saved):
    """Long names around one dict of weights, again and again."""
    rng = saved.rng
    weights = [(text(f"weight_ih_l{n}"), b"N") for n in range(many(rng, 2000))]
    value, again = saved.kept(dict_of(weights))
    saved.add("k" * many(rng, 1100), value)
    sign = rng.choice(("k", "a.", "\N{GRINNING FACE}"))
    for number in range(large(rng, 300)):
        saved.add(f"{number}{sign * many(rng, 1000)}", again)
    for _ in range(large(rng, 3)):
        saved.add(sign * many(rng, 1_000_000), again)


def words(saved):
    """Prefixes of many parts, each with a weight, and an original of weight drop beside them."""
    rng = saved.rng
    key, again = saved.kept(text("a." * large(rng, 250) + "a"))
    inner, last = b"N", b"N"
    for number in range(many(rng, 5000)):
        inner = dict_of([(text(f"weight_hh_l{number % 900}"), b"N")])
        saved.add(f"w{number}", dict_of([(key, inner)]))
        key = again
    saved.add(rng.choice(("weight_hh_l0_raw", "w0.weight_hh_l0_raw")), last)


def small_objects(saved):
    """Very many small objects, made by very few bytes."""
    rng = saved.rng
    some = (b"}", b"]", b")", b"\x8f", b"(\x91", b"(t", b"K\x01\x85", b"ca\nb\n", b"ca\nb\n)R")
    some += (b"]Na", b"}K\x01Ns", b"ca\nb\n)\x81}b", b"G" + bytes(8), b"\x8a\x20" + b"\x01" * 32)
    some += (b"X\x01\0\0\0a", b"C\x01a", b"}}K\x01NsN\x85s", b"cnumpy\ndtype\nX\x02\0\0\0f4\x85R")
    saved.add("small", list_of([rng.choice(some) * many(rng, 800_000)]))


def deep(saved):
    """Dicts, lists or tuples in each other."""
    rng = saved.rng
    count = many(rng, rng.choice((100, 400, 300_000)))
    before, after = rng.choice(
        ((b"}X\1\0\0\0a", b"s"), (b"]", b"a"), (b"", b"\x85"), (b"]}X\1\0\0\0a", b"sa"))
    )
    saved.add("nested", before * count + b"N" + after * count)


def doubled(saved):
    """A tuple of twice itself, many times, as a value and as a key."""
    rng = saved.rng
    value = b")"
    for _ in range(large(rng, 100)):
        kept, again = saved.kept(value)
        value = kept + again + b"\x86"
    kept, again = saved.kept(value)
    saved.add("doubled", kept)
    saved.add(again, b"N")
    graph = b"}"
    for _ in range(large(rng, 70)):
        kept, again = saved.kept(graph)
        graph = dict_of([(text("a"), kept), (text("b"), again)])
    saved.add("graph", graph)


def big_integers(saved):
    rng = saved.rng
    for _ in range(large(rng, 30)):
        size = large(rng, 255)
        saved.add(b"\x8a" + bytes([size]) + rng.randbytes(size), b"N")
    size = many(rng, 2_000_000)
    saved.add("large", b"\x8b" + struct.pack("<i", size) + b"\x7f" * size)
    most = rng.choice((1 << 63, 1 << 71))
    sizes = [rng.randrange(-most, most) for _ in range(3)]
    saved.add("huge", tensor(saved.storage(b"1234"), 1, sizes[:1], sizes[1:2], sizes[2]))


def foreign(saved):
    """Objects of other classes, with attributes, items and long names."""
    rng = saved.rng
    name = b"cmodule\n" + rng.choice((b"Class", b"C" * many(rng, 1_000_000), b"\xf0\x9f\x98\x80"))
    state, again = saved.kept(dict_of([(text("training"), b"\x89"), (text("x"), b"N")]))
    make = rng.choice((b")R", b")\x81", b")}\x92"))
    for number in range(many(rng, 3000)):
        saved.add(f"foreign{number}", name + b"\n" + make + state + b"b")
        state, name = again, name[:16]
    called = b"cos\nsystem\n" + text("touch executed") + b"\x85R"
    saved.add("os", called)


def modules(saved):
    """Whole modules in each other, a GRU at the bottom."""
    rng = saved.rng
    H = large(rng, 20, 1)
    parts = [
        (text(f"{role}_l0"), saved.tensor(numbers(rng, int(np.prod(s))).reshape(s)))
        for role, s in zip(ROLES, shapes(0, 1, H, H), strict=True)
    ]
    empty, no = saved.kept(b"}")
    inner = b"ctorch.nn.modules.rnn\nGRU\n)\x81" + dict_of(
        [
            (text("_parameters"), dict_of(parts)),
            (text("_buffers"), empty),
            (text("_modules"), no),
        ]
    )
    inner += b"b"
    for number in range(large(rng, 80)):
        inside = [(text(f"m{number}"), inner)]
        outer = [(text("_parameters"), no), (text("_modules"), dict_of(inside))]
        inner = b"ctorch.nn.modules.container\nSequential\n)\x81" + dict_of(outer) + b"b"
    saved.add("module", inner)


def pairs(saved):
    """OrderedDicts and defaultdicts of pairs that stand in the file once."""
    rng = saved.rng
    items = list_of([text(f"a{n}") + b"N\x86" for n in range(many(rng, 5000))])
    items, again = saved.kept(items)
    for number in range(many(rng, 2000)):
        saved.add(f"o{number}", b"ccollections\nOrderedDict\n" + items + b"\x85R")
        items = again


def parameters(saved):
    rng = saved.rng
    array = numbers(rng, 3 * 4 * 4).reshape(12, 4)
    value, again = saved.kept(saved.tensor(array))
    for number in range(many(rng, 3000)):
        hooks = b"ccollections\nOrderedDict\n)R"
        value = b"ctorch._utils\n_rebuild_parameter\n" + value + b"\x88" + hooks + b"\x87R"
        saved.add(f"p.{ROLES[number % 2]}_l{number // 2}", value)
        value = again


def numpy_arrays(saved):
    """Arrays of NumPy; their bytes and dtypes may be one object."""
    rng = saved.rng
    count = many(rng, 200_000)
    data, again = saved.kept(b"B" + struct.pack("<I", 4 * count) + bytes(4 * count))
    dtype, same = saved.kept(
        b"cnumpy\ndtype\n"
        + text("f4")
        + b"\x89\x88\x87R(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb"
    )
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    for number in range(many(rng, 2000)):
        state = b"(K\x01" + integer(count) + b"\x85" + dtype + b"\x89" + data + b"tb"
        saved.add(f"array{number}", start + state)
        data, dtype = again, same


def numpy_gru(saved):
    """A GRU of NumPy's arrays."""
    rng = saved.rng
    H = large(rng, 30, 1)
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R"
    for role, shape in zip(ROLES, shapes(0, 1, large(rng, 30, 1), H), strict=True):
        data = numbers(rng, int(np.prod(shape))).tobytes()
        data = b"B" + struct.pack("<I", len(data)) + data
        state = b"(K\x01" + integers(shape) + dtype + b"\x89" + data + b"tb"
        saved.add(f"gru.{role}_l0", start + state)


def wide_text(saved):
    """Text that takes four bytes a character in memory, one in the file."""
    rng = saved.rng
    for number in range(large(rng, 4, 1)):
        saved.add(f"text{number}", text("\N{GRINNING FACE}" + "a" * many(rng, 3_000_000)))


def normed(saved):
    """weight_norm's parts, of one tensor each, under many layers."""
    rng = saved.rng
    H = large(rng, 30, 1)
    g, g_again = saved.kept(saved.tensor(numbers(rng, 3 * H).reshape(3 * H, 1)))
    v, v_again = saved.kept(saved.tensor(numbers(rng, 3 * H * H).reshape(3 * H, H)))
    for number in range(many(rng, 1000, 1)):
        end = f"l{number}"
        for role in ROLES[:2]:
            if rng.random() < 0.1:
                base = f"n.parametrizations.{role}_{end}.original"
                saved.add(f"{base}0", g), saved.add(f"{base}1", v)
            else:
                saved.add(f"n.{role}_{end}_g", g), saved.add(f"n.{role}_{end}_v", v)
            g, v = g_again, v_again


def many_storages(saved):
    """Small tensors, a storage each."""
    rng = saved.rng
    for number in range(many(rng, 3000)):
        saved.add(f"s{number}", saved.tensor(numbers(rng, large(rng, 10))))


PICKLED = [
    *(many_layers, shared_tensor, many_grus, views, overlap, long_keys, words, small_objects),
    *(deep, doubled, big_integers, foreign, modules, pairs, parameters, numpy_arrays, wide_text),
    *(normed, many_storages),
]


def saved_model(rng):
    saved = Saved(rng)
    if rng.random() < 0.8:
        gru(saved)
    for feature in chosen(rng, PICKLED):
        feature(saved)
    rng.shuffle(saved.items) if saved.memos == 0 else None
    if rng.random() < 0.2:
        saved.items = [(text("state_dict"), dict_of(saved.items))]
    return saved


def pt(folder, rng):
    """The zip files of torch.save."""
    saved = saved_model(rng)
    root = rng.choice(("archive", "m", "r" * many(rng, 30_000, 1)))
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    path = folder / rng.choice(("m.pt", "m.pth", "m.bin"))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{root}/data.pkl", saved.pickled())
        archive.writestr(f"{root}/byteorder", "little")
        for key, data in saved.storages.items():
            archive.writestr(f"{root}/data/{key}", data)
        if rng.random() < 0.1:
            end = "x" * many(rng, 1000)
            for number in range(many(rng, 5000)):
                archive.writestr(f"{root}/data/{number}.{end}", b"")
        if rng.random() < 0.05:
            name = f"{root}/zeros" if rng.random() < 0.5 else f"{root}/data/more"
            archive.writestr(name, bytes(many(rng, 50_000_000)), zipfile.ZIP_DEFLATED)
    return Case(path, readers())


def pt_legacy(folder, rng):
    """The files of torch.save before version 1.6."""
    saved = saved_model(rng)
    magic = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")
    about = dict_of([(text("little_endian"), b"\x88"), (text("protocol_version"), b"M\xe9\x03")])
    keys = [text(key) for key in saved.storages]
    if rng.random() < 0.1:
        keys *= large(rng, 30, 1)
    pickles = [magic, b"M\xe9\x03", about, dict_of(saved.items), list_of(keys)]
    path = folder / rng.choice(("m.pt", "m.pth", "m.bin"))
    with path.open("wb") as file:
        for pickled in pickles:
            file.write(b"\x80\x02" + pickled + b".")
        for data in saved.storages.values():
            file.write((len(data) // 4).to_bytes(8, "little") + data)
    return Case(path, readers())


# ---- safetensors ---------------------------------------------------------------------------------

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "BOOL": 1}
_BYTES |= {"U8": 1, "I32": 4, "U16": 2}


class Tensors:
    """The header and the data of a safetensors file."""

    def __init__(self, rng):
        self.rng = rng
        self.metadata = {}
        self.header = {}
        self.data = bytearray()

    def add(self, name, shape, dtype="F32"):
        start = len(self.data)
        count = int(np.prod(shape, dtype=object))
        if dtype == "F32" and count < 100_000:
            self.data += numbers(self.rng, count).tobytes()
        else:
            self.data += bytes(count * _BYTES[dtype])
        self.header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [start, len(self.data)],
        }

    def gru(self, prefix="gru.", dtype="F32", layers=1, I=3, H=2, holes=False):
        for layer in range(layers):
            if holes and layer % 3 == 1:
                continue
            for role, shape in zip(ROLES, shapes(layer, 1, I, H), strict=True):
                self.add(f"{prefix}{role}_l{layer}", shape, dtype)

    def write(self, path):
        header = {"__metadata__": self.metadata, **self.header} if self.metadata else self.header
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + self.data)
        return path


def empty_tensors(tensors):
    rng = tensors.rng
    name = rng.choice(("e", "weight_ih_l0.", "a.weight_hh_l"))
    entry = {"dtype": rng.choice(("F32", "I64")), "shape": [0], "data_offsets": [0, 0]}
    if rng.random() < 0.3:
        entry["shape"] = [0, large(rng, 1 << 62)]
    if not tensors.data:
        tensors.header |= {f"{name}{n}": entry for n in range(many(rng, 120_000))}


def long_names(tensors):
    rng = tensors.rng
    for number in range(large(rng, 100)):
        sign = rng.choice(("n", "a.", "\N{GRINNING FACE}", "\u00e9"))
        tensors.add(f"{sign * many(rng, 20_000)}.weight_ih_l{number}", (3, 1))


def metadata(tensors):
    rng = tensors.rng
    kind = rng.randrange(4)
    if kind == 0:
        tensors.metadata["format"] = "x" * many(rng, 7_000_000)
    elif kind == 1:
        tensors.metadata |= {f"k{n}": "" for n in range(many(rng, 100_000))}
    elif kind == 2:
        tensors.metadata["json"] = json.dumps([{"a": [1, 2]}] * many(rng, 50_000))
    else:
        tensors.metadata["w"] = "\N{GRINNING FACE}" + '"' * many(rng, 1_000_000)


def tied(tensors):
    """Names in the metadata alone, of tensors that are kept under other names."""
    rng = tensors.rng
    H = large(rng, 30, 1)
    tensors.gru("kept.", H=H, I=H)
    word = "a." * large(rng, rng.choice((3, 200)))
    for number in range(many(rng, rng.choice((1000, 30_000)))):
        for role in ROLES:
            tensors.metadata[f"{word}{number}.{role}_l0"] = f"kept.{role}_l0"


def tied_layers(tensors):
    rng = tensors.rng
    H = large(rng, 30, 1)
    tensors.gru("stack.", H=H, I=H)
    for number in range(1, many(rng, 1000, 1)):
        for role in ROLES:
            tensors.metadata[f"stack.{role}_l{number}"] = f"stack.{role}_l0"


def other_types(tensors):
    rng = tensors.rng
    for number in range(many(rng, 1000)):
        dtype = rng.choice(list(_BYTES))
        tensors.add(f"other{number}", [1] * large(rng, 70) + [large(rng, 30)], dtype)
    tensors.gru("typed.", rng.choice(("F16", "BF16", "F8_E4M3", "I64", "F64")))


def stored_grus(tensors):
    for number in range(many(tensors.rng, 5000)):
        tensors.gru(f"g{number}.", I=1, H=1)


def holes(tensors):
    tensors.gru("holes.", layers=many(tensors.rng, 900), holes=True)


def large_gru(tensors):
    rng = tensors.rng
    tensors.gru("large.", rng.choice(("BF16", "F16", "F32", "F64")), 1, 1, many(rng, 900, 1))


def own(tensors):
    """A file of fastgru.save, with as many layers as its config may have."""
    rng = tensors.rng
    units = large(rng, 20, 1)
    config = {"units": units, "use_bias": False}
    layers = many(rng, 5000)
    kind = rng.randrange(4)
    layer = {"class_name": "GRU", "config": config}
    if kind == 0:
        layer = {"class_name": "Sequential", "config": {"layers": [layer] * layers}}
        places = [f"layers.{n}." for n in range(layers)]
    elif kind == 1:
        cell = {"class_name": "GRUCell", "config": config}
        cells = {"class_name": "StackedRNNCells", "config": {"cells": [cell] * layers}}
        layer = {"class_name": "RNN", "config": {"cell": cells}}
        places = [f"cell.cells.{n}." for n in range(layers)]
    elif kind == 2:
        places = []
        for _ in range(large(rng, 60)):
            layer = {"class_name": "Bidirectional", "config": {"layer": layer}}
    else:
        config["units"] = large(rng, 1 << 62)
        config["activation"] = "a" * many(rng, 300_000)
        places = [""]
    tensors.header.clear()
    tensors.data.clear()
    for place in places:
        tensors.add(f"{place}kernel", (units, 3 * units))
        tensors.add(f"{place}recurrent_kernel", (units, 3 * units))
    about = {"format_version": 1, "fastgru_version": "0", "layer": layer}
    tensors.metadata["fastgru"] = json.dumps(about)


TENSORS = [
    *(empty_tensors, long_names, metadata, tied, tied_layers, other_types, stored_grus, holes),
    *(large_gru, own),
]


def filled(rng):
    tensors = Tensors(rng)
    if rng.random() < 0.8:
        I, H = large(rng, 30, 1), large(rng, rng.choice((8, 100)), 1)
        tensors.gru(layers=large(rng, 10, 1), I=I, H=H)
    for feature in chosen(rng, TENSORS):
        feature(tensors)
    return tensors


def safetensors(folder, rng):
    return Case(filled(rng).write(folder / "m.safetensors"), readers())


# ---- models in several files ---------------------------------------------------------------------


def torch_shards(folder, rng):
    """An index of several files: many names, many files, links to one file, indices of indices."""
    index = {}
    for number in range(many(rng, rng.choice((30, 30, 600)), 1)):
        name = f"model-{number:05}.safetensors"
        if number and rng.random() < 0.3:
            kept = folder / "model-00000.safetensors"
            (folder / name).symlink_to(kept.name)
        elif rng.random() < 0.1:
            saved = Saved(rng)
            saved.add(f"s{number}.weight_ih_l0", saved.tensor(numbers(rng, 3).reshape(3, 1)))
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr("a/data.pkl", saved.pickled())
                for key, data in saved.storages.items():
                    archive.writestr(f"a/data/{key}", data)
            index[f"s{number}.weight_ih_l0"] = name
        else:
            tensors = filled(rng) if rng.random() < 0.01 else Tensors(rng)
            tensors.gru(f"s{number}.", I=1, H=large(rng, 9, 1))
            tensors.write(folder / name)
            index |= dict.fromkeys(tensors.header, name)
    files = [file.name for file in folder.iterdir()]
    kind = rng.randrange(8)
    if kind == 0:
        sign = rng.choice(("n", "a.", "\N{GRINNING FACE}"))
        for number in range(large(rng, 100)):
            index[f"{sign * many(rng, 50_000)}{number}"] = rng.choice(files)
    elif kind == 1:
        index |= {f"n{n}": rng.choice(files) for n in range(many(rng, 100_000))}
    elif kind == 2:
        index |= {f"s{n}": f"./{files[0]}" for n in range(many(rng, 3000))}
    elif kind == 3:
        index["self"] = rng.choice(("model.safetensors.index.json", "other.index.json"))
    elif kind == 4:
        for number in range(large(rng, 40, 1)):
            below = dict.fromkeys("ab", f"{number - 1}.index.json") if number else {"w": files[0]}
            below["b"] = f"{number - 1}b.index.json" if number else files[0]
            for end in ("", "b"):
                text = json.dumps({"weight_map": below})
                (folder / f"{number}{end}.index.json").write_text(text)
        index["below"] = f"{number}.index.json"
    more = {"total_size": 1}
    if rng.random() < 0.2:
        more |= {f"m{n}.weight_ih_l0": "s0.weight_ih_l0" for n in range(many(rng, 20_000))}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": more, "weight_map": index}), "utf-8")
    if rng.random() < 0.1:
        return Case(folder / rng.choice(files), [from_torch, models.find])
    return Case(path, readers()[:-1])


# ---- NumPy ---------------------------------------------------------------------------------------


def npy_bytes(shape, data=b"", descr="'<f4'", order=False, more="", version=1):
    shape = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}"
    width = 2 if version == 1 else 4
    header += " " * (-(len(header) + 9 + width) % 64) + "\n"
    size = len(header).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + data


def floats(rng, *shape):
    return npy_bytes(shape, numbers(rng, int(np.prod(shape))).tobytes())


def odd_array(rng):
    """An array that NumPy may write, of an unusual form."""
    kind = rng.randrange(9)
    if kind == 0:  # nothing in it, whatever its other axes are
        return npy_bytes((large(rng, 1 << 70), 0, rng.choice((1, 1 << 62))))
    if kind == 1:
        return npy_bytes((1,) * large(rng, 200), b"1234")
    if kind == 2:
        return npy_bytes((2,), b"\x80\x02]N\x85a.", "'|O'")
    if kind == 3:
        fields = ", ".join(f"('f{n}', '<f4')" for n in range(many(rng, 3000, 1)))
        return npy_bytes((1,), b"1234", f"[{fields}]", version=2)
    if kind == 4:
        return npy_bytes((int("1" * many(rng, 4000, 1)),), b"")
    if kind == 5:
        number = rng.choice((7, 18, 30, 900))
        return npy_bytes(("1" * number, "-1"), b"")
    if kind == 6:
        size = large(rng, 1 << 40)
        return npy_bytes((0,), b"", f"'{rng.choice('<>|')}{rng.choice('USV')}{size}'")
    if kind == 7:
        return npy_bytes((3, 2), bytes(24), order=True, more=" " * many(rng, 60_000), version=2)
    return npy_bytes((2, 3), bytes(48), "'>c8'", version=rng.choice((1, 2, 3)))


def keras_gru(rng, place, names):
    I, H = large(rng, 20, 1), large(rng, 20, 1)
    shapes = ((I, 3 * H), (H, 3 * H), (2, 3 * H))
    return {
        f"{place}{name}": floats(rng, *shape) for name, shape in zip(names, shapes, strict=True)
    }


def npz_members(rng):
    """The members of an .npz file."""
    members = {}
    kinds = [("kernel", "recurrent_kernel", "bias"), ("kernel:0", "recurrent_kernel:0", "bias:0")]
    kinds += [("vars/0", "vars/1", "vars/2")]
    places = ("gru/gru_cell/", "gru/", "a.b.", "layers/gru/cell/", "/" * large(rng, 500) + "a/")
    if rng.random() < 0.4:
        members |= keras_gru(rng, rng.choice(places), rng.choice(kinds))
    if rng.random() < 0.4:
        H = large(rng, 30, 1)
        for role, shape in zip(ROLES, shapes(0, 1, 3, H), strict=True):
            members[f"gru.{role}_l0"] = floats(rng, *shape)
    kind = rng.randrange(7)
    if kind == 0:
        data = floats(rng, large(rng, 30))
        members |= {f"m{n}": data for n in range(many(rng, 30_000))}
    elif kind == 1:
        sign = rng.choice(("n", "a/", "kernel/", "vars/0/", "a."))
        end = rng.choice(("", "kernel", ".weight_ih_l0"))
        for number in range(large(rng, 200)):
            members[f"{sign * large(rng, 30_000 // len(sign))}{number}{end}"] = floats(rng, 3, 1)
    elif kind == 2:
        members["zeros"] = npy_bytes((20, 1 << 18), bytes(20 << 20)) if rng.random() < 0.3 else b""
    elif kind == 3:
        for number in range(large(rng, 100)):
            members[f"odd{number}"] = odd_array(rng)
    elif kind == 4:
        for number in range(many(rng, 3000)):
            members |= keras_gru(rng, f"l{number}/", rng.choice(kinds))
    elif kind == 5:
        H = large(rng, 9, 1)
        data = [floats(rng, *shape) for shape in shapes(0, 1, H, H)]
        apart = rng.random() < 0.5
        for number in range(many(rng, 900)):
            ends = ("", f"g{number}.") if apart else (f"_l{number}", "g.")
            for role, array in zip(ROLES, data, strict=True):
                members[f"{ends[1]}{role}{ends[0] or '_l0'}"] = array
    return members


def npz(folder, rng):
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(folder / "m.npz", "w", method) as archive:
        for name, data in npz_members(rng).items():
            archive.writestr(f"{name}.npy", data)
    return Case(folder / "m.npz", readers())


def npy(folder, rng):
    """One array, or a pickled dict of arrays."""
    path = folder / "m.npy"
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(odd_array(rng))
    elif kind == 1:
        path.write_bytes(floats(rng, many(rng, 1000), many(rng, 1000)))
    else:
        saved = Saved(rng)
        if rng.random() < 0.8:
            numpy_gru(saved)
        for feature in chosen(rng, [numpy_arrays, *PICKLED]):
            feature(saved)
        data = b"\x80\x02](" + saved.pickled()[2:-1] + b"e."
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        dtype = b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R(K\x03" + text("|")
        dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
        data = b"\x80\x02" + start + b"(K\x01)" + dtype + b"\x89" + data[2:-1] + b"tb."
        path.write_bytes(npy_bytes((), data, "'|O'"))
    return Case(path, readers())


def npy_run(folder, rng):
    """The inputs of ``fastgru run``, as far as no output is written."""
    path = folder / "x.npy"
    kind = rng.randrange(3)
    if kind == 0:
        path.write_bytes(odd_array(rng))
    elif kind == 1:
        path.write_bytes(npy_bytes((large(rng, 1 << 62), rng.choice((0, 1 << 62)), 0)))
    else:
        path.write_bytes(floats(rng, large(rng, 50), large(rng, 50), large(rng, 50)))
    return Case(path, [_input])


def _input(path):
    """Open an input as ``fastgru run`` does, and let a layer see its shape."""
    x = run._opened(path)
    if x.ndim != 3:
        raise ValueError(f"expected three axes, got {x.ndim}")
    layer = fastgru.GRU(2, return_sequences=True)
    layer(x[:0])
    nbytes = len(x) * run._row_bytes(layer, x, np.dtype("float32"))
    if not x.size:
        run._expect_little(path, x.shape, x.shape, nbytes)
    run._release(x)


KINDS = {
    "pt": pt,
    "pt_legacy": pt_legacy,
    "safetensors": safetensors,
    "torch_shards": torch_shards,
    "npz": npz,
    "npy": npy,
    "npy_run": npy_run,
}
