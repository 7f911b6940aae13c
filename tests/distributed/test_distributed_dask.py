"""`fastgru.distributed.dask` on Dask itself: in this process, and on a cluster of two processes.

The bits are those of one call on the whole batch; test_fused.py says why they can be.
"""

import os
import signal

import docs_support
import fake_cupy
import numpy as np
import pytest
from cuda_emulator import COMPILER

import fastgru
from fastgru import dispatch
from fastgru.layers.nested import flatten

reason = "pip install 'fastgru[dask]'"
dask = pytest.importorskip("dask", reason=reason)
da = pytest.importorskip("dask.array", reason=reason)
distributed = pytest.importorskip("distributed", reason=reason)

# Tests that need no cluster compute here while the module's cluster runs.
pytestmark = pytest.mark.filterwarnings("ignore:Running on a single-machine scheduler")

apply = fastgru.distributed.dask.apply

B, T, I, H = 23, 9, 5, 6
CHUNKS = (7, 1, 10, 5)


def drawn(layer, inputs=I):
    """Build a layer with weights of which none is zero."""
    rng = np.random.default_rng(5)
    layer.build((None, None, inputs))
    layer.set_weights([rng.normal(size=w.shape).astype(w.dtype) / 2 for w in layer.weights])
    return layer


def stacked(**how):
    return fastgru.RNN([fastgru.GRUCell(H), fastgru.GRUCell(4)], **how)


LAYERS = {
    "last": lambda: fastgru.GRU(H),
    "sequences": lambda: fastgru.GRU(H, return_sequences=True, reset_after=False),
    "states": lambda: fastgru.GRU(H, return_sequences=True, return_state=True),
    "float64": lambda: fastgru.GRU(H, return_state=True, go_backwards=True, dtype="float64"),
    "stacked": lambda: stacked(return_sequences=True, return_state=True),
    "concat": lambda: fastgru.Bidirectional(fastgru.GRU(H, return_sequences=True)),
    "two": lambda: fastgru.Bidirectional(fastgru.GRU(H), merge_mode=None),
    "two, states": lambda: fastgru.Bidirectional(
        fastgru.GRU(H, return_state=True, return_sequences=True), merge_mode=None
    ),
    "sequential": lambda: fastgru.Sequential(
        [fastgru.GRU(3, return_sequences=True), fastgru.GRU(H, return_state=True)]
    ),
}


def ragged(layer):
    """Sequences, and arguments in the layer's nesting: two lengths are 0 and one row is reset."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(B, T, I)).astype(layer.dtype)
    lengths = rng.integers(0, T + 1, size=B)
    lengths[[3, 8]] = 0
    states = layer.get_initial_state(B)

    def draw(zeros):
        if isinstance(zeros, list):
            return [draw(part) for part in zeros]
        return rng.normal(size=zeros.shape).astype(zeros.dtype)

    steps = np.arange(T)
    mask = (steps < lengths[:, None]) & (rng.random((B, T)) < 0.8)
    resets = rng.random((B, T)) < 0.1
    return x, {
        "plain": {},
        "lengths": {"lengths": lengths, "initial_state": draw(states)},
        "mask": {"mask": mask, "reset_mask": resets},
    }


def in_dask(value):
    """Arrays as Dask arrays with chunks of their own, along T too."""
    if isinstance(value, list):
        return [in_dask(part) for part in value]
    return da.from_array(value, chunks=4)


def assert_same_bits(got, expected):
    """Compare what two calls returned, the nesting and types of arrays included."""
    assert type(got) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same_bits(one, other)
    else:
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def client():
    """Two processes with one thread each, watched by nannies."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("arguments", ["plain", "lengths", "mask"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_result_is_that_of_one_call(client, kind, arguments):
    layer = drawn(LAYERS[kind]())
    x, calls = ragged(layer)
    expected = layer(x, **calls[arguments])
    cut = da.from_array(x, chunks=(CHUNKS, T, I))
    as_dask = {name: in_dask(value) for name, value in calls[arguments].items()}
    for given in (calls[arguments], as_dask):
        lazy = apply(layer, cut, **given)
        for array, result in zip(flatten(lazy), flatten(expected), strict=True):
            assert array.chunks[0] == CHUNKS
            assert (array.shape, array.dtype) == (result.shape, result.dtype)
            assert type(array._meta) is np.ndarray
            assert array._meta.dtype == result.dtype
        (got,) = dask.compute(lazy)
        assert_same_bits(got, expected)


