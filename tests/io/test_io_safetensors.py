"""save and load: every layer comes back as it was, bit for bit, and nothing else comes with it."""

import copy
import json
import os
import pickle
import threading

import numpy as np
import pytest

import fastgru
from fastgru.io.safetensors import read_tensors

safetensors_numpy = pytest.importorskip(
    "safetensors.numpy", reason="pip install 'fastgru[safetensors]'"
)

B, T, I, H = 3, 6, 5, 4


def rng(seed=0):
    return np.random.default_rng(seed)


def with_weights(layer, dtype="float32"):
    """Build a layer and give it random weights, biases included."""
    layer.build((None, None, I))
    draw = rng(1)
    layer.set_weights([draw.normal(size=v.shape).astype(dtype) for v in layer.weights])
    return layer


def configured(**more):
    """A GRU with something in every part of its config."""
    return fastgru.GRU(
        H,
        activation="relu",
        recurrent_activation="hard_sigmoid",
        kernel_initializer=fastgru.initializers.HeNormal(seed=3),
        kernel_regularizer=fastgru.regularizers.L1L2(0.1, 0.2),
        bias_constraint=fastgru.constraints.MaxNorm(2.0),
        activity_regularizer="l2",
        dropout=0.25,
        recurrent_dropout=0.5,
        seed=7,
        name="front",
        **more,
    )


LAYERS = {
    "GRU": lambda: fastgru.GRU(H, return_sequences=True, return_state=True),
    "no bias": lambda: fastgru.GRU(H, use_bias=False, go_backwards=True),
    "reset before": lambda: fastgru.GRU(H, reset_after=False, time_major=True),
    "config": configured,
    "config 2": lambda: configured(reset_after=False, implementation=1, trainable=False),
    "float64": lambda: fastgru.GRU(H, dtype="float64"),
    "tf32": lambda: fastgru.GRU(H, precision="tf32"),
    "RNN": lambda: fastgru.RNN(fastgru.GRUCell(H), return_sequences=True),
    "stack": lambda: fastgru.RNN(
        [fastgru.GRUCell(H), fastgru.GRUCell(H + 1, reset_after=False)], return_state=True
    ),
    "stack in stack": lambda: fastgru.RNN(
        fastgru.StackedRNNCells(
            [fastgru.StackedRNNCells([fastgru.GRUCell(2), fastgru.GRUCell(3)]), fastgru.GRUCell(4)]
        )
    ),
    "both ways": lambda: fastgru.Bidirectional(
        fastgru.GRU(H, return_sequences=True, return_state=True), merge_mode="ave"
    ),
    "two halves": lambda: fastgru.Bidirectional(
        fastgru.GRU(H), None, backward_layer=fastgru.GRU(H + 1, go_backwards=True)
    ),
    "stacks both ways": lambda: fastgru.Bidirectional(
        fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(2)])
    ),
    "sequential": lambda: fastgru.Sequential(
        [
            fastgru.Bidirectional(fastgru.GRU(H, return_sequences=True)),
            fastgru.RNN([fastgru.GRUCell(3), fastgru.GRUCell(2)], return_sequences=True),
            fastgru.GRU(6, return_state=True),
        ],
        name="model",
    ),
    "stateful": lambda: fastgru.GRU(H, stateful=True),
}


