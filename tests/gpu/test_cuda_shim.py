"""The CUDA backend against the reference, its kernels emulated on the host.

Every kernel, forward and backward, runs the text that a GPU runs. The products are the emulator's.
"""

import itertools

import numpy as np
import pytest
from cuda_emulator import SCHEDULES, Emulator, Kernels, needs_compiler
from device_support import (
    DROPOUTS,
    REFERENCE,
    TOLERANCE,
    assert_agrees,
    assert_expected,
    assert_near,
    draw,
    expect,
)
from exhaustive import EVERYTHING
from random_problems import ELEMENTWISE, draw_problem, layouts, make_spec, make_weights

from fastgru import activations
from fastgru._cuda import source
from fastgru._cuda.engine import Launch
from fastgru.backends import cuda_call
from fastgru.backends.cuda import CudaBackend
from fastgru.masks import NO_MASK
from fastgru.problem import GRUProblem

pytestmark = needs_compiler

# The persistent kernels on three blocks, the last of fewer units; room for all rows at once in
# float32, for four of the five in float64.
RESIDENT = {"blocks": 3, "shared_bytes": 1500}


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_grid(dtype, reset_after):
    """Everything with everything: what a mask, resets, dropout and flags can be, on both paths.

    On one of the three schedules in turn, with FASTGRU_EXHAUSTIVE=1 on all.
    """
    spec = make_spec(3, 7, dtype, reset_after=reset_after)
    rng = np.random.default_rng(7)
    weights = make_weights(rng, spec)
    emulators = [
        Emulator(schedule, **device) for device in ({}, RESIDENT) for schedule in SCHEDULES
    ]
    flags = itertools.product([False, True], repeat=3)
    cases = itertools.product(["none", "lengths", "steps"], [False, True], DROPOUTS, flags)
    for number, case in enumerate(cases):
        expected = expect(draw(rng, spec, *case), weights)
        for emulator in emulators if EVERYTHING else emulators[number % 3 :: 3]:
            assert_expected(expected, CudaBackend(emulator))
    resident = {name for name in source.RESIDENT if name.endswith("after") == reset_after}
    for emulator in emulators:
        assert resident & set(emulator.launched) == (resident if emulator.blocks else set())


@pytest.mark.parametrize("seeds", [range(k, k + 25) for k in range(0, 150, 25)], ids=str)
def test_random_configurations(seeds):
    """Any sizes, with and without bias and initial state; activations have a test of their own."""
    for seed in seeds:
        problem, weights = draw_problem(seed)
        problem = problem._replace(
            spec=problem.spec._replace(
                activation=activations.tanh, recurrent_activation=activations.sigmoid
            )
        )
        schedule = list(SCHEDULES)[seed % 3]
        device = {"blocks": 1 + seed % 4, "shared_bytes": 100_000} if seed % 10 == 0 else {}
        emulator = Emulator(schedule, **device)
        assert_agrees(CudaBackend(emulator), problem, weights, seed, keep_gates=bool(seed % 4))


# Each activation in one role in float32 and in the other in float64; a pair is one compilation.
NEXT = ELEMENTWISE[1:] + ELEMENTWISE[:1]
INFINITE = activations.relu.with_params(max_value=float("inf"))
PAIRS = [("float32", INFINITE, activations.threshold.with_params(float("-inf"), 1e-300))]
for one, other in zip(ELEMENTWISE[::2], NEXT[::2], strict=True):
    PAIRS += [("float32", one, other), ("float64", other, one)]


@pytest.mark.parametrize(("dtype", "activation", "gate"), PAIRS, ids=repr)
def test_activations(dtype, activation, gate):
    rng = np.random.default_rng(3)
    roles = {"activation": activation, "recurrent_activation": gate}
    for reset_after in (True, False):
        spec = make_spec(5, 19, dtype, reset_after=reset_after, **roles)
        weights = make_weights(rng, spec)
        weights.recurrent_kernel[...] *= 0.1  # a gate without bounds makes the state grow
        steps = 1 if "exponential" in (activation.name, gate.name) else 3
        x = (0.4 * rng.standard_normal((3, steps, 5))).astype(dtype)
        h0 = (0.1 * rng.standard_normal((3, 19))).astype(dtype)
        assert_agrees(CudaBackend(Emulator()), GRUProblem(spec=spec, x=x, h0=h0), weights)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("reset_after", [True, False])
