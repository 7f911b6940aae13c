"""ONNX models whose structure is drawn large; see `structure_fuzz`.

The messages are written by hand, so that the package onnx is not needed to make a file.
"""

from functools import partial

import numpy as np
from savedmodel_support import field, fixed32, varint
from structure_fuzz import Case, large
from structure_torch import many

import fastgru
from fastgru.cli import models
from fastgru.io import from_onnx, read_arrays

FLOAT, UINT8, INT8, INT64, DOUBLE, BFLOAT16 = 1, 2, 3, 7, 11, 16


def readers():
    return [from_onnx, partial(from_onnx, node="gru"), read_arrays, models.find, fastgru.load]


# ---- messages ------------------------------------------------------------------------------------


def attribute(name, value):
    """An AttributeProto: a number, text, a tensor, a list of integers, or a graph."""
    start = field(1, name)
    if isinstance(value, Graph):
        return start + field(6, value.message()) + field(20, 5)
    if isinstance(value, list):
        return start + b"".join(field(8, n & (1 << 64) - 1) for n in value) + field(20, 7)
    if isinstance(value, int):
        return start + field(3, value & (1 << 64) - 1) + field(20, 2)
    if isinstance(value, bytes):
        return start + field(5, value) + field(20, 4)
    return start + field(4, value) + field(20, 3)


def node(kind, inputs, outputs, name="", **attributes):
    message = b"".join(field(1, one) for one in inputs) + b"".join(field(2, o) for o in outputs)
    message += field(3, name) + field(4, kind)
    return message + b"".join(field(5, attribute(k, v)) for k, v in attributes.items())


def tensor(name, array=None, kind=FLOAT, dims=None, data=None, more=b""):
    dims = array.shape if dims is None else dims
    packed = b"".join(varint(n) for n in dims)
    message = field(1, packed) + field(2, kind) + (field(8, name) if name else b"") + more
    if data is None and array is not None:
        data = array.tobytes()
    return message + (b"" if data is None else field(9, data))


def external(name, dims, location, offset=None, length=None):
    """A tensor whose numbers are in another file."""
    entries = {"location": location, "offset": offset, "length": length}
    more = b"".join(
        field(13, field(1, key) + field(2, str(value)))
        for key, value in entries.items()
        if value is not None
    )
    return tensor(name, dims=dims, more=more + field(14, 1))


class Graph:
    """The fields of a GraphProto."""

    def __init__(self, rng):
        self.rng = rng
        self.fields = [field(2, "g"), field(11, field(1, "X"))]
        self.names = 0
        self.files = {}

    def node(self, *args, **attributes):
        self.fields.append(field(1, node(*args, **attributes)))

    def constant(self, array, kind=FLOAT):
        name = self.name()
        self.fields.append(field(5, tensor(name, array, kind)))
        return name

    def integers(self, *values):
        return self.constant(np.array(values, np.int64), INT64)

    def name(self):
        self.names += 1
        return f"v{self.names}"

    def op(self, kind, *inputs, **attributes):
        name = self.name()
        self.node(kind, inputs, [name], **attributes)
        return name

    def gru(self, w, r, start="", name="", hidden=None, outputs=None):
        inputs = ["X", w, r, "", "", start] if start else ["X", w, r]
        more = {} if hidden is None else {"hidden_size": hidden}
        self.node("GRU", inputs, outputs or [self.name()], name, **more)

    def message(self):
        return b"".join(self.fields)


def floats(rng, *shape):
    return np.random.default_rng(rng.getrandbits(32)).normal(size=shape).astype("float32")


def weights(graph, H=None, I=None):
    """Names and sizes of the constant W and R of a GRU."""
    rng = graph.rng
    H = large(rng, rng.choice((8, 100)), 1) if H is None else H
    I = large(rng, 20, 1) if I is None else I
    w = graph.constant(floats(rng, 1, 3 * H, I))
    return w, graph.constant(floats(rng, 1, 3 * H, H)), H, I


# ---- what a graph may have -----------------------------------------------------------------------


def many_grus(graph):
    """Nodes that share their weights, and perhaps a name."""
    rng = graph.rng
    w, r, _, _ = weights(graph, large(rng, 40, 1))
    name = rng.choice((None, "same", "n" * many(rng, 30_000)))
    for number in range(many(rng, 1100)):
        graph.gru(w, r, name=f"gru{number}" if name is None else name)