def test_both_processes_work(client):
    layer = drawn(fastgru.GRU(H))
    x = da.random.normal(size=(40, T, I), chunks=(2, T, I)).astype("float32")
    y = client.persist(apply(layer, x))
    distributed.wait(y)
    held = [sum("getitem" in str(key) for key in keys) for keys in client.has_what().values()]
    assert min(held) > 0
    assert sum(held) == 20


class CountedCell:
    """A cell that notes in a file which process has unpickled it."""

    state_size = output_size = 3

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        self.__dict__.update(state)
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, inputs, states, training=False):
        state = np.tanh(inputs[:, :3] + states[0])
        return state, [state]


def test_the_layer_travels_once_to_each_worker(client, tmp_path):
    path = tmp_path / "unpickled"
    layer = fastgru.RNN(CountedCell(str(path)))
    x = np.random.default_rng(3).normal(size=(B, T, I)).astype("float32")
    lazy = apply(layer, da.from_array(x, chunks=(1, T, I)))
    expected = layer(x)
    path.write_text("")
    assert_same_bits(lazy.compute(), expected)
    pids = path.read_text().split()
    workers = {str(pid) for pid in client.run(os.getpid).values()}
    assert {pid: pids.count(pid) for pid in workers} == dict.fromkeys(workers, 1)


def killed_once(block, marker, block_info=None):
    """Kill this process where block 2 is computed for the first time."""
    if block_info[0]["chunk-location"][0] == 2:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)
    return block


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX")
def test_a_killed_worker_changes_nothing(client, tmp_path):
    layer = drawn(LAYERS["states"]())
    x, calls = ragged(layer)
    before = set(client.run(os.getpid).values())
    marker = tmp_path / "killed"
    cut = da.from_array(x, chunks=(3, T, I))
    # Its shape comes from its own task, after that of the layer's copy and of other blocks.
    cut = cut.map_blocks(killed_once, str(marker), dtype=x.dtype, meta=x[:0])
    lazy = apply(layer, cut, **calls["lengths"])
    (got,) = dask.compute(lazy)
    assert marker.exists(), "nobody was killed"
    client.wait_for_workers(2, timeout=60)
    assert set(client.run(os.getpid).values()) != before
    assert_same_bits(got, layer(x, **calls["lengths"]))


def test_the_documentation(client, tmp_path):
    docs_support.run("distributed.md", "Dask", tmp_path)


# ---- what is settled before anything runs --------------------------------------------------------


@pytest.fixture
def here():
    """Compute in this thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


def unreadable(x):
    """A Dask array of x's shape, dtype and chunks whose blocks cannot be had."""
    if isinstance(x, list):
        return [unreadable(part) for part in x]

    def fail(block):
        raise AssertionError("a block was computed")

    return x.map_blocks(fail, dtype=x.dtype, meta=x._meta)


def test_nothing_is_computed_early():
    layer = drawn(LAYERS["states"]())
    x, calls = ragged(layer)
    lost = {name: unreadable(in_dask(value)) for name, value in calls["lengths"].items()}
    y, _ = apply(layer, unreadable(da.from_array(x, chunks=(CHUNKS, T, I))), **lost)
    assert y.shape == (B, T, H)
    with pytest.raises(AssertionError, match="a block was computed"):
        y.compute(scheduler="synchronous")


def test_later_weights_do_not_get_into_the_graph(here):
    layer = drawn(fastgru.GRU(H))
    x, _ = ragged(layer)
    cut = da.from_array(x, chunks=(5, T, I))
    expected = layer(x)
    before, same = apply(layer, cut), apply(layer, cut)
    assert before.name == same.name
    layer.set_weights([w / 2 for w in layer.weights])
    after = apply(layer, cut)
    assert after.name != before.name
    assert_same_bits(before.compute(), expected)
    assert_same_bits(after.compute(), layer(x))


def test_a_new_layer_gets_its_weights_here(here):
    layer = fastgru.GRU(H)
    x, _ = ragged(layer)
    lazy = apply(layer, da.from_array(x, chunks=(5, T, I)))
    assert [w.shape for w in layer.weights] == [(I, 3 * H), (H, 3 * H), (2, 3 * H)]
    assert_same_bits(lazy.compute(), layer(x))