def test_empty_axes(shape, reset_after):
    rng = np.random.default_rng(4)
    spec = make_spec(shape[2], 5, reset_after=reset_after)
    weights = make_weights(rng, spec)
    x = rng.standard_normal(shape).astype("float32")
    h0 = rng.standard_normal((shape[0], 5)).astype("float32")
    for sequences in (True, False):
        problem = GRUProblem(spec=spec, x=x, h0=h0, return_sequences=sequences)
        assert_agrees(CudaBackend(Emulator()), problem, weights)


def test_memory_of_inputs_and_outputs():
    rng = np.random.default_rng(5)
    spec = make_spec(5, 7)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((4, 6, 5)).astype("float32")
    h0 = np.asfortranarray(rng.standard_normal((4, 7)).astype("float32"))
    y = assert_agrees(CudaBackend(Emulator()), GRUProblem(spec=spec, x=x, h0=h0), weights).y
    outs = [out for _, out in layouts(np.zeros_like(y)) if out.flags.writeable]
    for sequences in (True, False):
        wanted = y if sequences else y[:, -1]
        for (name, view), out in zip(layouts(x), itertools.cycle(outs), strict=False):
            out = out if sequences else out[:, 2]
            problem = GRUProblem(
                spec=spec, x=view, h0=h0, mask=NO_MASK, return_sequences=sequences, out=out
            )
            got = CudaBackend(Emulator()).forward(problem, weights)
            assert got.y is out
            np.testing.assert_array_equal(out, wanted, err_msg=name)


def test_chunks_of_time(monkeypatch):
    rng = np.random.default_rng(6)
    spec = make_spec(4, 9)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "steps", True, "three", (True, True, False), (3, 11))
    monkeypatch.setattr(
        cuda_call, "CHUNK_BYTES", 4 * 3 * 3 * (4 + 9) * 4
    )  # four steps, the last three
    for device, kernel, count in (({}, "step_after", 11), (RESIDENT, "steps_after", 3)):
        emulator = Emulator(**device)
        assert_agrees(CudaBackend(emulator), problem, weights)
        assert emulator.launched.count("pack_x") == 3 + 1  # forward, and once more to go back
        assert emulator.launched.count(kernel) == count


@pytest.mark.parametrize(
    ("shared_bytes", "blocks_held", "batch", "wanted"),
    [
        (507, 3, 5, set()),
        (508, 3, 5, {"steps_after"}),  # three columns of U, and four rows of 7 + 9 numbers
        (731, 3, 5, {"steps_after"}),
        (732, 3, 5, {"steps_after", "back_after"}),  # of 3 * 7 + 9
        (9999, 2, 5, set()),
        (9999, 3, 32, {"steps_after", "back_after"}),
        (9999, 3, 33, set()),
    ],
)
def test_who_is_resident(shared_bytes, blocks_held, batch, wanted):
    """Only with room for four rows at once in each block, for all blocks, and for small batches."""
    rng = np.random.default_rng(13)
    spec = make_spec(3, 7)
    weights = make_weights(rng, spec)
    emulator = Emulator(blocks=3, shared_bytes=shared_bytes)
    emulator.resident_blocks = lambda *_: blocks_held
    problem = draw(rng, spec, "steps", True, "none", (True, True, False), (batch, 3))
    assert_agrees(CudaBackend(emulator), problem, weights)
    assert set(source.RESIDENT) & set(emulator.launched) == wanted


