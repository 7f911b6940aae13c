"""Streams of many rows: what they compute, what they cost, and what of them is saved."""

import copy
import pickle
import sys

import numpy as np
import pytest
import subprocesses

import fastgru
from fastgru.backends import cpu as cpu_backend

RNG = np.random.default_rng(0)
FUSED = cpu_backend.build_info().get("kernel") == "fused"


def gru(units=19, **options):
    options = {"bias_initializer": "random_normal", "return_sequences": True, **options}
    return fastgru.GRU(units, **options)


def layers():
    yield gru()
    yield gru(8, reset_after=False, dtype="float64")
    yield gru(8, activation="softmax")
    yield fastgru.RNN([fastgru.GRUCell(19), fastgru.GRUCell(6)], return_sequences=True)
    yield fastgru.Sequential([gru(), gru(6)])


def states(stream):
    return stream.state if isinstance(stream.state, list) else [stream.state]


def random_states(stream):
    drawn = [RNG.standard_normal(s.shape).astype(s.dtype) for s in states(stream)]
    stream.state = drawn if len(drawn) > 1 else drawn[0]
    return drawn


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("layer", [*layers()], ids=lambda layer: f"{layer.name}-{layer.dtype}")
def test_more_rows_than_are_stepped_at_a_time(layer, threads):
    n, more = 2500, 2507
    layer.build((None, None, 3))
    whole, some, few = layer.stream(n), layer.stream(more), layer.stream(40)
    order, chosen = RNG.permutation(more)[:n], RNG.permutation(n)[:40]
    others = np.setdiff1d(np.arange(more), order)
    start = random_states(some)
    first = [s[order] for s in start]
    whole.state = first if len(first) > 1 else first[0]
    first = [s[chosen] for s in first]
    few.state = first if len(first) > 1 else first[0]
    with fastgru.num_threads(threads):
        for _ in range(3):
            x = RNG.standard_normal((n, 3)).astype(layer.dtype)
            y = whole.step(x)
            np.testing.assert_array_equal(some.step(x, rows=order), y)
            alone = few.step(x[chosen])
            np.testing.assert_allclose(alone, y[chosen], rtol=0, atol=1e-6)
            if FUSED and layer.explain(x[:, None]).backend == "cpu":
                np.testing.assert_array_equal(alone, y[chosen])
    for one, other, before in zip(states(whole), states(some), start, strict=True):
        np.testing.assert_array_equal(other[order], one)
        np.testing.assert_array_equal(other[others], before[others])


@pytest.mark.parametrize("layer", [*layers()], ids=lambda layer: f"{layer.name}-{layer.dtype}")
def test_a_saved_state_continues_bit_for_bit(layer, tmp_path):
    layer.build((None, None, 3))
    stream = layer.stream(9)
    random_states(stream)
    x = RNG.standard_normal((5, 9, 3)).astype(layer.dtype)
    stream.step(x[0])
    np.savez(tmp_path / "state.npz", *states(stream))
    twins = [pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream), layer.stream(9)]
    with np.load(tmp_path / "state.npz") as saved:
        kept = [*saved.values()]
    twins[2].state = kept if len(kept) > 1 else kept[0]
    for t in range(1, 5):
        y = stream.step(x[t]).copy()
        for twin in twins:
            np.testing.assert_array_equal(twin.step(x[t]), y)
    for twin in twins:
        twin.reset([4])
    assert all(s[4].any() for s in states(stream)), "a twin's state is its own"


def test_a_stream_that_was_pickled_with_its_layer_shares_its_weights():
    layer = gru(4)
    layer.build((None, None, 3))
    layer, stream, alone = *pickle.loads(pickle.dumps((layer, layer.stream()))), layer.stream()
    alone = pickle.loads(pickle.dumps(alone))
    layer.set_weights([w * 0 for w in layer.get_weights()])
    x = np.ones((1, 3), "float32")
    assert not stream.step(x).any()
    assert alone.step(x).any()


MEMORY = """
    import numpy as np
    import fastgru

    def status(name):
        lines = open("/proc/self/status").read().splitlines()
        return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) * 1024

    layer = LAYER
    layer.build((None, None, 8))
    layer.stream(4000).step(np.ones((4000, 8), np.float32))  # imports, packs, takes its scratch
    x = np.ones((1_000_000, 8), np.float32)
    rows = np.arange(1_000_000)[::-1].copy()
    before = status("VmRSS")
    stream = layer.stream(1_000_000)
    stream.step(x)
    stream.step(x[:10], rows=rows[:10])
    stream.step(x, rows=rows)
    print(status("VmHWM") - before)
"""


@pytest.mark.alone
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.skipif(not FUSED, reason="no native step")
@pytest.mark.parametrize(
    ("layer", "units"),
    [
        ("fastgru.GRU(32)", 32),
        ("fastgru.GRU(32, reset_after=False)", 32),
        ("fastgru.RNN([fastgru.GRUCell(16), fastgru.GRUCell(8)])", 24),
    ],
)
def test_a_million_rows_cost_state_outputs_and_a_byte_each(layer, units):
    # 4 MB for what the allocator and the interpreter take meanwhile; the products of x, were they
    # made for all rows at once, would take 384 MB for 32 units.
    added = int(subprocesses.run_python(MEMORY.replace("LAYER", layer), OMP_NUM_THREADS="2"))
    rows = 1_000_000
    assert rows * (2 * 4 * units) <= added <= rows * (2 * 4 * units + 1) + 4e6
