"""examples/train_on_dask.py: gradients of shards add up to those of one call, on any workers."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import subprocesses

reason = "pip install 'fastgru[dask]'"
dask = pytest.importorskip("dask", reason=reason)
distributed = pytest.importorskip("distributed", reason=reason)

SCRIPT = Path(__file__).parents[2] / "examples" / "train_on_dask.py"
SHARDS = (7, 1, 12, 5, 3)  # rows of each; an odd number, so that one has no partner


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_on_dask", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(example, dtype):
    teacher = example.new_layer(7, dtype)
    return [example.draw_shard(i, rows, teacher) for i, rows in enumerate(SHARDS)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sum_over_shards_is_the_gradient_of_one_call(example, dtype):
    """Up to the order of sums: each entry adds B T terms, each rounded by eps of a partial sum."""
    shards, layer = drawn(example, dtype), example.new_layer(70, dtype)
    with dask.config.set(scheduler="synchronous"):
        summed = example.total(layer, shards)
    whole = tuple(np.concatenate(parts) for parts in zip(*shards, strict=True))
    one = example.loss_and_gradients(layer, whole)
    terms = whole[0].shape[0] * whole[0].shape[1]
    assert len(one) == 4
    for got, expected in zip(summed, one, strict=True):
        assert got.dtype == dtype
        assert np.abs(expected).max() > 0
        atol = terms * np.finfo(dtype).eps * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def test_workers_do_not_change_the_weights(example):
    shards = drawn(example, "float32")
    rows = sum(SHARDS)
    here, there = example.new_layer(70), example.new_layer(70)
    with dask.config.set(scheduler="synchronous"):
        losses = example.train(here, shards, rows, 5, 1.0)
    assert losses[-1] < 0.8 * losses[0]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        scattered = dask.persist(*map(dask.delayed, shards))
        assert example.train(there, scattered, rows, 5, 1.0) == losses
    first = example.new_layer(70)
    for a, b, c in zip(here.weights, there.weights, first.weights, strict=True):
        assert a.value.tobytes() == b.value.tobytes()
        assert (a.value != c.value).any()


def test_as_a_script():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--steps", "20", "--shards", "3", "--rows", "40"],
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.splitlines()
    losses = [float(re.match(r"step +\d+: loss ([\d.]+)", line)[1]) for line in [*before, last]]
    assert losses[-1] < 0.5 * losses[0]
    assert last.endswith(", 120 rows on 2 workers")