@pytest.mark.parametrize("reset_after", [True, False])
def test_launches(reset_after):
    """One kernel a step, two with reset_after=False, and nothing per row."""
    rng = np.random.default_rng(9)
    spec = make_spec(4, 9, reset_after=reset_after)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "steps", True, "both", (False, True, False), (6, 3))
    emulator = Emulator()
    backend = CudaBackend(emulator)
    out = backend.forward(problem, weights, save=True)
    step = ["step_after"] if reset_after else ["step_before_zr", "step_before_h"]
    assert emulator.launched == ["synchronize", "start", "pack_x", *(3 * step)]
    emulator.launched.clear()
    backend.backward(problem, weights, out.states, out.y, None, out.workspace)
    back = ["back_step"] if reset_after else ["back_step", "back_reset"]
    after = ["back_end", "pack_x", "unpack_dx", "recurrent_inputs"]
    assert emulator.launched == [*(3 * back), *after]


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("device", [{}, RESIDENT], ids=["steps", "resident"])
def test_tf32(device, reset_after):
    """Asked for, float32 products round their operands to 11 bits; nothing else does."""
    rng = np.random.default_rng(14)
    for dtype, factor in (("float32", 1e3), ("float16", 1), ("float64", 1)):
        spec = make_spec(40, 7, dtype, reset_after=reset_after, precision="tf32")
        weights = make_weights(rng, spec)
        expected = expect(draw(rng, spec, "steps", True, "both", (True, True, False)), weights)
        if factor == 1:
            assert_expected(expected, CudaBackend(Emulator(**device)))
            continue
        with pytest.raises(AssertionError):
            assert_expected(expected, CudaBackend(Emulator(**device)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TOLERANCE, dtype, factor * TOLERANCE[dtype])
            assert_expected(expected, CudaBackend(Emulator(**device)))


def test_bfloat16_is_rounded_to_nearest():
    """Every upper half of a float, with lower halves around the ties; NaN stays a quiet NaN."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | lower).view(np.float32).ravel()
    spec = make_spec(1, 1, "bfloat16")
    options = source.options(spec.dtype, spec.activation, spec.recurrent_activation)
    kernel = """
KERNEL round_trip(long long n, const float *x, STORE *rounded, float *back) {
    for (long long i = 0; i < n; i++) {
        store(rounded + i, x[i]);
        back[i] = load(rounded + i);
    }
}"""
    rounded, back = np.zeros(values.size, spec.dtype), np.zeros(values.size, np.float32)
    engine = Kernels(source.text("steps") + kernel)
    engine.repeat(1, [Launch("round_trip", options, 1, (values.size, values, rounded, back))])
    with np.errstate(invalid="ignore"):
        wanted = values.astype(spec.dtype)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(rounded.view(np.uint16)[number], wanted.view(np.uint16)[number])
    assert (rounded.view(np.uint16)[~number] & 0x7FC0 == 0x7FC0).all()
    np.testing.assert_array_equal(back, wanted.astype(np.float32))


def test_states_of_another_backend():
    """Without a workspace, and from states that the reference kept."""
    rng = np.random.default_rng(10)
    spec = make_spec(4, 9, "float64")
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "lengths", False, "one", (False, True, False))
    out = REFERENCE.forward(problem, weights, save=True)
    want = REFERENCE.backward(problem, weights, out.states, out.y, out.state)
    got = CudaBackend(Emulator()).backward(problem, weights, out.states, out.y, out.state)
    for name, g, w in zip(got._fields, got, want, strict=True):
        assert_near(g, w, spec.dtype, name)


def test_weights_are_packed_once():
    rng = np.random.default_rng(11)
    spec = make_spec(4, 9)
    weights = make_weights(rng, spec)
    problem = GRUProblem(spec=spec, x=np.ones((2, 3, 4), "float32"))
    emulators = Emulator(), Emulator()  # two devices
    for emulator in 2 * emulators:
        CudaBackend(emulator).forward(problem, weights)
    assert [emulator.launched.count("synchronize") for emulator in emulators] == [1, 1]
    assert set(weights.packed["cuda"]) == set(emulators)


def test_what_it_cannot_serve():
    x = np.zeros((1, 1, 1), "float32")
    for activation, reason in ((activations.softmax, "not elementwise"), (np.tanh, "custom")):
        for role in ("activation", "recurrent_activation"):
            problem = GRUProblem(
                spec=make_spec(1, 2, **{role: activation}), x=x, h0=None, mask=NO_MASK
            )
            assert reason in CudaBackend(Emulator()).supports(problem)
