"""Dropout: SPEC section 5, line 7, the cell's mask members, and those of TF 2.x on the GRU."""

import itertools

import numpy as np
import pytest
from grad_support import B, H, I, draws, gru, near, oracle, sequences, served_by, state

import fastgru

DTYPES = ("float32", "float64")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Serve every call of the test by one backend."""
    with served_by(request.param):
        yield request.param


# -- 7: dropout --------------------------------------------------------------------------------


def masks_of(seed, *, implementation=2, dtype="float64", calls=1, **rates):
    """Return the dropout masks that a fresh layer's n-th training call uses."""
    cell = fastgru.GRUCell(H, seed=seed, implementation=implementation, dtype=dtype, **rates)
    for _ in range(calls):
        cell.reset_dropout_mask()
        cell.reset_recurrent_dropout_mask()
        drop = cell.get_dropout_mask(np.zeros((B, I), dtype))
        recurrent = cell.get_recurrent_dropout_mask(np.zeros((B, H), dtype))
    return drop, recurrent


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize(
    ("implementation", "dropout", "recurrent"),
    [(2, 0.4, 0), (1, 0.4, 0), (2, 0, 0.3), (1, 0.4, 0.3)],
)
def test_5_07_one_mask_per_call_held_over_all_steps(
    backend, implementation, dropout, recurrent, reset_after
):
    rates = {"dropout": dropout, "recurrent_dropout": recurrent}
    layer = gru(
        return_sequences=True,
        return_state=True,
        reset_after=reset_after,
        implementation=implementation,
        **rates,
    )
    layer.cell.seed_generator = fastgru.GRUCell(1, seed=77).seed_generator
    for call in (1, 2):
        drop, rec = masks_of(77, implementation=implementation, calls=call, **rates)
        if dropout:
            assert np.shape(drop) == ((3, B, I) if implementation == 1 or recurrent else (B, I))
            per_gate = drop if isinstance(drop, list) else [drop] * 3
        y, final = layer(sequences(), state(), training=True)
        expected, expected_state = oracle(
            sequences(),
            layer.get_weights(),
            state(),
            reset_after=reset_after,
            drop=per_gate if dropout else None,
            recurrent_drop=rec,
        )
        near(y, expected)
        near(final, expected_state)


def test_5_07_inverted_scaling():
    layer = fastgru.GRUCell(2000, dropout=0.25, recurrent_dropout=0.6, seed=5)
    drop = np.stack(layer.get_dropout_mask(np.zeros((3, 4000), "float32")))
    recurrent = np.stack(layer.get_recurrent_dropout_mask(np.zeros((3, 2000), "float32")))
    for mask, rate in ((drop, 0.25), (recurrent, 0.6)):
        kept = np.float32(1.0 / (1.0 - rate))
        assert set(np.unique(mask)) == {np.float32(0), kept}
        # Binomial: five standard deviations of the kept share.
        assert abs((mask > 0).mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
        assert mask.dtype == np.float32


def test_5_07_recurrent_dropout_forces_implementation_1():
    assert fastgru.GRU(3, implementation=2).implementation == 2
    assert fastgru.GRU(3, implementation=2, recurrent_dropout=0.1).implementation == 1
    drop, recurrent = masks_of(1, implementation=2, dropout=0.5, recurrent_dropout=0.5)
    assert len(drop) == len(recurrent) == 3
    assert any((drop[0] != drop[g]).any() for g in (1, 2))


def test_5_07_the_draw_depends_on_seed_and_call_count_alone(backend):
    rates = {"dropout": 0.5, "recurrent_dropout": 0.5}
    outputs = {}
    for dtype, threads in itertools.product(DTYPES, (1, 2)):
        layer = gru(dtype=dtype, return_sequences=True, **rates)
        layer.cell.seed_generator = fastgru.GRUCell(1, seed=11).seed_generator
        outputs[dtype, threads] = [
            layer(sequences(dtype), training=True, num_threads=threads) for _ in range(2)
        ]
    first, second = outputs["float64", 1]
    assert (first != second).any()
    expected = [
        oracle(sequences(), layer.get_weights(), drop=drop, recurrent_drop=rec)[0]
        for drop, rec in (masks_of(11, calls=n, **rates) for n in (1, 2))
    ]
    for (dtype, _), pair in outputs.items():
        for got, want in zip(pair, expected, strict=True):
            near(got, want, dtype)


def test_5_07_only_training_draws(backend):
    layer = gru(dropout=0.5, recurrent_dropout=0.5, seed=3)
    plain = gru()
    for training in (False, None, 0):
        near(layer(sequences(), state(), training=training), plain(sequences(), state()))
    assert draws(layer) == [[0, 0]]
    assert (layer(sequences(), state(), training=True) != plain(sequences(), state())).any()
    assert draws(layer) == [[1, 1]]
