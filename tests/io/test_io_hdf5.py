"""The HDF5 reader beside h5py, and what it refuses."""

import io

import h5py
import numpy as np
import pytest

from fastgru.io import hdf5
from fastgru.io.budget import Budget


def read(path):
    return hdf5.File(io.BytesIO(path.read_bytes()), "f.h5", Budget("f.h5", 1 << 24)).root


def values(rng, dtype, shape):
    return rng.normal(0, 1, shape).astype(dtype)


def test_all_that_keras_writes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for dtype in ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8"):
            arrays[f"types/{dtype}"] = values(rng, dtype, (3, 2, 5))
        for shape in ((), (0,), (0, 3), (7,), (300, 200)):
            arrays[f"shapes/{len(shape)}/{sum(shape)}"] = values(rng, "f4", shape)
        for i in range(500):  # more than one leaf, and more than one level
            arrays[f"many/layer_{i}/vars/0"] = values(rng, "f4", (1,))
        arrays["a layer, ünicode"] = values(rng, "f4", (2, 2))
        for name, array in arrays.items():
            file[name] = array
        file["again"] = file["types"]  # a hard link, as to_keras_weights makes
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, compact)
        file["compact"][:] = arrays["compact"] = values(rng, "f4", (3,))
        texts = {
            "text": "häl",
            "bytes": np.bytes_(b"fixed"),
            "long": "x" * 100_000,
            "names": ["a", "bb", ""],
            "fixed names": np.asarray([b"aa", b"b"]),
            "none": np.asarray([]),
            "number": 2.5,
            "empty": "",
        }
        for group in (file, file["many/layer_3"]):
            for name, value in texts.items():
                group.attrs[name] = value
    root = read(path)
    for name, array in arrays.items():
        got = root.array(name)
        assert got.shape == array.shape
        assert got.dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(got, array), name
    assert np.array_equal(root.array("again/<f4"), arrays["types/<f4"])
    assert sorted(root.group("many").names) == sorted(f"layer_{i}" for i in range(500))
    for group in (root, root.group("many/layer_3")):
        assert group.attributes == set(texts)
        assert group.attribute("text") == "häl"
        assert group.attribute("bytes") == "fixed"
        assert group.attribute("long") == "x" * 100_000
        assert group.attribute("names") == ["a", "bb", ""]
        assert group.attribute("fixed names") == ["aa", "b"]
        assert group.attribute("none").shape == (0,)
        assert group.attribute("number") == 2.5
        assert group.attribute("empty") == ""
        assert group.attribute("absent") is None
    assert root.group("absent") is None
    assert root.group("many/layer_3/absent/far") is None
    assert root.group("compact") is None
    with pytest.raises(ValueError, match="expected an array many, got a group"):
        root.array("many")
    with pytest.raises(ValueError, match="expected an array absent, got nothing"):
        root.array("absent")


def chunked(file):
    file.create_dataset("x", data=np.ones((4, 4), "f4"), chunks=(2, 2))


def compressed(file):
    file.create_dataset("x", data=np.ones((400, 400), "f4"), compression="gzip")


def bomb(file):
    file.create_dataset("x", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024), compression="gzip")


def never_written(file):
    file.create_dataset("x", (1 << 20, 1 << 20), "f4")


def empty_but_huge(file):
    file.create_dataset("x", (0, 1 << 62), "f4")


def external(file):
    file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


def integers(file):
    file["x"] = np.arange(4)


def opaque(file):
    file["x"] = np.zeros(3, "V3")


def soft_link(file):
    file["y"] = np.ones(3, "f4")
    file["x"] = h5py.SoftLink("/y")


def external_link(file):
    file["x"] = h5py.ExternalLink("/etc/passwd", "/x")


def committed_type(file):
    file["type"] = np.dtype("f4")
    file.create_dataset("x", (3,), dtype=file["type"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (chunked, "expected an array in one piece in the file, got layout 2"),
        (compressed, "expected an array in one piece"),
        (bomb, "expected an array in one piece"),
        (never_written, "it would end beyond the file's"),
        (empty_but_huge, "expected the 0 bytes of shape (0, 4611686018427387904)"),
        (external, "expected an array in one piece in the file"),
        (virtual, "expected an array in one piece in the file"),
        (integers, "expected IEEE floats or strings, got type 0 of 8 bytes"),
        (opaque, "expected IEEE floats or strings, got type 5 of 3 bytes"),
        (soft_link, "expected x itself, got a link to another place"),
        (external_link, "expected x itself, got a link to another place"),
        (committed_type, "expected its type and shape in its header"),
    ],
)
def test_what_keras_does_not_write_is_refused(make, message, tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        make(file)
    with pytest.raises(ValueError, match=r"^f\.h5: ") as error:
        read(tmp_path / "f.h5").array("x")
    assert message in str(error.value)


@pytest.mark.parametrize("libver", ["v108", "latest"])
def test_newer_formats_are_refused(libver, tmp_path):
    with h5py.File(tmp_path / "f.h5", "w", libver=libver) as file:
        file["x"] = np.ones(3, "f4")
    with pytest.raises(ValueError, match=r"superblock version 0, got [23].*save it again"):
        read(tmp_path / "f.h5")


def test_a_file_cut_short(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = np.ones(3000, "f4")
    data = (tmp_path / "f.h5").read_bytes()
    for size in (0, 8, 50, 96, 500, len(data) - 1):
        with pytest.raises(ValueError, match=r"^f\.h5"):
            hdf5.File(io.BytesIO(data[:size]), "f.h5", Budget("f.h5", 1 << 24))


def test_one_array_is_not_read_a_thousand_times(tmp_path):
    """A thousand layers of one array would be a thousand times the file in memory."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["0"] = np.ones(100_000, "f4")
        for i in range(1, 1000):
            file[str(i)] = file["0"]
    root = read(tmp_path / "f.h5")
    with pytest.raises(ValueError, match=r"more than .* bytes of memory"):
        [root.array(str(i)) for i in range(1000)]


def test_groups_in_themselves(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["g/x"] = np.ones(3, "f4")
        file["g/g"] = file["g"]
    root = read(tmp_path / "f.h5")
    assert root.group("/".join(["g"] * 100_000)) is root.group("g")


@pytest.mark.parametrize("count", [1, 8, 9, 46, 1200, 5000])
def test_names_beyond_ascii(count, tmp_path):
    """Up to eight lie in the header, more in a heap behind a tree of one, two or three levels."""
    names = [f"é{i}_{'x' * (i % 90)}" for i in range(count)]
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for i, name in enumerate(names):
            file.create_group(name).attrs["i"] = np.float32(i)
        file[names[-1]]["a"] = np.arange(3, dtype="f4")
    with (tmp_path / "f.h5").open("rb") as file:
        root = hdf5.File(file, "f.h5", Budget("f.h5", 1 << 24)).root
        assert root.names == sorted(names)
        for i in range(0, count, 97):
            assert root.group(names[i]).attribute("i") == i
        assert np.array_equal(root.array(f"{names[-1]}/a"), [0, 1, 2])


def test_bfloat16(tmp_path):
    """Keras writes it as two opaque bytes; every value is one of float32 too."""
    bits = np.arange(1 << 16, dtype="u2")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"] = bits.view("V2")
    with (tmp_path / "f.h5").open("rb") as file:
        got = hdf5.File(file, "f.h5", Budget("f.h5", 1 << 24)).root.array("x")
    assert got.dtype == "float32"
    assert np.array_equal(got.view("u4"), bits.astype("u4") << 16)
