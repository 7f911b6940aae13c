"""HDF5 files of any structure, as the format allows and h5py does not write them.

Objects may have many names, also in groups below themselves; names may be ends of each other, and
strings of variable length one object of a heap. What libhdf5 reads of such a file is what was
meant (`tests/hostile/test_structure.py`).
"""

import struct

import numpy as np

NOWHERE = 2**64 - 1
LEAF, INNER = 4, 16  # half of the entries of a symbol table, and of a B-tree's node


class Group:
    """Links by name and attributes by name: str, list of str, Strings or arrays."""

    def __init__(self, **links):
        self.links, self.attributes = links, {}
        self.ends = None  # (a text, an object): all ends of the text are names of the object

    def at(self, path):
        """Return the group at a path below, made where there is none."""
        node = self
        for name in path.strip("/").split("/"):
            node = node.links.setdefault(name, Group())
        return node

    def put(self, path, node):
        """Link an object at a path below."""
        before, _, name = path.rpartition("/")
        (self.at(before) if before else self).links[name] = node
        return node


class Strings(list):
    """Strings of variable length; equal ones are one object of a heap."""

    def __init__(self, values, alone=False):
        super().__init__(values)
        self.alone = alone  # one value, and no list of one


def pad(data):
    return bytes(data) + bytes(-len(data) % 8)


