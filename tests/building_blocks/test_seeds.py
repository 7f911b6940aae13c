"""`fastgru.set_random_seed`."""

import random

import numpy as np
import pytest

import fastgru


@pytest.fixture(autouse=True)
def _system(monkeypatch):
    monkeypatch.setattr("fastgru.seeds._source", None)


def drawn():
    """Weights, dropout masks, and numbers of Python and NumPy, in a fixed order."""
    layer = fastgru.GRU(3, dropout=0.5, recurrent_dropout=0.5)
    layer.build((None, None, 4))
    cell = layer.cell
    masks = cell.get_dropout_mask(np.ones((5, 4))), cell.get_recurrent_dropout_mask(np.ones((5, 3)))
    more = fastgru.initializers.get("glorot_normal")((2, 2))
    numbers = [random.random(), np.random.random()]  # noqa: NPY002 what Keras' function seeds too
    return [*layer.get_weights(), *masks[0], *masks[1], more, *numbers]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_seed_gives_the_same_again():
    results = []
    for seed in (1, 1, 2):
        fastgru.set_random_seed(seed)
        results.append((drawn(), drawn()))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
    for other in (results[0][1], results[2][0]):
        assert not np.array_equal(results[0][0][0], other[0])
        assert not np.array_equal(results[0][0][-1], other[-1])


def test_seeds_of_their_own_stay():
    before = fastgru.initializers.get("orthogonal")
    own = fastgru.initializers.GlorotUniform(seed=5)
    first = own((3, 4))
    fastgru.set_random_seed(0)
    np.testing.assert_array_equal(own((3, 4)), first)
    assert not np.array_equal(before((4, 4)), before((4, 4)))


@pytest.mark.parametrize(
    ("seed", "error"),
    [(-1, ValueError), (2**32, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)],
)
def test_wrong_seeds(seed, error):
    with pytest.raises(error, match="seed: expected an integer"):
        fastgru.set_random_seed(seed)