def chain(graph):
    """A weight that many nodes in a row make."""
    rng = graph.rng
    w, r, H, I = weights(graph)
    for _ in range(large(rng, 80)):
        kind = rng.randrange(8)
        if kind == 0:
            w = graph.op("Identity", w)
        elif kind == 1:
            w = graph.op("Transpose", graph.op("Transpose", w, perm=[2, 1, 0]), perm=[2, 1, 0])
        elif kind == 2:
            w = graph.op("Reshape", graph.op("Reshape", w, graph.integers(-1)),
                         graph.integers(1, 3 * H, I))  # fmt: skip
        elif kind == 3:
            w = graph.op("Cast", graph.op("Cast", w, to=DOUBLE), to=FLOAT)
        elif kind == 4:
            halves = [
                graph.op("Slice", w, graph.integers(a), graph.integers(b), graph.integers(1))
                for a, b in ((0, H), (H, 1 << 62))
            ]
            w = graph.op("Concat", *halves, axis=1)
        elif kind == 5:
            axes = graph.integers(0)
            w = graph.op("Squeeze", graph.op("Unsqueeze", w, axes), axes)
        elif kind == 6:
            w = graph.op("Cast", w, to=BFLOAT16)
        else:
            w = graph.op("Expand", w, graph.op("Shape", w))
    graph.gru(w, r)


def doubling(graph):
    """A Concat of an array with itself, again and again, and what is sliced out of it."""
    rng = graph.rng
    w, r, H, _ = weights(graph)
    for _ in range(large(rng, 63)):
        w = graph.op("Concat", *[w] * rng.choice((2, 2, 3, 30)), axis=1)
    cut = graph.op("Slice", w, graph.integers(0), graph.integers(3 * H), graph.integers(1))
    graph.gru(cut, r)


def expanded(graph):
    """An array with strides of 0, and what would copy it."""
    rng = graph.rng
    _, r, H, I = weights(graph)
    shape = [large(rng, 1 << rng.choice((10, 20, 40)), 1) for _ in range(2)]
    if rng.random() < 0.5:
        start = graph.op("Expand", graph.constant(floats(rng, 1, 1)), graph.integers(*shape))
    else:
        value = {"value": tensor("", floats(rng, 1))} if rng.random() < 0.5 else {}
        start = graph.op("ConstantOfShape", graph.integers(*shape), **value)
    kind = rng.randrange(5)
    if kind == 0:
        start = graph.op("Reshape", start, graph.integers(-1))
    elif kind == 1:
        start = graph.op("Cast", start, to=rng.choice((DOUBLE, BFLOAT16)))
    elif kind == 2:
        start = graph.op("Transpose", start, perm=[1, 0])
    elif kind == 3:
        start = graph.op("Reshape", graph.op("Transpose", start), graph.integers(*shape))
    flat = graph.op("Reshape", start, graph.integers(-1))
    cut = graph.op("Slice", flat, graph.integers(0), graph.integers(3 * H * I))
    graph.gru(graph.op("Reshape", cut, graph.integers(1, 3 * H, I)), r, hidden=H)


