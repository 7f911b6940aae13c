"""Dropout: docs/semantics.md 7, the cell's mask members, and those of TF 2.x on the GRU."""

import itertools

import numpy as np
import pytest
from grad_support import B, H, I, T, draws, gru, near, oracle, sequences, served_by, state

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
def test_rule_07_one_mask_per_call_held_over_all_steps(
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


def test_rule_07_inverted_scaling():
    layer = fastgru.GRUCell(2000, dropout=0.25, recurrent_dropout=0.6, seed=5)
    drop = np.stack(layer.get_dropout_mask(np.zeros((3, 4000), "float32")))
    recurrent = np.stack(layer.get_recurrent_dropout_mask(np.zeros((3, 2000), "float32")))
    for mask, rate in ((drop, 0.25), (recurrent, 0.6)):
        kept = np.float32(1.0 / (1.0 - rate))
        assert set(np.unique(mask)) == {np.float32(0), kept}
        # Binomial: five standard deviations of the kept share.
        assert abs((mask > 0).mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
        assert mask.dtype == np.float32


def test_rule_07_recurrent_dropout_forces_implementation_1():
    assert fastgru.GRU(3, implementation=2).implementation == 2
    assert fastgru.GRU(3, implementation=2, recurrent_dropout=0.1).implementation == 1
    drop, recurrent = masks_of(1, implementation=2, dropout=0.5, recurrent_dropout=0.5)
    assert len(drop) == len(recurrent) == 3
    assert any((drop[0] != drop[g]).any() for g in (1, 2))


def test_rule_07_the_draw_depends_on_seed_and_call_count_alone(backend):
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


def test_rule_07_only_training_draws(backend):
    layer = gru(dropout=0.5, recurrent_dropout=0.5, seed=3)
    plain = gru()
    for training in (False, None, 0):
        near(layer(sequences(), state(), training=training), plain(sequences(), state()))
    assert draws(layer) == [[0, 0]]
    assert (layer(sequences(), state(), training=True) != plain(sequences(), state())).any()
    assert draws(layer) == [[1, 1]]


# -- the members of the cell ---------------------------------------------------------------------


def test_masks_are_kept_until_they_are_reset():
    cell = fastgru.GRUCell(H, dropout=0.5, recurrent_dropout=0.5, seed=2)
    x, h = np.zeros((B, I), "float32"), np.zeros((B, H), "float32")
    first, recurrent = cell.get_dropout_mask(x), cell.get_recurrent_dropout_mask(h)
    assert [m.shape for m in first] == [(B, I)] * 3
    assert [m.shape for m in recurrent] == [(B, H)] * 3
    assert cell.get_dropout_mask(x) is first
    assert cell.get_recurrent_dropout_mask(h) is recurrent
    cell.reset_dropout_mask()
    assert any((a != b).any() for a, b in zip(cell.get_dropout_mask(x), first, strict=True))
    assert cell.get_recurrent_dropout_mask(h) is recurrent
    cell.reset_recurrent_dropout_mask()
    assert any(
        (a != b).any() for a, b in zip(cell.get_recurrent_dropout_mask(h), recurrent, strict=True)
    )
    assert draws(cell) == [[2, 2]]


def test_masks_without_dropout_are_none():
    cell = fastgru.GRUCell(H)
    assert cell.get_dropout_mask(np.zeros((B, I))) is None
    assert cell.get_recurrent_dropout_mask(np.zeros((B, H))) is None
    assert fastgru.GRUCell(H, dropout=0.5).get_dropout_mask(np.zeros((B, I))).shape == (B, I)
    assert draws(cell) == [[0, 0]]


@pytest.mark.parametrize("implementation", [1, 2])
def test_a_cell_stepped_by_hand_is_the_layer(backend, implementation):
    rates = {"dropout": 0.4, "recurrent_dropout": 0.3 if implementation == 1 else 0.0, "seed": 6}
    layer = fastgru.GRU(
        H, dtype="float64", return_sequences=True, implementation=implementation, **rates
    )
    layer.build((None, None, I))
    cell = fastgru.GRUCell(H, dtype="float64", implementation=implementation, **rates)
    cell.build((None, I))
    cell.set_weights(layer.get_weights())
    x = sequences()
    for _ in range(2):
        y = layer(x, training=True)
        h = np.zeros((B, H))
        for t in range(T):
            output, (h,) = cell(x[:, t], [h], training=True)
            near(output, y[:, t])
        cell.reset_dropout_mask()
        cell.reset_recurrent_dropout_mask()
    assert draws(cell) == draws(layer)


def test_a_call_uses_the_masks_that_were_asked_for_before_it(backend):
    layer = gru(dropout=0.5, return_sequences=True, seed=3)
    mask = layer.cell.get_dropout_mask(np.zeros((B, I)))
    y = layer(sequences(), training=True)
    expected, _ = oracle(sequences(), layer.get_weights(), drop=[mask] * 3)
    near(y, expected)
    other = layer(sequences(), training=True)  # and draws its own again afterwards
    assert (other != y).any()


@pytest.mark.parametrize("shape", [(1, I), (B + 1, I)])
def test_a_mask_for_another_batch_is_refused(shape):
    layer = gru(dropout=0.5, recurrent_dropout=0.5)
    layer.cell.get_dropout_mask(np.zeros(shape))
    layer.cell.get_recurrent_dropout_mask(np.zeros((shape[0], H)))
    before = draws(layer)
    for wrong in (
        lambda: layer(sequences(), training=True),
        lambda: layer.cell(sequences()[:, 0], state(), training=True),
    ):
        with pytest.raises(ValueError, match=r"drawn for shape .*reset_dropout_mask\(\)"):
            wrong()
    assert draws(layer) == before
    layer(sequences())  # not in training: no mask is read


def test_seeds():
    def mask(**arguments):
        return fastgru.GRUCell(H, dropout=0.5, **arguments).get_dropout_mask(np.zeros((50, 40)))

    assert (mask(seed=1) == mask(seed=1)).all()
    assert (mask(seed=1) != mask(seed=2)).any()
    assert (mask() != mask()).any()
    assert (mask(seed=np.int64(1)) == mask(seed=1)).all()


def test_the_two_masks_come_from_streams_of_their_own():
    both = masks_of(5, dropout=0.5, recurrent_dropout=0.5)
    one = masks_of(5, recurrent_dropout=0.5)
    np.testing.assert_array_equal(both[1], one[1])
    np.testing.assert_array_equal(both[0], masks_of(5, dropout=0.5, implementation=1)[0])
    fast, slow = masks_of(5, dropout=0.5, dtype="float32"), masks_of(5, dropout=0.5)
    np.testing.assert_array_equal(fast[0], slow[0])
    assert (fast[0].dtype, slow[0].dtype) == (np.float32, np.float64)


def test_a_rate_of_one_applies_no_mask_as_in_keras(backend):
    layer = gru(dropout=1.0, recurrent_dropout=1.0)
    near(layer(sequences(), state(), training=True), gru()(sequences(), state()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mask_members_of_tf_2(dtype):
    x, h = np.zeros((60, 70), dtype), np.zeros((60, 50), dtype)
    plain = fastgru.GRU(50, dtype=dtype)
    layer = fastgru.GRU(50, dropout=0.25, recurrent_dropout=0.5, seed=1, dtype=dtype)
    for name, inputs, rate in (
        ("get_dropout_mask_for_cell", x, 0.25),
        ("get_recurrent_dropout_mask_for_cell", h, 0.5),
    ):
        assert getattr(plain, name)(inputs, True) is None
        get = getattr(layer, name)
        one = get(inputs, True)
        assert one.shape == inputs.shape
        assert one.dtype == dtype
        assert set(np.unique(one)) == {0, np.dtype(dtype).type(1 / (1 - rate))}
        several = get(inputs, training=True, count=3)
        assert [m.shape for m in several] == [inputs.shape] * 3
        assert (get(inputs, False) == 1).all()
        assert all((m == 1).all() for m in get(inputs, False, count=3))


def test_bidirectional_halves_have_counters_of_their_own():
    layer = fastgru.Bidirectional(fastgru.GRU(H, dropout=0.5, seed=4))
    layer(sequences("float32"), training=True)
    layer.forward_layer(sequences("float32"), training=True)
    assert draws(layer) == [[2, 0], [1, 0]]