def test_the_users_layer_keeps_its_losses(here):
    layer = drawn(fastgru.GRU(H, activity_regularizer="l2"))
    x, _ = ragged(layer)
    layer(x)
    losses = layer.losses
    apply(layer, da.from_array(x[:9], chunks=(5, T, I))).compute()
    assert losses[0] > 0
    assert layer.losses == losses


def test_a_task_has_one_thread(here, monkeypatch):
    asked = []

    def choose(problem):
        asked.append((problem.x.shape[0], problem.num_threads))
        return chosen(problem)

    chosen = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", choose)
    x, _ = ragged(drawn(fastgru.GRU(H)))
    apply(drawn(fastgru.GRU(H)), da.from_array(x, chunks=(CHUNKS, T, I))).compute()
    assert [threads for _, threads in asked] == [1] * len(asked)
    assert sorted(rows for rows, _ in asked if rows) == sorted(CHUNKS)


def test_chunks_of_unknown_size(here):
    layer = drawn(LAYERS["states"]())
    x, _ = ragged(layer)
    cut = da.from_array(x, chunks=(5, T, I))
    some = x[:, 0, 0] > 0
    chosen = cut[da.from_array(some, chunks=5)]
    mask = chosen[:, :, 1] > -0.5
    got = dask.compute(apply(layer, chosen, mask=mask))[0]
    assert_same_bits(got, layer(x[some], mask=x[some][:, :, 1] > -0.5))
    with pytest.raises(
        ValueError, match=r"mask: expected a Dask array in 5 blocks.*compute_chunk_sizes"
    ):
        apply(layer, chosen, mask=x[some][:, :, 1] > -0.5)
    with pytest.raises(ValueError, match="mask: expected a Dask array in 5 blocks"):
        apply(layer, chosen, mask=da.from_array(x[:, :, 1] > -0.5, chunks=9))


@pytest.mark.parametrize("chunks", [(1, 0), (0, 1), (0, 1, 0), (0, 0, 1), (1,)], ids=str)
def test_one_row_with_empty_blocks_beside_it(here, chunks):
    """Dask broadcasts an axis of length 1: its own functions give a row for each block here."""
    layer = drawn(fastgru.GRU(H, return_sequences=True, return_state=True))
    x = np.random.default_rng(3).normal(size=(1, T, I)).astype("float32")
    blocks = da.from_array(x, chunks=(chunks, T, I))
    mask, h0 = np.arange(T)[None] % 3 != 1, np.full((1, H), 0.5, "float32")
    for given in (
        {},
        {"mask": mask, "initial_state": h0},
        {"mask": da.from_array(mask, chunks=(chunks, T)), "reset_mask": ~mask},
        {"initial_state": da.from_array(h0, chunks=(chunks[::-1], H)), "lengths": [T - 2]},
    ):
        plain = {k: v.rechunk(-1).compute() if hasattr(v, "dask") else v for k, v in given.items()}
        lazy = apply(layer, blocks, **given)
        for one, got, want in zip(lazy, dask.compute(*lazy), layer(x, **plain), strict=True):
            assert one.shape == got.shape == want.shape
            np.testing.assert_array_equal(got, want)
    many = np.concatenate([x, x * 2])
    y, _ = dask.compute(*apply(layer, da.from_array(many, chunks=((0, 1, 0, 1, 0), T, I))))
    np.testing.assert_array_equal(y, layer(many)[0])


def test_no_rows_and_no_steps(here):
    layer = drawn(LAYERS["states"]())
    for shape in ((0, T, I), (4, 0, I)):
        x = np.zeros(shape, "float32")
        h0 = np.ones((shape[0], H), "float32")
        lazy = apply(layer, da.from_array(x, chunks=(2, -1, -1)), h0)
        assert_same_bits(dask.compute(lazy)[0], layer(x, h0))