class Writer:
    """Writes an object and all that it links to; `data` are the bytes of the file."""

    def __init__(self, root):
        self.data = bytearray(96)
        self._addresses, self._held = {}, []
        todo = [root]
        while todo:  # headers first, so that links may lead anywhere
            node = todo.pop()
            if id(node) not in self._addresses:
                self._held.append(node)
                self._addresses[id(node)] = self._header(node)
                if isinstance(node, Group):
                    todo += node.links.values()
                    todo += [node.ends[1]] if node.ends else []
        for node in self._held:
            if isinstance(node, Group):
                at = self._addresses[id(node)] + 16 + 8
                self.data[at : at + 16] = struct.pack("<QQ", *self._links(node))
        start = b"\x89HDF\r\n\x1a\n" + bytes((0, 0, 0, 0, 0, 8, 8, 0))
        start += struct.pack("<HHI", LEAF, INNER, 0)
        start += struct.pack("<QQQQ", 0, NOWHERE, len(self.data), NOWHERE)
        start += struct.pack("<QQII16x", 0, self._addresses[id(root)], 0, 0)
        self.data[:96] = start

    def _put(self, data):
        self.data += bytes(-len(self.data) % 8)
        address = len(self.data)
        self.data += data
        return address

    def _header(self, node):
        messages = []
        if isinstance(node, Group):
            messages.append((0x11, bytes(16)))
        else:
            node = np.asarray(node)
            stored = self._put(node.tobytes()) if node.size else NOWHERE
            messages.append((0x01, space(node.shape)))
            messages.append((0x03, pad(datatype(node))))
            layout = struct.pack("<BBQQ", 3, 1, stored, node.nbytes)
            messages.append((0x08, pad(layout)))
        for name, value in getattr(node, "attributes", {}).items():
            messages.append((0x0C, self._attribute(name, value)))
        body = b"".join(struct.pack("<HHB3x", k, len(m), 0) + m for k, m in messages)
        return self._put(struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body)

    def _attribute(self, name, value):
        if isinstance(value, str):
            value = Strings([value], alone=True)
        if isinstance(value, Strings):
            shape = () if value.alone else (len(value),)
            form = bytes.fromhex("19010100100000001300000001000000")
            data = self._strings(value)
        elif isinstance(value, list):
            stored = np.array([v.encode() for v in value] or [b""], "S")
            shape, size = stored.shape, stored.dtype.itemsize
            form, data = struct.pack("<BBBBI", 0x13, 1, 0, 0, size), stored.tobytes()
        else:
            value = np.asarray(value, "<f4")
            shape, form, data = value.shape, datatype(value), value.tobytes()
        shape, name = space(shape), name.encode() + b"\0"
        sizes = struct.pack("<BxHHH", 1, len(name), len(form), len(shape))
        return pad(sizes + pad(name) + pad(form) + pad(shape) + data)

    def _strings(self, values):
        texts = list(dict.fromkeys(values))
        places = {}
        for first in range(0, len(texts), 60_000):  # objects are numbered by 16 bits
            some = [text.encode() for text in texts[first : first + 60_000]]
            parts = [
                struct.pack("<HHIQ", i, 1, 0, len(text)) + pad(text)
                for i, text in enumerate(some, 1)
                if text
            ]
            body = b"".join(parts)
            free = max(4096 - 16 - len(body), 16)
            body += struct.pack("<HHIQ", 0, 0, 0, free) + bytes(free - 16)
            at = self._put(b"GCOL\1\0\0\0" + struct.pack("<Q", 16 + len(body)) + body)
            places.update(
                (text, (len(b), at, i))
                for i, (text, b) in enumerate(zip(texts[first:], some, strict=False), 1)
            )
        return b"".join(
            struct.pack("<IQI", *places[v]) if v else struct.pack("<IQI", 0, 0, 0) for v in values
        )

    # -- groups ----------------------------------------------------------------------------

    def _links(self, group):
        """Write a group's names, symbol tables and B-tree; return addresses of tree and names."""
        heap, entries = bytearray(8), []
        for name, node in group.links.items():
            entries.append((name.encode(), len(heap), self._addresses[id(node)]))
            heap += pad(name.encode() + b"\0")
        if group.ends:
            text, address = group.ends[0].encode(), self._addresses[id(group.ends[1])]
            entries += [(text[i:], len(heap) + i, address) for i in range(len(text))]
            heap += pad(text + b"\0")
        entries.sort()
        # A list of free space of no entry: its offset is 1.
        names = self._put(heap)
        heap = self._put(struct.pack("<4s4xQQQ", b"HEAP", len(heap), 1, names))
        level, below = 0, []
        for first in range(0, len(entries), 2 * LEAF):
            some = entries[first : first + 2 * LEAF]
            rows = b"".join(struct.pack("<QQ24x", at, address) for _, at, address in some)
            table = struct.pack("<4sBxH", b"SNOD", 1, len(some)) + rows
            below.append((some[-1][1], self._put(table.ljust(8 + 40 * 2 * LEAF, b"\0"))))
        while True:
            nodes, key = [], 0
            for first in range(0, max(len(below), 1), 2 * INNER):
                some = below[first : first + 2 * INNER]
                node = struct.pack("<4sBBHQQQ", b"TREE", 0, level, len(some), NOWHERE, NOWHERE, key)
                node += b"".join(struct.pack("<QQ", child, last) for last, child in some)
                key = some[-1][0] if some else 0
                size = 24 + 16 * 2 * INNER + 8
                nodes.append((key, self._put(node.ljust(size, b"\0"))))
            if len(nodes) == 1:
                return nodes[0][1], heap
            below, level = nodes, level + 1


def space(shape):
    return struct.pack(f"<BBB5x{len(shape)}Q", 1, len(shape), 0, *shape)


def datatype(array):
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f" and size == 4:
        return struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, 31, 0, 4, 0, 32, 23, 8, 0, 23, 127)
    if kind == "f" and size == 8:
        return struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, 63, 0, 8, 0, 64, 52, 11, 0, 52, 1023)
    if kind in "iu":
        return struct.pack("<BBBBIHH", 0x10, 8 * (kind == "i"), 0, 0, size, 0, 8 * size)
    return struct.pack("<BBBBI", 0x13, 1, 0, 0, size)


def hdf5(root):
    """Return the bytes of a file of a tree of groups and arrays."""
    return bytes(Writer(root).data)
