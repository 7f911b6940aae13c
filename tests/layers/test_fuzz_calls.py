"""A sample of `fuzz_calls.py`: a few thousand random calls with hostile arguments."""

import numpy as np
import pytest
from fuzz_calls import Fuzzer

import fastgru

CALLS = 2000


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore:Casting complex values")  # by the fuzzer itself
def test_calls_end_in_a_right_result_or_a_clear_error(seed):
    fuzzer = Fuzzer(seed)
    for number in range(CALLS):
        try:
            fuzzer.run(number)
        except Exception as error:
            raise AssertionError(f"--seed {seed} --only {number}") from error
    results = sum(n for (_, outcome), n in fuzzer.outcomes.items() if outcome == "result")
    assert 0.3 * CALLS < results < 0.9 * CALLS  # both ends are seen
    assert {name for name, _ in fuzzer.outcomes} >= {"GRU", "GRUCell", "gru", "Stream", "backward"}


@pytest.mark.parametrize("count", [10**30, 2**31, 2**64])
def test_more_threads_than_an_int_holds_are_no_bound(count):
    layer = fastgru.GRU(5)
    x = np.ones((2, 3, 4), np.float32)
    np.testing.assert_array_equal(layer(x, num_threads=count), layer(x))


def test_more_rows_than_a_stream_has_are_refused_unread():
    layer = fastgru.GRU(5)
    layer.build((None, None, 4))
    stream = layer.stream(2)
    rows = np.broadcast_to(np.intp(0), 2**44)  # reading them takes hours
    with pytest.raises(ValueError, match="rows: expected each row at most once"):
        stream.step(np.ones((1, 4), np.float32), rows)


@pytest.mark.parametrize("kind", ["complex64", "U3", "bool"])
def test_empty_arrays_of_other_dtypes_are_not_lengths_or_rows(kind):
    layer = fastgru.GRU(5)
    x, none = np.ones((0, 3, 4), np.float32), np.zeros(0, kind)
    with pytest.raises(TypeError, match="lengths: expected integers"):
        layer(x, lengths=none)
    assert layer(x, lengths=[]).shape == (0, 5)
    stream = layer.stream(2)
    with pytest.raises(TypeError, match="rows: expected"):
        stream.step(x[:, 0], none)
    assert stream.step(x[:, 0], []).shape == (0, 5)