X = da.zeros((B, T, I), chunks=(CHUNKS, T, I), dtype="float32")
WRONG = {
    "numpy": (TypeError, "x: expected a Dask array, got ndarray", np.zeros((2, T, I)), {}),
    "two axes": (ValueError, r"x: expected \(B, T, I\)", X[0], {}),
    "time": (ValueError, r"rechunk\({1: -1, 2: -1}\)", X.rechunk({1: 4}), {}),
    "features": (ValueError, r"rechunk\({1: -1, 2: -1}\)", X.rechunk({2: 4}), {}),
    "unknown": (ValueError, r"rechunk\({1: -1, 2: -1}\)", X[:, da.ones(T, chunks=T) > 0], {}),
    "I": (ValueError, "expected I = 5 features", X[:, :, :4], {}),
    "complex": (TypeError, "expected real numbers", X.astype("complex64"), {}),
    "training": (ValueError, "training: expected False", X, {"training": True}),
    "rows": (ValueError, "lengths: expected B = 23", X, {"lengths": np.ones(B - 1, int)}),
    "one row": (ValueError, "mask: expected B = 23", X, {"mask": da.ones((1, T), dtype=bool)}),
    "steps": (ValueError, r"mask: expected shape", X, {"mask": np.ones((B, T + 1), bool)}),
    "both": (
        ValueError,
        "lengths",
        X,
        {"mask": np.ones((B, T), bool), "lengths": np.ones(B, int)},
    ),
    "units": (ValueError, "initial_state", X, {"initial_state": np.ones((B, H + 1), "float32")}),
    "numbers": (TypeError, "initial_state: expected arrays", X, {"initial_state": [[0.5] * H] * B}),
    "states": (ValueError, r"initial_state", X, {"initial_state": [da.ones((B, H))] * 2}),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case):
    error, message, x, given = WRONG[case]
    layer = fastgru.GRU(H)
    if case == "I":
        drawn(layer)
    with pytest.raises(error, match=message):
        apply(layer, x, **given)
    assert layer.built == (case == "I"), "weights were drawn for a call that raised"


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (fastgru.GRU(H, stateful=True), ValueError, "expected stateful=False"),
        (fastgru.Sequential([stacked(stateful=True)]), ValueError, "expected stateful=False"),
        (
            fastgru.Bidirectional(fastgru.GRU(H, stateful=True)),
            ValueError,
            "expected stateful=False",
        ),
        (fastgru.GRU(H, time_major=True), ValueError, "expected time_major=False"),
        (fastgru.GRUCell(H), TypeError, "expected GRU, RNN, Bidirectional or Sequential"),
    ],
)
def test_layers_that_cannot_be_cut(layer, error, message):
    with pytest.raises(error, match=message):
        apply(layer, X)


def test_a_length_too_long_is_the_tasks_error(here):
    lengths = np.full(B, T)
    lengths[-1] += 1
    lazy = apply(drawn(fastgru.GRU(H)), X, lengths=lengths)
    with pytest.raises(ValueError, match="lengths"):
        lazy.compute()


# ---- blocks on a device --------------------------------------------------------------------------


@pytest.mark.skipif(not COMPILER, reason="the emulated device needs g++")
def test_blocks_of_cupy_stay_on_the_device(here, monkeypatch):
    fake_cupy.install(monkeypatch.setattr, monkeypatch.setitem)
    layer = drawn(LAYERS["states"]())
    x, calls = ragged(layer)
    cut = da.from_array(x, chunks=(CHUNKS, T, I))
    cut = cut.map_blocks(fake_cupy.wrapped, dtype=x.dtype, meta=fake_cupy.ndarray(x[:0]))
    h0 = da.from_array(calls["lengths"]["initial_state"][0], chunks=(CHUNKS, H))
    h0 = h0.map_blocks(fake_cupy.wrapped, dtype=x.dtype, meta=fake_cupy.ndarray(x[:0, 0]))
    lengths = calls["lengths"]["lengths"].tolist()
    y, state = apply(layer, cut, h0, lengths=lengths)
    for lazy in (y, state):
        assert type(lazy._meta) is fake_cupy.ndarray
    blocks = [block.compute() for block in y.blocks]
    assert {type(block) for block in blocks} == {fake_cupy.ndarray}
    expected, _ = layer(x, **calls["lengths"])
    got = np.concatenate([block.get() for block in blocks])
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6)
    with pytest.raises(TypeError, match="initial_state: expected an array on a CUDA device"):
        apply(layer, cut, calls["lengths"]["initial_state"])
