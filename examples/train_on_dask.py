"""Train a GRU on several processes with Dask: each computes the gradients of its rows.

A layer learns the outputs of another layer, on sequences of different lengths. In every step the
worker that has a shard computes its gradients. They are added in pairs, and this process changes
the weights. Shards and pairs, and so the weights, are the same bits for any number of workers.

    pip install 'fastgru[dask]'
    python examples/train_on_dask.py --workers 2
"""

from __future__ import annotations

import argparse

import dask
import numpy as np

import fastgru

TIMESTEPS, INPUTS, UNITS = 12, 5, 8


def draw_shard(number, rows, teacher):
    """Return sequences, lengths and targets of a shard; a real program would read a file here."""
    rng = np.random.default_rng(number)
    x = rng.normal(size=(rows, TIMESTEPS, INPUTS)).astype(teacher.dtype)
    lengths = rng.integers(0, TIMESTEPS + 1, size=rows)
    return x, lengths, teacher(x, lengths=lengths, num_threads=1)


def loss_and_gradients(layer, shard):
    """Return half the sum of squared errors of a shard's rows, and its gradients."""
    x, lengths, target = shard
    with fastgru.num_threads(1):
        y, tape = layer.forward(x, lengths=lengths)
        error = y - target
        return [np.square(error).sum() / 2, *layer.backward(tape, error).weights]


def add(one, other):
    """Add losses and gradients of two shards or groups of shards."""
    return [a + b for a, b in zip(one, other, strict=True)]


def total(layer, shards):
    """Return loss and gradients of all shards; Dask sends the layer to each worker once."""
    layer = dask.delayed(layer)
    parts = [dask.delayed(loss_and_gradients)(layer, shard) for shard in shards]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        odd = parts[len(parts) // 2 * 2 :]
        parts = [dask.delayed(add)(one, other) for one, other in pairs] + odd
    return parts[0].compute()


def train(layer, shards, rows, steps, rate):
    """Descend along the mean gradient of all ``rows``; return the mean loss before each step."""
    losses = []
    for _ in range(steps):
        loss, *gradients = total(layer, shards)
        losses.append(float(loss) / rows)
        for weight, gradient in zip(layer.trainable_weights, gradients, strict=True):
            weight.assign_sub(gradient * (rate / rows))
    return losses


def new_layer(seed, dtype="float32"):
    """Return a built layer; the same seed gives the same weights."""
    layer = fastgru.GRU(
        UNITS,
        kernel_initializer=fastgru.initializers.GlorotUniform(seed=seed),
        recurrent_initializer=fastgru.initializers.Orthogonal(seed=seed + 1),
        bias_initializer=fastgru.initializers.RandomUniform(seed=seed + 2),
        dtype=dtype,
    )
    layer.build((None, TIMESTEPS, INPUTS))
    return layer


def main():
    """Train on a cluster on this machine; for others, connect `Client` to their scheduler."""
    from distributed import Client, LocalCluster

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--rows", type=int, default=100, help="of each shard")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1.0)
    options = parser.parse_args()

    cluster = LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=":0")
    with cluster, Client(cluster):
        draw = dask.delayed(draw_shard)
        teacher = dask.delayed(new_layer(7))
        shards = dask.persist(*[draw(i, options.rows, teacher) for i in range(options.shards)])
        layer = new_layer(70)
        rows = options.shards * options.rows
        losses = train(layer, shards, rows, options.steps, options.rate)
    for step in range(0, options.steps, max(1, options.steps // 5)):
        print(f"step {step:4}: loss {losses[step]:.6f}")
    end = f"{rows} rows on {options.workers} workers"
    print(f"step {options.steps - 1:4}: loss {losses[-1]:.6f}, {end}")


if __name__ == "__main__":
    main()
