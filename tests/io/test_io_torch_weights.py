"""Weights that a file holds as something else, ties, shards and prefixes: right, or refused.

The values of weight_norm, of the ties and of the files are PyTorch's: tests/data/torch/made.py
wrote them, and what torch computed is beside them.
"""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from torch_files import state_dict, torch_gru

from fastgru import io
from fastgru.io.torch import find

DATA = Path(__file__).parents[1] / "data" / "torch"
I, H = 4, 4


def rng(seed=0):
    return np.random.default_rng(seed)


def weights(layers=1, directions=1, **options):
    return state_dict(rng(), I, H, layers, directions, **options)


def outputs(layer, seed=1):
    return layer(rng(seed).normal(size=(2, 5, I)).astype("float32"))[0]


def expected(state):
    return torch_gru(state, rng(1).normal(size=(2, 5, I)).astype("float32"))[0]


def check(layer, state):
    np.testing.assert_allclose(outputs(layer), expected(state), rtol=0, atol=1e-5)


# ---- files that torch wrote ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "tied.safetensors",
        "old_norm.pt",
        "norm.pt",
        "pruned.pt",
        "model.safetensors.index.json",
        "beside.pt",
        "legacy_beside.pt",
        "normed_module.pt",
    ],
)
def test_files_of_torch(file):
    if "safetensors" in file:
        pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
    with np.load(DATA / "made.npz") as made:
        y = io.from_torch(DATA / file)(made["x"])[0]
        np.testing.assert_allclose(y, made[file], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("weight_drop.pt", r"weight_hh_l0_raw.*state\['module\.weight_hh_l0'\] = state\.pop"),
        ("spectral.pt", "spectral_norm's"),
        ("orthogonal.pt", "orthogonal's"),
        ("own_parametrization.pt", "parametrization that the file does not name"),
        ("model-00001-of-00002.safetensors", r"file 1 of 2; .*model\.safetensors\.index\.json"),
        ("float8.pt", "got float8_e4m3fn"),
        ("meta.pt", "got a meta tensor"),
        ("quantized.pt", "got a quantized tensor"),
        ("sparse.pt", "got a sparse tensor"),
        ("negative.pt", "got a view that negates"),
    ],
)
def test_files_of_torch_that_are_refused(file, message):
    with pytest.raises(ValueError, match=message):
        io.from_torch(DATA / file)


# ---- originals beside their copies ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0", "weight_hh_l1_reverse"])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("new", [False, True])
def test_weight_norm(name, dim, new):
    state = weights(2, 2)
    given = dict(state)
    v = given.pop(name)
    g = rng(3).uniform(0.5, 2, size={0: (len(v), 1), 1: (1, v.shape[1]), None: ()}[dim])
    axes = {0: 1, 1: 0, None: None}[dim]
    state[name] = v * g / np.sqrt((v * v).sum(axis=axes, keepdims=dim is not None))
    old = f"{name}_g", f"{name}_v"
    added = tuple(f"parametrizations.{name}.original{k}" for k in (0, 1)) if new else old
    given |= dict(zip(added, (g.astype("float32"), v), strict=True))
    check(io.from_torch(given), state)
    check(io.from_torch({f"a.{key}": value for key, value in given.items()}, "a"), state)


@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l0", "weight_ih_l1"])
def test_pruning(name):
    state = weights(2)
    given = dict(state)
    mask = rng(3).integers(0, 2, size=given[name].shape)
    given[f"{name}_orig"] = given.pop(name)
    state[name] = state[name] * mask
    for dtype in ("float32", "uint8", "bool"):
        given[f"{name}_mask"] = mask.astype(dtype)
        check(io.from_torch(given), state)
    given[name] = state[name]  # a copy that says the same
    check(io.from_torch(given), state)
    given[name] = state[name] + 1
    with pytest.raises(ValueError, match=f"expected {name} as its originals.*keep one"):
        io.from_torch(given)


@pytest.mark.parametrize("place", ["", "rnns.0."])
@pytest.mark.parametrize("inner", ["", "module."])
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0", "weight_hh_l0_reverse"])
def test_weight_drop(place, inner, name):
    state = weights(1, 2)
    given = {f"{place}{inner}{key}": value for key, value in state.items()}
    original = f"{place}{name}_raw"
    copy = f"{place}{inner}{name}"
    given[original] = given[copy].copy()
    given[copy] = given[copy] * 0
    with pytest.raises(ValueError, match="weight drop's original") as raised:
        io.from_torch(given)
    advice = f"state[{copy!r}] = state.pop({original!r})"
    assert advice in str(raised.value)
    given[copy] = given.pop(original)
    check(io.from_torch(given), state)
    del given[copy]
    given[original] = state[name]
    with pytest.raises(ValueError, match="weight drop"):
        io.from_torch(given)


