"""Altered SavedModels: each is read as it was, or is a ValueError, in little time and memory.

10,000 of them with FASTGRU_EXHAUSTIVE=1, a few hundred otherwise; ``pytest -s`` prints the figures.
The reader is Python over bytes of files, so that all of it can run in one process.
"""

import contextlib
import resource
import time

import numpy as np
import pytest
import savedmodel_support as support
from exhaustive import EVERYTHING

from fastgru.io.budget import Budget
from fastgru.io.bundle import Bundle
from fastgru.io.savedmodel import find

COUNT = 10_000 if EVERYTHING else 300
SECONDS, KILOBYTES = 2, 500_000
MODELS = ("nested", "subclassed", "before_2_5", "module", "exported")
INDEX, DATA = "variables/variables.index", "variables/variables.data-00000-of-00001"


def flip(data, rng):
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(8))


def cut_off(data, rng):
    del data[int(rng.integers(len(data))) :]


def remove(data, rng):
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, 64))]


def repeat(data, rng):
    start = int(rng.integers(len(data)))
    part = data[start : start + int(rng.integers(1, 64))]
    data[start:start] = part * int(rng.integers(1, 9))


def forge_number(data, rng):
    """Put a large number, as varints are stored, where some length may be."""
    number = support.varint(2 ** int(rng.integers(7, 70)))
    start = int(rng.integers(len(data)))
    data[start : start + int(rng.integers(1, 6))] = number


def fill(data, rng):
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, 17))
    data[start : start + length] = bytes([int(rng.choice([0, 0x7F, 0x80, 0xFF]))]) * length


ATTACKS = (flip, cut_off, remove, repeat, forge_number, fill)


def altered(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if data:
            ATTACKS[rng.integers(len(ATTACKS))](data, rng)
    return bytes(data)


def alter_file(folder, rng):
    """Alter one file; return its name."""
    names = [n for n in ("saved_model.pb", "keras_metadata.pb") if (folder / n).exists()]
    name = str(rng.choice([*names, INDEX, DATA]))
    (folder / name).write_bytes(altered((folder / name).read_bytes(), rng))
    return name


def alter_below_checksums(folder, rng):
    """Alter an entry, a key or the graph of objects, and make all checksums right again."""
    bundle = Bundle(folder / "variables", "variables", Budget("it"))
    header = support.field(1, 1) + support.field(3, support.field(1, 1))
    pairs = {b"": header, **{k.encode(): bytes(v) for k, v in bundle.entries.items()}}
    if rng.random() < 0.4:
        graph = altered(bundle.text(support.GRAPH), rng)
        stored, checked = support.stored_text(graph)
        at = (folder / DATA).stat().st_size
        (folder / DATA).write_bytes((folder / DATA).read_bytes() + stored)
        pairs[support.GRAPH.encode()] = support.entry(
            support.STRING, (), at, len(stored), support.masked(checked)
        )
    else:
        key = sorted(pairs)[rng.integers(len(pairs))]
        value = pairs.pop(key)
        if rng.random() < 0.2:
            key = altered(key, rng)
        pairs[key] = altered(value, rng)
    pairs = sorted(pairs.items())
    blocks = [support.block(pairs[:5]), support.block(pairs[5:])]
    if rng.random() < 0.3:
        blocks[rng.integers(2)] = altered(blocks[0], rng) + b"\0" * 8
    (folder / INDEX).write_bytes(support.table(blocks))
    return "below checksums"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    place = tmp_path_factory.mktemp("originals")
    return {name: support.unpack(name, place) for name in MODELS}


def weights_of(folder):
    return {one.name: one.layer.get_weights() for one in find(folder)}


@pytest.mark.alone
def test_altered_files(originals, tmp_path):
    rng = np.random.default_rng(20)
    as_they_were = {name: weights_of(folder) for name, folder in originals.items()}
    contents = {
        name: {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for name, folder in originals.items()
    }
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest, refused, read = 0.0, 0, 0
    for number in range(COUNT):
        name = MODELS[number % len(MODELS)]
        (folder / "keras_metadata.pb").unlink(missing_ok=True)
        for path, content in contents[name].items():
            (folder / path).write_bytes(content)
        what = (alter_file if rng.random() < 0.6 else alter_below_checksums)(folder, rng)
        files = sorted(tmp_path.rglob("*"))
        start = time.process_time()
        found = None
        with contextlib.suppress(ValueError):
            found = find(folder)
        slowest = max(slowest, time.process_time() - start)
        assert sorted(tmp_path.rglob("*")) == files, "nothing is written"
        refused += found is None
        read += found is not None
        for one in found or ():
            got = one.layer.get_weights()
            y = one.layer(np.ones((2, 3, got[0].shape[0]), one.layer.dtype))
            assert isinstance(y, np.ndarray | tuple | list)
            if what in (INDEX, DATA):  # all of these have checksums
                for ours, theirs in zip(got, as_they_were[name][one.name], strict=True):
                    np.testing.assert_array_equal(ours, theirs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    counts = f"{COUNT} altered: {refused} ValueErrors, {read} read"
    print(f"\n{counts}; the slowest {slowest:.3f} s; memory grew by {grown} kB")
    assert refused > COUNT / 2
    assert read > COUNT / 50, "nothing but errors would prove little"
    assert slowest < SECONDS
    assert grown < KILOBYTES