def flat(outputs):
    if isinstance(outputs, (list, tuple)):
        return [array for output in outputs for array in flat(output)]
    return [outputs]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_comes_back_as_it_was(tmp_path, name, mmap):
    dtype = "float64" if name == "float64" else "float32"
    layer = with_weights(LAYERS[name](), dtype)
    path = tmp_path / "layer.safetensors"
    fastgru.save(layer, path)
    again = fastgru.load(str(path), mmap=mmap)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    assert again.built
    for a, b in zip(again.weights, layer.weights, strict=True):
        assert (a.name, a.dtype, a.value.tobytes()) == (b.name, b.dtype, b.value.tobytes())
    x = rng(2).normal(size=(B, T, I)).astype(dtype)
    for a, b in zip(flat(again(x)), flat(layer(x)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_dtypes_of_devices(tmp_path):
    pytest.importorskip("ml_dtypes")
    for dtype in ("float16", "bfloat16"):
        layer = fastgru.GRU(H, dtype=dtype)
        layer.build((None, None, I))
        fastgru.save(layer, tmp_path / dtype)
        for a, b in zip(fastgru.load(tmp_path / dtype).weights, layer.weights, strict=True):
            assert a.dtype == b.dtype == np.dtype(layer._dtype)
            assert a.value.tobytes() == b.value.tobytes()


def test_weights_lie_in_the_mapped_file(tmp_path):
    layer = with_weights(fastgru.Bidirectional(fastgru.GRU(H, use_bias=True)))
    fastgru.save(layer, tmp_path / "a")
    again = fastgru.load(tmp_path / "a")
    mapped = {id(_root(v.value)) for v in again.weights}
    assert len(mapped) == 1  # one map, no copies
    assert type(_root(again.weights[0].value)).__name__ == "mmap"
    read = fastgru.load(tmp_path / "a", mmap=False)
    assert type(_root(read.weights[0].value)) is bytes
    for loaded in (again, read):
        with pytest.raises(ValueError, match="WRITEABLE"):
            loaded.weights[0].value.setflags(write=True)


def _root(array):
    while isinstance(array, (np.ndarray, memoryview)):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


def test_a_mapped_layer_outlives_its_file_and_can_be_trained_copied_and_saved(tmp_path):
    path = tmp_path / "a"
    layer = with_weights(fastgru.GRU(H))
    fastgru.save(layer, path)
    again = fastgru.load(path)
    x = rng(2).normal(size=(B, T, I)).astype("float32")
    y, tape = again.forward(x)
    np.testing.assert_array_equal(y, layer(x))
    grads = again.backward(tape, np.ones_like(y))
    for weight, gradient in zip(again.trainable_weights, grads.weights, strict=True):
        weight.assign_sub(gradient)
    fastgru.save(again, path)  # over the file that is mapped
    other = fastgru.load(path)
    for copied in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        np.testing.assert_array_equal(copied(x), again(x))
    path.unlink()
    np.testing.assert_array_equal(other(x), again(x))


def test_nothing_is_drawn_for_weights_that_are_there(tmp_path, monkeypatch):
    layer = with_weights(LAYERS["sequential"]())
    fastgru.save(layer, tmp_path / "a")

    def drawn(*arguments, **options):
        raise AssertionError("an initializer ran")

    monkeypatch.setattr(fastgru.initializers.GlorotUniform, "__call__", drawn)
    monkeypatch.setattr(fastgru.initializers.Orthogonal, "__call__", drawn)
    assert fastgru.load(tmp_path / "a").built


def test_the_same_layer_gives_the_same_bytes(tmp_path):
    layer = with_weights(LAYERS["sequential"]())
    fastgru.save(layer, tmp_path / "a")
    fastgru.save(fastgru.load(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_others_read_the_weights(tmp_path):
    layer = with_weights(LAYERS["both ways"]())
    fastgru.save(layer, tmp_path / "a")
    arrays = safetensors_numpy.load_file(tmp_path / "a")
    assert sorted(arrays) == sorted(
        f"{half}_layer.{name}"
        for half in ("forward", "backward")
        for name in ("kernel", "recurrent_kernel", "bias")
    )
    np.testing.assert_array_equal(
        arrays["backward_layer.bias"], layer.backward_layer.cell.bias.value
    )


# ---- writing -------------------------------------------------------------------------------------


class OwnCell:
    state_size = 3

    def __call__(self, inputs, states, training=False):
        return inputs[:, :3], states


class OwnGRU(fastgru.GRU):
    pass


def double(x):
    return 2 * x


def relu(x):
    return x / 2


relu.__module__ = "builtins"  # as of a function made by exec; a stranger by a name that we know


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: fastgru.GRU(H, activation=relu), "does not come back as it is"),
        (lambda: fastgru.GRU(H, activation=double), "double.*not one of Keras"),
        (lambda: fastgru.GRU(H, activation=lambda x: x), "Python function"),
        (
            lambda: fastgru.GRU(H, kernel_initializer=lambda *a, **k: np.ones(a[0], "f4")),
            "function",
        ),
        (lambda: fastgru.GRU(H, bias_regularizer=double), "Python function"),
        (lambda: fastgru.RNN(OwnCell()), "got OwnCell; a file holds no Python code"),
        (lambda: fastgru.Sequential([OwnGRU(H)]), "got OwnGRU"),
        (lambda: fastgru.GRUCell(H), "got GRUCell"),
    ],
)
def test_python_code_is_refused_and_nothing_is_written(tmp_path, layer, message):
    layer = layer()
    layer.build((B, T, I))
    with pytest.raises(ValueError, match=message):
        fastgru.save(layer, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_layer_without_weights_is_refused(tmp_path):
    half_built = fastgru.Sequential([fastgru.GRU(H, return_sequences=True), fastgru.GRU(2)])
    half_built.layers[0].build((None, None, I))
    for layer in (fastgru.GRU(H), half_built):
        with pytest.raises(ValueError, match="no weights yet"):
            fastgru.save(layer, tmp_path / "a")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    fastgru.save(with_weights(fastgru.GRU(H)), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        fastgru.save(with_weights(fastgru.GRU(H + 1)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a"
    layers = [with_weights(fastgru.GRU(units)) for units in (H, H + 3)]
    fastgru.save(layers[0], path)
    done = threading.Event()

    def write():
        for i in range(40):
            fastgru.save(layers[i % 2], path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set() or not seen:
        seen.add(fastgru.load(path).units)
    writer.join()
    assert seen <= {H, H + 3}


@pytest.mark.skipif(os.name != "posix", reason="umask is POSIX'")
def test_the_files_mode_is_the_umasks(tmp_path):
    old = os.umask(0o027)
    try:
        fastgru.save(with_weights(fastgru.GRU(H)), tmp_path / "a")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# ---- reading what is not right -------------------------------------------------------------------


def forged(path, change_about=None, change_weights=None, layer="GRU"):
    """A file with another config, or other weights, than `save` would write."""
    fastgru.save(with_weights(LAYERS[layer]()), path)
    weights = safetensors_numpy.load_file(path)
    about = json.loads(read_tensors(path)[0]["fastgru"])
    if change_about:
        about = change_about(about) or about
    if change_weights:
        weights = change_weights(weights) or weights
    path.write_bytes(safetensors_numpy.save(weights, {"fastgru": json.dumps(about)}))
    return path


def config(**changes):
    return lambda about: about["layer"]["config"].update(changes)


def layer(**changes):
    return lambda about: about["layer"].update(changes)


def nested(depth):
    inner = {"class_name": "GRUCell", "config": {"units": 1}}
    for _ in range(depth):
        inner = {"class_name": "StackedRNNCells", "config": {"cells": [inner]}}
    return {"class_name": "RNN", "config": {"cell": inner}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(format_version=2, fastgru_version="9"), "fastgru '9'.*later"),
        (lambda about: about.pop("format_version") and None, "metadata cannot be read"),
        (lambda about: about.pop("layer") and None, "expected a layer"),
        (lambda about: [1, 2], "metadata cannot be read"),
        (config(units=2**40), r"expected kernel.*3298534883328.*got float32 \(5, 12\)"),
        (config(units=-1), "config cannot be read"),
        (config(units="x"), "config cannot be read"),
        (config(use_bias=False), r"no weights \['bias'\]"),
        (config(reset_after=False), "expected kernel, recurrent_kernel, bias"),
        (config(dtype="float64"), "expected float64, got float32"),
        (config(activation="os.system"), "Unknown activation"),
        (config(activation={"class_name": "function", "config": "system", "module": "os"}), "os"),
        (config(activation={"class_name": "__lambda__", "config": {"value": "x"}}), "lambda"),
        (config(unknown=1), "config cannot be read"),
        (layer(class_name="Lambda"), "expected one of"),
        (layer(class_name=["GRU"]), "config cannot be read"),
        (layer(class_name="GRUCell", config={"units": H}), "got GRUCell"),
        (lambda about: about.update(layer=nested(240)), "nested deeper"),
        (lambda about: about.update(layer=nested(60)), "nested too deeply"),
        (lambda about: about.update(layer=nested(5)), r"expects \['cell(\.cells\.0){5}\.kernel"),
        (lambda about: about.update(layer=None), "config cannot be read"),
    ],
)
def test_configs_that_are_not_ours(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as raised:
        fastgru.load(forged(tmp_path / "a", change))
    assert str(tmp_path / "a") in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bias") is None, r"expects \['bias'\]"),
        (lambda w: w.update(kernel=w["kernel"][:0]), None),
        (lambda w: w.update(kernel=np.ones((H, 3 * H), "int32")), r"expects \['kernel'\]"),
        (lambda w: w.update(kernel=np.ones((H, 3 * H), "float64")), "got float64"),
        (lambda w: w.update(bias=w["bias"][::-1, :3].copy()), r"got .*\(2, 3\)"),
        (lambda w: w.update(more=np.ones(2, "float32")), r"no weights \['more'\]"),
    ],
)
def test_weights_that_are_not_the_configs(tmp_path, change, message):
    def changed(weights):
        change(weights)

    path = forged(tmp_path / "a", change_weights=changed)
    if message is None:
        assert fastgru.load(path).kernel.shape == (0, 3 * H)  # no features is a legal number
        return
    with pytest.raises(ValueError, match=message):
        fastgru.load(path)


@pytest.mark.parametrize("depth", [250, 200_000])  # 200,000 is too deep for Python itself
def test_json_nested_too_deeply(tmp_path, depth):
    text = (
        '{"format_version": 1, "fastgru_version": "", "layer": ' + "[" * depth + "]" * depth + "}"
    )
    (tmp_path / "a").write_bytes(safetensors_numpy.save({"kernel": np.ones(3)}, {"fastgru": text}))
    with pytest.raises(ValueError, match="metadata cannot be read: nested deeper"):
        fastgru.load(tmp_path / "a")


def test_a_config_that_is_too_long(tmp_path):
    cells = [fastgru.GRUCell(1) for _ in range(600)]
    layer = fastgru.RNN(cells)
    layer.build((None, None, I))
    with pytest.raises(ValueError, match="one by one"):
        fastgru.save(layer, tmp_path / "a")
    text = json.dumps({"format_version": 1, "layer": "x" * 600_000})
    (tmp_path / "a").write_bytes(safetensors_numpy.save({"kernel": np.ones(3)}, {"fastgru": text}))
    with pytest.raises(ValueError, match="at most"):
        fastgru.load(tmp_path / "a")


def test_layers_that_do_not_fit_each_other(tmp_path):
    def change(weights):
        weights["layers.2.kernel"] = np.ones((3, 18), "float32")

    with pytest.raises(ValueError, match="was built for I = 3 features"):
        fastgru.load(forged(tmp_path / "a", change_weights=change, layer="sequential"))


def test_other_files(tmp_path):
    (tmp_path / "torch").write_bytes(safetensors_numpy.save({"x": np.ones(3)}, {"format": "pt"}))
    with pytest.raises(ValueError, match=r"fastgru\.save.*from_torch"):
        fastgru.load(tmp_path / "torch")
    for name, data in {"empty": b"", "zip": b"PK\3\4" + bytes(40), "huge": b"\xff" * 64}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="safetensors"):
            fastgru.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        fastgru.load(tmp_path / "absent")


def test_without_the_package_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    for call in (
        lambda: fastgru.load("a"),
        lambda: fastgru.save(with_weights(fastgru.GRU(2)), "a"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'fastgru\[safetensors\]'"):
            call()


def by_hand(path, header, data=b""):
    """A file with any header, its length right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"kernel": tensor([2**40, 2**20], 0, 16)},
        {"kernel": tensor([2**62, 4], 0, 16)},
        {"kernel": tensor([4], 0, 2**60)},
        {"kernel": tensor([4], 2**63, 2**63 + 16)},
        {"kernel": tensor([4], 16, 0)},
        {"kernel": tensor([-4], 0, 16)},
        {"kernel": tensor([4], -16, 0)},
        {"kernel": tensor([2], 0, 8)},  # bytes that belong to nothing
        {"kernel": tensor([4], 0, 16), "bias": tensor([4], 0, 16)},  # to two
        {"kernel": tensor([2], 0, 8), "bias": tensor([1], 12, 16)},
        {"kernel": tensor([4], 0, 16, "F31")},
        {"kernel": tensor([4.0], 0, 16)},
        {"kernel": {"dtype": "F32"}},
        {"kernel": 1},
        {"__metadata__": {"fastgru": 1}, "kernel": tensor([4], 0, 16)},
        [1],
        b"{" * 100_000,
        b'{"kernel": ',
        b"\xff\xfe",
        b"",
    ],
)
def test_headers_that_lie(tmp_path, header):
    path = by_hand(tmp_path / "a", header, bytes(16))
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read_tensors(path)


def test_a_header_beyond_the_file_and_a_file_cut_anywhere(tmp_path):
    path = by_hand(tmp_path / "a", {"kernel": tensor([4], 0, 16)}, bytes(16))
    whole = path.read_bytes()
    assert list(read_tensors(path)[1]) == ["kernel"]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="safetensors"):
            read_tensors(path)
    path.write_bytes((2**40).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ValueError, match="at most 8388608 bytes"):
        read_tensors(path)


def test_tensors_that_are_not_aligned_are_copied(tmp_path):
    """No writer that pads its header makes them, but the format allows them."""
    path = by_hand(
        tmp_path / "a",
        {"a": tensor([1], 0, 1, "U8"), "kernel": tensor([2], 1, 9)},
        b"\0" + np.array([1.5, -2], "<f4").tobytes(),
    )
    for mmap in (True, False):
        stored = read_tensors(path, mmap=mmap)[1]
        assert list(stored) == ["kernel"]
        array = stored["kernel"].in_dtype("float32")
        assert array.flags.aligned
        np.testing.assert_array_equal(array, [1.5, -2])