def quantized(graph):
    """Weights of integers with a scale for each, a row, or a block."""
    rng = graph.rng
    H = many(rng, 800, 1)
    x = np.zeros((1, 3 * H, H), np.int8)
    blocks = rng.choice((0, 0, 1, 2, 16, 128))
    shape = (1, 3 * H, -(-H // blocks)) if blocks else (3 * H,)
    if large(rng, int(np.prod(shape))) > 3_000_000:
        shape, blocks = (3 * H,), 0
    inputs = [graph.constant(x, INT8), graph.constant(floats(rng, *shape))]
    if rng.random() < 0.5:
        inputs.append(graph.constant(np.zeros(shape, np.int8), INT8))
    more = {"axis": 2, "block_size": blocks} if blocks else {"axis": 1}
    w = graph.op("DequantizeLinear", *inputs, **more)
    graph.gru(w, w)


def other_nodes(graph):
    rng = graph.rng
    for number in range(many(rng, 20_000)):
        graph.node("Add", [f"a{number}", "X"], [f"a{number + 1}"], f"node{number}")


def empty_messages(graph):
    """Messages without a field: two bytes in the file, a hundred in memory."""
    rng = graph.rng
    number = rng.choice((1, 5, 11, 12, 13, 14, 15, 16))
    graph.fields.append(field(number, b"") * many(rng, 1_000_000))


def nested_messages(graph):
    """Empty messages in a node, an attribute or a tensor."""
    rng = graph.rng
    count = many(rng, 1_000_000)
    kind = rng.randrange(8)
    if kind < 4:
        message = field(4, "Foo") + field((1, 2, 5, 9)[kind], b"") * count
    elif kind < 6:
        message = field(5, field(1, "a") + field((9, 10)[kind - 4], b"") * count + field(20, 9))
    else:
        more = field(13, b"") * count if kind == 6 else field(6, b"") * count
        message = field(4, "Constant") + field(
            5, attribute("value", tensor("t", dims=(1,), more=more))
        )
    graph.fields.append(field(1, message))


def numbers_in_fields(graph):
    """Tensors whose numbers are not raw: a byte for each in the file, eight in memory."""
    rng = graph.rng
    for number in range(large(rng, 5, 1)):
        count = many(rng, 5_000_000)
        kind, where = rng.choice(((INT64, 7), (6, 5), (INT8, 5), (13, 11), (BFLOAT16, 5)))
        if rng.random() < 0.8:
            data = field(where, bytes(count))
        else:
            count //= 10
            data = field(where, 0) * count
        graph.fields.append(field(5, tensor(f"n{number}", dims=(count,), kind=kind, more=data)))
    graph.fields.append(field(5, tensor("axes", dims=(1,) * many(rng, 1_000_000))))


def sparse(graph):
    rng = graph.rng
    _, r, H, _ = weights(graph)
    for number in range(large(rng, 30, 1)):
        count = many(rng, 1000)
        values = tensor(f"s{number}", floats(rng, count))
        indices = tensor(f"i{number}", np.arange(count), INT64)
        dims = rng.choice(([1, 3 * H, H], [1 << 62, 1 << 62, 0], [large(rng, 1 << 40)]))
        message = field(1, values) + field(2, indices) + field(3, b"".join(map(varint, dims)))
        graph.fields.append(field(15, message))
    graph.gru("s0", r)


def subgraphs(graph):
    """Graphs in each other, or side by side, with the same names."""
    rng = graph.rng
    w, r, _, _ = weights(graph, 1, 1)
    if rng.random() < 0.5:
        inner = Graph(rng)
        inner.fields = []
        inner.gru(w, r, outputs=["o"])
        for number in range(large(rng, 70)):
            outer = Graph(rng)
            outer.fields = [field(5, tensor(f"w{number}", floats(rng, large(rng, 100))))]
            outer.node("If", ["X"], [f"if{number}"], then_branch=inner)
            if rng.random() < 0.1:
                outer.node("If", ["X"], [f"else{number}"], then_branch=inner)
            inner = outer
            if len(inner.message()) > 2_000_000:
                break
        graph.node("If", ["X"], ["if"], then_branch=inner)
        return
    same = rng.random() < 0.7
    for number in range(many(rng, 8000)):
        inner = Graph(rng)
        name = "w" if same else f"w{number}"
        inner.fields = [field(5, tensor(name, floats(rng, 1)))]
        graph.node("If", ["X"], [f"if{number}"], then_branch=inner)


def long_names(graph):
    rng = graph.rng
    _, r, H, _ = weights(graph)
    sign = rng.choice(("n", "\N{GRINNING FACE}", "\u00e9"))
    long = sign * many(rng, 1_000_000)
    graph.fields.append(field(5, tensor(long, floats(rng, 1, 3 * H, 2))))
    graph.gru(long, r, name=sign * many(rng, 100_000))
    for number in range(large(rng, 10)):
        graph.node("Add", [sign * many(rng, 300_000), "X"], [f"long{number}"])


def state(graph):
    """An initial state at the end of many nodes, which many GRUs share."""
    rng = graph.rng
    w, r, H, _ = weights(graph, 1, 1)
    start = "X"
    if rng.random() < 0.5:
        start = graph.op("ConstantOfShape", graph.op("Shape", "X"))
    if rng.random() < 0.3:
        several = [graph.integers(1)] * many(rng, 30_000)
        start = graph.op("Concat", *several, start, axis=0)
    for _ in range(large(rng, 70)):
        start = graph.op(rng.choice(("Identity", "Tile", "Squeeze", "Transpose")), start)
    for number in range(many(rng, 1000, 1)):
        graph.gru(w, r, start, f"state{number}", H)


def many_inputs(graph):
    rng = graph.rng
    w, r, _, _ = weights(graph)
    if rng.random() < 0.5:
        w = graph.op("Concat", w, *[graph.integers()] * many(rng, 200_000), axis=0)
    else:
        none = graph.constant(floats(rng, 1, 0, 1))
        w = graph.op("Concat", w, *[none] * many(rng, 200_000), axis=1)
    graph.gru(w, r)


def many_attributes(graph):
    rng = graph.rng
    w, r, _, _ = weights(graph)
    lists = {f"a{n}": n for n in range(many(rng, 20_000))} if rng.random() < 0.5 else {}
    w = graph.op("Transpose", w, perm=[0, 1, 2] * many(rng, 50_000, 1), **lists)
    graph.gru(w, r)
    fields = field(8, b"\x00" * many(rng, 3_000_000)) + field(20, 7)
    message = node("GRU", ["X", w, r], ["listed"]) + field(5, field(1, "activation_alpha") + fields)
    if rng.random() < 0.3:
        names = field(9, b"Tanh") * many(rng, 100_000)
        message += field(5, field(1, "activations") + names + field(20, 8))
    if rng.random() < 0.3:
        alphas = fixed32(7, 0x3F800000) * many(rng, 100_000)
        message += field(5, field(1, "activation_beta") + alphas + field(20, 6))
    graph.fields.append(field(1, message))


def constants(graph):
    """Nodes of Constant, of all kinds."""
    rng = graph.rng
    for number in range(many(rng, 5000)):
        kind = rng.randrange(4)
        if kind == 0:
            value = {"value": tensor("", floats(rng, large(rng, 50)))}
        elif kind == 1:
            value = {"value_ints": list(range(large(rng, 100)))}
        elif kind == 2:
            value = {"value_string": "x" * many(rng, 1000)}
        else:
            value = {"value_int": number}
        graph.node("Constant", [], [f"c{number}"], **value)


def beside(graph):
    """Tensors in other files: one range many times, many files, names of many parts."""
    rng = graph.rng
    _, r, H, I = weights(graph)
    size = many(rng, 300_000)
    graph.files["w.bin"] = bytes(size)
    kind = rng.randrange(5)
    count = many(rng, rng.choice((300, 5000)))
    for number in range(count):
        location, offset, length = "w.bin", large(rng, size), None
        if kind == 1 and number < 500:
            location, offset = f"{number}.bin", None
            graph.files[location] = bytes(many(rng, 1000))
        elif kind == 2:
            location = "./" * many(rng, 2000) + "w.bin"
        elif kind == 3:
            offset = 0
        elif kind == 4:
            location = rng.choice(("w.bin", "a" * many(rng, 10_000), "/etc/passwd", "../w.bin"))
        held = len(graph.files.get(location, graph.files["w.bin"])) - (offset or 0)
        dims = [0 if rng.random() < 0.3 else max(held // 4, 0)]
        if rng.random() < 0.5:
            length = 4 * dims[0]
        graph.fields.append(field(5, external(f"e{number}", dims, location, offset, length)))
    graph.files["more.bin"] = floats(rng, 3 * H * I).tobytes()
    graph.fields.append(field(5, external("more", (1, 3 * H, I), "more.bin")))
    graph.gru("more", r)


def large_weights(graph):
    rng = graph.rng
    H = many(rng, 900, 1)
    kind = rng.choice((FLOAT, DOUBLE, BFLOAT16))
    size = {FLOAT: 4, DOUBLE: 8, BFLOAT16: 2}[kind]
    for name in ("lw", "lr"):
        data = bytes(3 * H * H * size)
        graph.fields.append(field(5, tensor(name, kind=kind, dims=(1, 3 * H, H), data=data)))
    graph.gru("lw", "lr")


FEATURES = [
    *(many_grus, chain, doubling, expanded, quantized, other_nodes, empty_messages),
    *(nested_messages, numbers_in_fields, sparse, subgraphs, long_names, state, many_inputs),
    *(many_attributes, constants, beside, large_weights),
]


def onnx(folder, rng):
    graph = Graph(rng)
    if rng.random() < 0.8:
        w, r, H, _ = weights(graph)
        graph.gru(w, r, name="gru", hidden=rng.choice((None, H)))
    for feature in rng.sample(FEATURES, rng.randint(0, 3)):
        feature(graph)
    message = field(1, 8) + field(8, field(1, "") + field(2, 14)) + field(7, graph.message())
    kind = rng.randrange(8)
    if kind == 0:
        message += field(14, field(1, "k") + field(2, "v" * many(rng, 3_000_000)))
    elif kind == 1:
        message += field(14, field(1, "k") + field(2, "v")) * many(rng, 100_000)
    elif kind == 2:
        add = field(7, node("Add", ["a", "b"], ["c"]))
        message += field(25, field(1, "f") + field(4, "a") + add * many(rng, 30_000))
    elif kind == 3:
        message += field(rng.choice((8, 20, 25)), b"") * many(rng, 500_000)
    elif kind == 4:  # a field that ONNX does not have
        message += field(200, b"x" * large(rng, 100)) * many(rng, 30_000)
    for name, data in graph.files.items():
        (folder / name).write_bytes(data)
    (folder / "m.onnx").write_bytes(message)
    return Case(folder / "m.onnx", readers())


KINDS = {"onnx": onnx}
