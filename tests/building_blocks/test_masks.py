"""plan_mask: the kinds of masks, which the backends have different paths for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgru.masks import LENGTHS, NO_MASK, NONE, STEPS, plan_mask, plan_resets

B, T = 3, 4
ROWS = {
    "full": ([1, 1, 1, 1], NONE),
    "padded": ([1, 1, 0, 0], LENGTHS),
    "empty": ([0, 0, 0, 0], LENGTHS),
    "left": ([0, 1, 1, 1], STEPS),
    "hole": ([1, 0, 1, 1], STEPS),
    "last": ([0, 0, 0, 1], STEPS),
}
RANK = {NONE: 0, LENGTHS: 1, STEPS: 2}


@pytest.mark.parametrize("first", ROWS)
@pytest.mark.parametrize("second", ROWS)
def test_the_kind_is_the_worst_rows(first, second):
    mask = np.array([ROWS[first][0], ROWS[second][0], ROWS["full"][0]])
    plan = plan_mask(mask, None, B, T)
    assert plan.kind == max(ROWS[first][1], ROWS[second][1], key=RANK.get)
    assert plan.any_empty == ("empty" in (first, second))
    assert (plan.lengths is not None) == (plan.kind == LENGTHS)
    assert (plan.steps is not None) == (plan.kind == STEPS)
    valid = plan.valid(T)
    np.testing.assert_array_equal(np.ones((B, T)) if valid is None else valid, mask)


@settings(deadline=None)  # other tests run beside it
@given(st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=1, max_size=5))
def test_any_mask_comes_back_as_it_was(rows):
    mask = np.array(rows)
    plan = plan_mask(mask, None, len(rows), T)
    valid = plan.valid(T)
    np.testing.assert_array_equal(np.ones_like(mask) if valid is None else valid, mask)
    backwards = plan.reversed(T).valid(T)
    np.testing.assert_array_equal(
        np.ones_like(mask) if backwards is None else backwards, mask[:, ::-1]
    )
    assert plan.any_empty == (not mask.any(axis=1).all())


@pytest.mark.parametrize(
    "kind", ["bool", "int8", "uint64", "float16", "float32", "float64", "list", "Fortran"]
)
def test_what_a_mask_may_be_made_of(kind):
    mask = np.array([ROWS[name][0] for name in ("hole", "padded", "empty")])
    given_mask = mask.tolist() if kind == "list" else mask
    if kind == "Fortran":
        given_mask = np.asfortranarray(mask)
    elif kind != "list":
        given_mask = mask.astype(kind)
    plan = plan_mask(given_mask, None, B, T)
    np.testing.assert_array_equal(plan.steps, mask.astype(bool))
    assert plan.steps.dtype == bool
    assert plan.steps.flags.c_contiguous


def test_time_major():
    mask = np.array([ROWS[name][0] for name in ("hole", "padded", "empty")], bool)
    plan = plan_mask(mask.T, None, B, T, time_major=True)
    np.testing.assert_array_equal(plan.steps, mask)
    assert plan.steps.flags.c_contiguous
    assert plan_mask(np.ones((T, B)), None, B, T, time_major=True).kind == NONE
    resets = plan_resets(mask.T, B, T, time_major=True)
    np.testing.assert_array_equal(resets, mask)
    assert resets.flags.c_contiguous


def test_lengths():
    plan = plan_mask(None, [4, 2, 0], B, T)
    assert (plan.kind, plan.any_empty, plan.lengths.tolist()) == (LENGTHS, True, [4, 2, 0])
    assert plan.lengths.dtype == np.intp
    assert not plan_mask(None, [4, 2, 1], B, T).any_empty
    for kind in ("uint8", "int64", ">i4"):
        assert plan_mask(None, np.full(B, T, kind), B, T) is NO_MASK
    assert plan_mask(None, [], 0, T) is NO_MASK
    assert plan_mask(None, np.zeros(B, int), B, 0) is NO_MASK


def test_lengths_are_the_plans_own():
    lengths = np.array([4, 2, 1])
    plan = plan_mask(None, lengths, B, T)
    lengths[:] = 0
    assert plan.lengths.tolist() == [4, 2, 1]


def test_nothing_to_skip_and_nothing_to_reset():
    assert plan_mask(None, None, B, T) is NO_MASK
    assert plan_mask(np.ones((B, T)), None, B, T) is NO_MASK
    assert plan_mask(np.ones((B, 0)), None, B, 0) is NO_MASK
    assert plan_mask(np.ones((0, T)), None, 0, T) is NO_MASK
    assert NO_MASK.reversed(T) is NO_MASK
    assert plan_resets(None, B, T) is None
    assert plan_resets(np.zeros((B, T)), B, T) is None
    assert plan_resets(np.eye(B, T), B, T).sum() == B


def test_more_lengths_than_there_is_memory_for_are_not_read():
    rows = 2**44  # in four bytes
    lengths = np.broadcast_to(np.int32(1), (rows,))
    with pytest.raises(MemoryError):
        plan_mask(None, lengths, rows, T)
