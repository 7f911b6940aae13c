"""Weights that are written together are seen together, by calls and by who reads or saves them."""

import contextvars
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastgru
from fastgru.backends import cpu as cpu_backend
from fastgru.layers.cell import GRUCell

pytestmark = pytest.mark.alone
RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 7, 3)).astype("float32")


def layers():
    options = {"bias_initializer": "random_normal", "return_sequences": True}
    yield fastgru.GRU(6, **options)
    yield fastgru.RNN([fastgru.GRUCell(6), fastgru.GRUCell(4)])
    yield fastgru.Sequential([fastgru.GRU(6, **options), fastgru.GRU(4)])
    yield fastgru.Bidirectional(fastgru.GRU(6, **options))


def sets_of(layer):
    layer.build((None, None, 3))
    first = layer.get_weights()
    return first, [1.5 * w + np.float32(0.1) for w in first]


@pytest.fixture
def short_turns():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns every few bytecodes
    yield
    sys.setswitchinterval(before)


def results(layer, stream):
    """One call of each way in which weights are read."""
    y = layer(X)
    masked = layer(X, lengths=[7, 0, 3, 7, 1])
    trained, _ = layer.forward(X)
    parts = [y, masked, trained]
    if stream is not None:
        stream.reset()
        parts.append(stream.step(X[:, 0]).copy())
    return [part.tobytes() for part in parts]


@pytest.mark.parametrize("layer", [*layers()], ids=lambda layer: layer.name)
def test_every_call_sees_all_old_or_all_new_weights(layer, short_turns, tmp_path):
    """While two threads write different sets, calls never mix them, nor does get_weights."""
    sets = sets_of(layer)
    streamed = not isinstance(layer, fastgru.Bidirectional)
    expected = []
    for weights in sets:
        layer.set_weights(weights)
        expected.append(results(layer, layer.stream(5) if streamed else None))
    kinds = [set(pair) for pair in zip(*expected, strict=True)]
    assert all(len(kind) == 2 for kind in kinds)
    together = [b"".join(w.tobytes() for w in weights) for weights in sets]
    done, wrong = threading.Event(), []

    def write(weights):
        while not done.is_set():
            layer.set_weights(weights)

    def call():
        stream = layer.stream(5) if streamed else None
        for _ in range(150):
            if not all(r in kind for r, kind in zip(results(layer, stream), kinds, strict=True)):
                wrong.append("call")
            if b"".join(w.tobytes() for w in layer.get_weights()) not in together:
                wrong.append("get_weights")

    writers = [threading.Thread(target=write, args=(weights,)) for weights in sets]
    callers = [threading.Thread(target=call) for _ in range(3)]
    for thread in writers + callers:
        thread.start()
    for thread in callers:
        thread.join()
    done.set()
    for thread in writers:
        thread.join()
    assert not wrong, set(wrong)


@pytest.mark.parametrize("layer", [*layers()][1:], ids=lambda layer: layer.name)
def test_a_write_between_two_cells_of_a_call_is_seen_by_both_or_by_none(layer, monkeypatch):
    old, new = sets_of(layer)
    layer.set_weights(new)
    after = layer(X)
    layer.set_weights(old)
    before = layer(X)
    snapshot, writers = GRUCell.snapshot, []

    def then_written(cell):
        weights = snapshot(cell)
        if not writers:  # another thread's turn, between the first cell and the second
            writers.append(threading.Thread(target=layer.set_weights, args=(new,)))
            writers[0].start()
            writers[0].join(0.2)  # or longer, where it waits for this call
        return weights

    with monkeypatch.context() as patch:
        patch.setattr(GRUCell, "snapshot", then_written)
        y = layer(X)
    assert writers
    assert (y == before).all() or (y == after).all()
    writers[0].join()
    np.testing.assert_array_equal(layer(X), after)


def test_what_is_being_written_is_saved_as_a_whole(short_turns, tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors")
    layer = [*layers()][2]
    sets = sets_of(layer)
    together = [b"".join(w.tobytes() for w in weights) for weights in sets]
    done = threading.Event()

    def write():
        while not done.is_set():
            for weights in sets:
                layer.set_weights(weights)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            fastgru.save(layer, tmp_path / "layer.safetensors")
            saved = fastgru.load(tmp_path / "layer.safetensors", mmap=False).get_weights()
            assert b"".join(w.tobytes() for w in saved) in together
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize("layer", [*layers()], ids=lambda layer: layer.name)
def test_who_swaps_weights_packs_them(layer):
    """A call after it finds them as quickly as the calls before it did."""
    old, new = sets_of(layer)
    cells = [w.owner for w in layer.weights]

    def packed():
        return [{name: id(copy) for name, copy in c.snapshot().packed.items()} for c in cells]

    layer.set_weights(old)
    assert not any(packed())  # no call has been there: another write may come first
    layer(X)
    used = packed()
    layer.set_weights(new)
    made = packed()
    assert [kinds.keys() for kinds in made] == [kinds.keys() for kinds in used]
    assert made != used or not any(used)  # the reference packs nothing
    y = layer(X)
    assert packed() == made
    other = type(layer).from_config(layer.get_config())
    other.build((None, None, 3))
    other.set_weights(new)
    np.testing.assert_array_equal(y, other(X))
    cells[0].kernel.assign(new[0])  # one weight of several: the next call packs
    assert not cells[0].snapshot().packed


def test_first_calls_of_many_threads_pack_once(monkeypatch):
    layer = fastgru.GRU(6, return_sequences=True)
    layer.build((None, None, 3))
    if cpu_backend._load() is None:
        pytest.skip("the extension is not built")
    made = []
    pack = cpu_backend._pack

    def slow(*arguments):
        packed = pack(*arguments)
        made.append(packed)
        time.sleep(0.05)
        return packed

    monkeypatch.setattr(cpu_backend, "_pack", slow)
    with fastgru.use_backend("cpu"), ThreadPoolExecutor(8) as pool:
        context = contextvars.copy_context
        calls = [pool.submit(context().run, layer, X) for _ in range(8)]
        results = [call.result() for call in calls]
    assert len(made) == 1
    for y in results:
        np.testing.assert_array_equal(y, results[0])
