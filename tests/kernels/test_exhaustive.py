"""sigmoid and tanh against float64: a sample of the floats of every exponent, or all 2^32.

FASTGRU_EXHAUSTIVE=1 runs all of them, in one or two minutes an instruction set.
"""

import numpy as np
import pytest
from exhaustive import EVERYTHING

from fastgru import activations

kernels = pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")

ALL = 2**32
CHUNK = 2**22
FUNCTIONS = {
    "tanh": (activations.tanh, np.tanh),
    "sigmoid": (activations.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
}
# Beyond 4 units in the last place: nothing of tanh, and of sigmoid only its lower tail, where the
# error of x log2(e) shows in e^x; it is small beside the 6e-8 that sigmoid is rounded to near 1.
ABSOLUTE = {"tanh": 0.0, "sigmoid": 2e-8}
ULPS = 4


@pytest.fixture(params=kernels.supported_isas())
def isa(request):
    before = kernels.get_isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)


def check(name, bits):
    """Compare the function of the floats with these bits; return the worst (error, x) of each kind.

    The two kinds: absolute, and in units in the last place of the float64 result, which are counted
    where the absolute error alone is not small enough.
    """
    activation, exact = FUNCTIONS[name]
    x = bits.view(np.float32)
    kernels.apply_activation(activation, got := x.copy())
    nan = np.isnan(x)
    assert np.array_equal(np.isnan(got), nan)
    x, got = x[~nan], got[~nan]
    if not x.size:
        return (0.0, 0.0), (0.0, 0.0)
    with np.errstate(over="ignore"):  # e^-x of float64 is inf below -709, and 1/inf is right
        expected = exact(x.astype(np.float64))
    error = np.abs(got - expected)
    # A float has 24 bits: frexp gives m 2^e with m < 1, whose last bit is 2^(e - 24).
    ulps = error / np.ldexp(1.0, np.maximum(np.frexp(expected)[1] - 24, -149))
    ulps[error <= ABSOLUTE[name]] = 0
    wrong = ~(ulps <= ULPS)
    assert not wrong.any(), (
        f"{name}({x[wrong][0]!r}) is {got[wrong][0]!r}, expected {expected[wrong][0]!r}"
    )
    # A state is a mean of tanh weighted by sigmoid: it stays in [-1, 1] because both end exactly.
    assert np.abs(got).max() <= 1
    if name == "tanh":
        assert np.array_equal(np.signbit(got), np.signbit(x))
    else:
        assert got.min() >= 0
    a, u = error.argmax(), ulps.argmax()
    return (error[a], x[a]), (ulps[u], x[u])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sample_of_all_floats(isa, name):
    # An odd stride, so that all bits of the mantissas vary: 8,000 floats of each exponent.
    bits = np.arange(0, ALL, 1021, np.uint64).astype(np.uint32)
    assert len(np.unique(bits >> 23)) == 512  # sign and exponent
    check(name, bits)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(isa, name):
    info = np.finfo(np.float32)
    finite = np.array([0, info.smallest_subnormal, info.tiny, 1, info.max], np.float32)
    check(name, np.concatenate([finite, -finite]).view(np.uint32))
    # In the vectorised part of the loop and in what is left over from it.
    ends = np.array([np.nan, -np.inf, np.inf] * 17, np.float32)
    kernels.apply_activation(FUNCTIONS[name][0], ends)
    low = -1 if name == "tanh" else 0
    np.testing.assert_allclose(ends, [np.nan, low, 1] * 17, rtol=0, atol=1e-37)


@pytest.mark.skipif(
    not EVERYTHING,
    reason="minutes of all 2^32 floats: set FASTGRU_EXHAUSTIVE=1",
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_float(isa, name, capsys):
    worst = [(0.0, 0.0), (0.0, 0.0)]
    for start in range(0, ALL, CHUNK):
        bits = np.arange(start, start + CHUNK, dtype=np.uint64).astype(np.uint32)
        worst = [max(pair) for pair in zip(worst, check(name, bits), strict=True)]
    (error, x), (ulps, at) = worst
    with capsys.disabled():
        print(f"\n{isa} {name}: at most {error:.3g} at {x!r}, {ulps:.3g} ulp at {at!r}")