@pytest.mark.parametrize(
    "name",
    [
        "weight_ih_l01",
        "weight_ih_l1000",
        "weight_hh_l1_scale",
        "bias_hh_l0_orig",
        "weight_hh_l0_u",
        "parametrizations.weight_hh_l0.original",
        "parametrizations.weight_hh_l1.0.rank",
    ],
)
def test_unknown_parts_of_weights_are_named(name):
    with pytest.raises(ValueError, match=name):
        io.from_torch(weights(2) | {name: np.ones((3 * H, H), "float32")})
    # Those of another module do not matter.
    check(io.from_torch(weights(2) | {f"other.{name}": np.ones(3)}, "."), weights(2))


def test_two_tensors_of_one_name():
    state = weights()
    with pytest.raises(ValueError, match=r"one tensor called a\.weight_hh_l0, got two"):
        io.from_torch({"a": state, "a.weight_hh_l0": state["weight_hh_l0"] + 1})


# ---- safetensors ---------------------------------------------------------------------------------


def save(path, arrays, metadata=None):
    package = pytest.importorskip("safetensors.numpy", reason="pip install safetensors")
    path.write_bytes(package.save(arrays, metadata))
    return path


@pytest.mark.parametrize(
    "tied",
    [
        {f"{role}_l1": f"{role}_l0" for role in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
        {"bias_hh_l0": "bias_ih_l0", "bias_hh_l1": "bias_ih_l1"},
        {"weight_ih_l0": "embedding.weight", "weight_hh_l0": "weight_hh_l1"},
    ],
)
def test_tied_tensors_come_back(tmp_path, tied):
    state = weights(2)
    kept = {"embedding.weight": rng(5).normal(size=(3 * H, I)).astype("float32")} | state
    for name, other in tied.items():
        state[name] = kept[other]
        del kept[name]
    path = save(tmp_path / "a.safetensors", kept, {"format": "pt", **tied})
    check(io.from_torch(path), state)
    del kept[next(iter(tied.values()))]
    with pytest.raises(ValueError, match=r"the same tensor as .* no such tensor"):
        io.from_torch(save(path, kept, tied))


@pytest.mark.parametrize("names", [("_l1",), ("bias",), ("weight_hh_l0",)])
@pytest.mark.parametrize("dtype", ["int8", "int32", "bool"])
def test_tensors_of_other_dtypes_are_not_left_out(tmp_path, names, dtype):
    """Without them the rest would be a smaller GRU."""
    state = {
        name: w.astype(dtype) if any(part in name for part in names) else w
        for name, w in weights(2).items()
    }
    with pytest.raises(ValueError, match="dequantise"):
        io.from_torch(save(tmp_path / "a.safetensors", state))


def shards(folder, state, metadata=None):
    files = {name: f"part{n % 3}.safetensors" for n, name in enumerate(state)}
    for file in set(files.values()):
        save(folder / file, {name: w for name, w in state.items() if files[name] == file})
    index = folder / "all.index.json"
    index.write_text(json.dumps({"metadata": metadata or {}, "weight_map": files}))
    return index, files


def test_an_index_is_read_as_one_model(tmp_path):
    state = weights(3, 2)
    index, files = shards(tmp_path, state)
    check(io.from_torch(index), state)
    assert len(find(index)) == 1
    for file in sorted(set(files.values())):
        with pytest.raises(ValueError, match=r"one of 3 files; .*all\.index\.json"):
            io.from_torch(tmp_path / file)
    tied = {name: w for name, w in state.items() if name != "bias_hh_l2"}
    index, _ = shards(tmp_path, tied, {"bias_hh_l2": "bias_ih_l2", "total_size": 5})
    check(io.from_torch(index), state | {"bias_hh_l2": state["bias_ih_l2"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_hh_l0": "../part0.safetensors"}, "names of files in its folder"),
        ({"weight_hh_l0": "/etc/passwd"}, "names of files in its folder"),
        ({"weight_hh_l0": "absent.safetensors"}, "absent.safetensors beside it, found none"),
        ({"weight_hh_l0": "part2.safetensors"}, r"expected|not"),
        ({"weight_hh_l0": 3}, "got other JSON"),
        ({"weight_hh_l7": "part0.safetensors"}, "expected weight_hh_l7 in part0"),
    ],
)
def test_an_index_that_is_not_right(tmp_path, change, message):
    index, files = shards(tmp_path, weights())
    index.write_text(json.dumps({"weight_map": files | change}))
    with pytest.raises(ValueError, match=message):
        io.from_torch(index)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "{", "[" * 10**5, ""])
def test_json_that_is_no_index(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected an index"):
        io.from_torch(path)


def test_an_index_does_not_lead_out_of_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    outside = save(tmp_path / "a.safetensors", weights())
    (inside / "b.safetensors").symlink_to(outside)
    index = inside / "all.index.json"
    names = dict.fromkeys(weights(), "b.safetensors")
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match=r"link to b\.safetensors elsewhere"):
        io.from_torch(index)
    (tmp_path / "index").write_text(index.read_text())  # a cache: both are links to one folder
    index.unlink()
    index.symlink_to(tmp_path / "index")
    check(io.from_torch(index), weights())


