"""How calls are divided among threads: what the model says on any machine, and that it is told."""

import numpy as np
import pytest
from random_problems import make_spec

import fastgru
from fastgru.backends import cpu as cpu_backend

kernels = pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")
partition = pytest.importorskip("fastgru._native._partition", reason="the extension is not built")
pytestmark = pytest.mark.skipif(
    not kernels.OPENMP or not kernels.lanes(4),
    reason="one thread, or no fused kernel in this build",
)

SHAPES = [
    (batch, steps, inputs, units)
    for batch in (1, 2, 7, 64)
    for steps in (0, 1, 30)
    for inputs in (8, 300)
    for units in (16, 130, 700)
]


def plan(shape, threads=2, has_state=False, dtype="float32", **keywords):
    batch, steps, inputs, units = shape
    lanes = kernels.lanes(np.dtype(dtype).itemsize)
    spec = make_spec(inputs, units, dtype, **keywords)
    return partition.plan(spec, lanes, (batch, steps), has_state, threads)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_the_least_time_is_chosen(threads, dtype):
    for shape in SHAPES:
        team, shared, alone, split, together = plan(shape, threads, dtype=dtype)
        assert 1 <= team <= threads
        if team > 1:
            assert (together if shared else split) < alone
            assert shared or 0 < split <= together * 1.2 or together == 0
        if shape[0] == 1:
            assert split == 0


def test_small_calls_stay_on_one_thread():
    assert plan((1, 1, 8, 16))[0] == 1
    assert plan((1, 0, 700, 700))[0] == 1


def test_large_calls_do_not():
    rows, one_row = plan((512, 50, 32, 64)), plan((1, 50, 1024, 1024))
    assert rows[:2] == (2, False)
    assert one_row[:2] == (2, True)


def test_a_first_step_from_zeros_multiplies_no_u():
    from_zeros, from_state = (plan((16, 1, 300, 700), has_state=s)[2] for s in (False, True))
    assert 0 < from_zeros < from_state / 2


def test_reset_before_meets_twice_a_step():
    after, before = (plan((1, 100, 8, 200), reset_after=r)[4] for r in (True, False))
    assert 0 < after < before


def test_costs_are_believable():
    plan((64, 30, 300, 700))
    costs = partition.costs()
    assert 5e3 <= costs["rate"] <= 1e6
    assert 0.5 <= costs["region"] <= 100
    assert 0.1 <= costs["meeting"] <= 5


def explained(x, **keywords):
    (line,) = (d for d in fastgru.GRU(1024).explain(x, **keywords).details if "cpu kernel" in d)
    return line


def test_explain_says_how_the_call_is_divided(monkeypatch):
    x = np.zeros((1, 60, 300), "float32")
    with fastgru.num_threads(2):
        monkeypatch.setattr(cpu_backend, "_forced_kernel", None)
        line = explained(x)
        assert f"fused {kernels.get_isa()}, 2 threads, hidden split (model: one thread" in line
        assert "batch split" not in line
        assert "batch split" in explained(np.zeros((4, 60, 300), "float32"))
        assert "too little work" in explained(np.zeros((1, 1, 3), "float32"))
        monkeypatch.setattr(cpu_backend, "_forced_kernel", "blas")
        assert "blas" in explained(x)
        assert "FASTGRU_KERNEL" in explained(x)
        monkeypatch.setattr(cpu_backend, "_forced_kernel", None)
        with fastgru.use_backend("reference"):
            assert "cpu kernel" not in str(fastgru.GRU(1024).explain(x))
    with fastgru.num_threads(1):
        assert "1 thread (no more may be used)" in explained(x)