# ---- .npz ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "<f4", ">f4", "float64"])
@pytest.mark.parametrize("save_to", [np.savez, np.savez_compressed])
def test_npz_files(tmp_path, dtype, save_to):
    state = {f"enc.{name}": w.astype(dtype) for name, w in weights(2, 2).items()}
    state["enc.weight_ih_l0"] = np.asfortranarray(state["enc.weight_ih_l0"])
    save_to(tmp_path / "a.npz", words=np.array([{}], object), step=np.array(3), **state)
    layer = io.from_torch(tmp_path / "a.npz")
    plain = {name[4:]: w.astype("float64") for name, w in state.items()}
    x = rng(1).normal(size=(2, 5, I)).astype(layer.dtype)
    np.testing.assert_allclose(layer(x)[0], torch_gru(plain, x)[0], rtol=0, atol=1e-5)


def test_an_array_alone_says_how_to_save_several(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"one array of NumPy.* numpy\.savez"):
        io.from_torch(tmp_path / "a.npy")


def test_pickled_arrays_are_named(tmp_path):
    torch_like = {"weight_hh_l0": b"cnumpy._core.multiarray\n_reconstruct\n)R"}
    from torch_files import pickled_dict, write

    with pytest.raises(ValueError, match=r"weight_hh_l0 as a tensor .* a pickled array of NumPy"):
        io.from_torch(write(tmp_path / "a.pt", pickled_dict(torch_like)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1]], object), "got an array of objects"),
        (np.array(["a"]), "got an array of '<U1'"),
        (np.zeros((12, 4), "int8"), "dequantise"),
        (np.zeros((12, 4), "complex64"), "got an array of '<c8'"),
        (np.zeros((12, 4, 1), "float32"), "elements of float32 of shape"),
        (np.zeros(2, [("a", "f4")]), "got an array of"),
    ],
)
def test_npz_arrays_that_are_no_weights(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", **weights() | {"weight_hh_l0": array})
    with pytest.raises(ValueError, match=message):
        io.from_torch(tmp_path / "a.npz")


# ---- prefixes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("prefix", ["encoder.gru", "encoder", "encoder.gru."])
def test_wrappers_may_be_left_out_of_the_prefix(wrapper, prefix):
    state = weights()
    given = {f"{wrapper}encoder.gru.{name}": w for name, w in state.items()}
    given |= {f"{wrapper}decoder.gru.{name}": w + 1 for name, w in state.items()}
    check(io.from_torch(given, prefix), state)
    given |= {f"encoder.gru.{name}": w + 2 for name, w in state.items()}
    with_two = {name: w + 2 for name, w in state.items()}
    check(io.from_torch(given, "encoder.gru"), with_two)  # the exact name comes first
    check(io.from_torch({f"{wrapper}{name}": w for name, w in state.items()}, "."), state)


# ---- memory --------------------------------------------------------------------------------------


def test_tensors_that_overlap_many_times_are_refused(tmp_path):
    from torch_files import pickled_dict, tensor, write

    h = 256
    size = 3 * h * h + 600
    items = {
        f"{role}_l{k}": tensor("0", size, (3 * h, h), (h, 1), offset=k)
        for k in range(300)
        for role in ("weight_ih", "weight_hh")
    }
    path = write(tmp_path / "a.pt", pickled_dict(items), {"data/0": bytes(4 * size)})
    with pytest.raises(ValueError, match="overlapping tensors in a storage"):
        io.from_torch(path)
    same = {name: tensor("0", size, (3 * h, h), (h, 1)) for name in items}
    layer = io.from_torch(write(path, pickled_dict(same), {"data/0": bytes(4 * size)}))
    kernels = {inner.kernel.value.ctypes.data for inner in layer.layers}
    assert len(kernels) == 1


def test_work_that_is_shared_many_times_counts(tmp_path):
    """A list that is in a pickle once and made into a dict a thousand times."""
    from torch_files import write

    pairs = b"](" + b"K\1K\2\x86" * 20_000 + b"eq\1"
    data = b"\x80\x02ccollections\nOrderedDict\nq\2" + pairs + (b"h\2h\1\x85R0" * 50_000) + b"}."
    with pytest.raises(ValueError, match="more parts to visit"):
        io.from_torch(write(tmp_path / "a.pt", data))


def test_more_weights_than_any_model_has():
    names = {f"{n}.weight_hh_l0": np.zeros(1) for n in range(20_001)}
    with pytest.raises(ValueError, match="at most 20000 recurrent weights"):
        io.from_torch(names)


@pytest.mark.parametrize("cut", [10, 200, 600, -1, -100])
def test_legacy_files_cut_short(tmp_path, cut):
    whole = (DATA / "legacy.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"expected|damaged|cut short"):
        io.from_torch(tmp_path / "a.pt")


def test_a_legacy_storage_larger_than_the_file(tmp_path):
    data = bytearray((DATA / "legacy.pt").read_bytes())
    at = data.rfind(struct.pack("<Q", 12))
    for size in (2**63, 2**40, 13):
        data[at : at + 8] = struct.pack("<Q", size)
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(ValueError, match=r"expected|damaged|cut short"):
            io.from_torch(tmp_path / "a.pt")
