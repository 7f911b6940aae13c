"""The cuDNN backend against the reference: its Python, its binding and its kernels, without a GPU.

The kernels are emulated as in test_cuda_shim, the library is fake_cudnn's.
"""

import copy
import itertools
import threading

import numpy as np
import pytest
from cuda_emulator import COMPILER, Emulator
from fake_cudnn import SMALL, STANDARD, STATIC, FakeCudnn, Refused, require
from test_cuda_shim import REFERENCE, assert_near, draw, wide_call
from test_native import layouts, make_spec, make_weights

from fastgru import activations
from fastgru._cuda import libcudnn
from fastgru.backends import cudnn, cudnn_call
from fastgru.masks import LENGTHS, NO_MASK, MaskPlan, plan_mask, plan_resets
from fastgru.problem import BackendError, GRUProblem

pytestmark = pytest.mark.skipif(not COMPILER, reason="needs g++ to compile the emulated kernels")

B, T, I, H = 5, 6, 3, 11
DTYPES = ["float16", "float32", "float64"]
FLAGS = list(itertools.product([False, True], repeat=3))  # reverse, sequences, zero_masked


class Machine:
    """A backend with a fake library and an emulated device."""

    def __init__(self, **how):
        self.fake, self.emulator = FakeCudnn(**how), Emulator()
        self.backend = cudnn.CudnnBackend(self.emulator, libcudnn.Cudnn(self.fake))

    def algorithms(self):
        """What the descriptors of the last call were made for, after a `clear`."""
        return [thing.algorithm for thing in self.fake.objects.values() if thing.kind == "rnn"]

    def clear(self):
        handles = {n: thing for n, thing in self.fake.objects.items() if thing.kind == "handle"}
        self.fake.objects.clear()
        self.fake.objects.update(handles)
        self.fake.calls.clear()
        self.emulator.launched.clear()


@pytest.fixture
def machine():
    return Machine()


def gradients_of(rng, expected, dtype):
    return (rng.standard_normal(array.shape).astype(dtype) for array in expected[:2])


def assert_agrees(machine, problem, weights, seed=1, keep_gates=True):
    """Compare outputs and gradients with the reference in float64."""
    backend, dtype = machine.backend, problem.spec.dtype
    assert backend.supports(problem) is backend.supports_backward(problem) is None
    wide = wide_call(problem, weights)
    expected = REFERENCE.forward(*wide, save=True)
    plain = backend.forward(problem, weights)
    out = backend.forward(problem, weights, save=True, keep_gates=keep_gates)
    assert plain.states is plain.workspace is None
    assert (out.workspace is None) != keep_gates
    for name in ("y", "state", "states"):
        assert_near(getattr(out, name), getattr(expected, name), dtype, name)
        if name != "states":
            np.testing.assert_array_equal(getattr(plain, name), getattr(out, name))
    for got in (out, plain):
        for array in (problem.x, problem.h0, got.y):
            assert array is None or not np.shares_memory(got.state, array)
    assert not np.shares_memory(out.y, out.states)

    rng = np.random.default_rng(seed)
    dy, dstate = gradients_of(rng, expected, dtype)
    dy, dstate = dy if seed % 5 else None, dstate if seed % 3 else None
    out.y[...] = 7  # the user's, who may do so
    got = backend.backward(problem, weights, out.states, dy, dstate, out.workspace)
    want = REFERENCE.backward(
        *wide,
        expected.states,
        None if dy is None else dy.astype(float),
        None if dstate is None else dstate.astype(float),
    )
    for name, g, w in zip(got._fields, got, want, strict=True):
        assert_near(g, w, dtype, name)
    assert machine.fake.alive("rnn") == machine.fake.alive("data") == []
    return plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["none", "lengths", "equal"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_grid(machine, kind, use_bias, dtype):
    spec = make_spec(I, H, dtype, use_bias=use_bias)
    rng = np.random.default_rng(7)
    weights = make_weights(rng, spec)
    for seed, (dropout, flags) in enumerate(itertools.product(["none", "one"], FLAGS), 1):
        problem = draw(rng, spec, kind, False, dropout, flags, (B, T))
        if kind == "equal":
            problem.mask = plan_mask(None, [4] * B, B, T)
            problem.x[:, 4:] = np.nan
        if seed % 4 == 0:
            problem.h0 = None
        assert_agrees(machine, problem, weights, seed, keep_gates=bool(seed % 3))


@pytest.mark.parametrize("lengths", [[0, 6, 3, 0, 1], [0, 4, 4, 0, 4], [2, 0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_rows_without_a_step(machine, flags, lengths):
    """Nor is a NaN at their steps seen, or in the gradient of an output that nobody made."""
    spec = make_spec(I, H)
    rng = np.random.default_rng(8)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "none", False, "one", flags, (B, T))
    problem.mask = plan_mask(None, lengths, B, T)
    problem.x[~problem.mask.valid(T)] = np.nan
    assert_agrees(machine, problem, weights)
    problem.h0 = None
    assert_agrees(machine, problem, weights)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 7, 4, 2), (3, 1, 2, 5), (9, 2, 17, 33)], ids=str
)
def test_sizes(machine, shape):
    batch, steps, inputs, units = shape
    spec = make_spec(inputs, units)
    rng = np.random.default_rng(9)
    weights = make_weights(rng, spec)
    for kind, flags in itertools.product(["none", "lengths"], FLAGS):
        problem = draw(rng, spec, kind, False, "none", flags, (batch, steps))
        if problem.mask.any_empty and not problem.mask.lengths.any():
            continue
        assert_agrees(machine, problem, weights)


def test_memory_of_inputs_and_outputs(machine):
    """Any strides and alignment; what lies as cuDNN takes it goes without a copy."""
    spec = make_spec(4, 8)
    rng = np.random.default_rng(10)
    weights = make_weights(rng, spec)
    x, h0 = (rng.standard_normal(shape).astype("float32") for shape in ((4, 6, 4), (4, 8)))
    expected = assert_agrees(machine, GRUProblem(spec, x, h0, NO_MASK), weights)
    outs = [out for _, out in layouts(np.zeros((4, 6, 8), "float32")) if out.flags.writeable]
    odd = np.empty(x.nbytes + 4, np.uint8)[4:].view("float32").reshape(x.shape)  # 4-byte aligned
    odd[...] = x
    steps_first = np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    for copied, view in [(True, odd), (False, steps_first), (False, x)] + [
        (None, view) for _, view in layouts(x)
    ]:
        machine.clear()
        problem = GRUProblem(spec, view, np.asfortranarray(h0), NO_MASK)
        y = machine.backend.forward(problem, weights).y
        np.testing.assert_allclose(y, expected.y, rtol=0, atol=1e-6)
        assert copied is None or machine.emulator.launched == ["gather_x", "spread"] * copied
        for sequences, out in itertools.product([True, False], outs):
            problem.return_sequences, problem.out = sequences, out if sequences else out[:, 2]
            got = machine.backend.forward(problem, weights)
            assert got.y is problem.out
            wanted = y if sequences else y[:, -1]
            np.testing.assert_allclose(problem.out, wanted, rtol=0, atol=1e-6)
            problem.out = None
            assert_agrees(machine, problem, weights)


def test_gradients_in_any_memory(machine):
    spec = make_spec(4, 8)
    rng = np.random.default_rng(11)
    weights = make_weights(rng, spec)
    x = rng.standard_normal((4, 6, 4)).astype("float32")
    dy = rng.standard_normal((4, 6, 8)).astype("float32")
    for source in (x, np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)):
        problem = GRUProblem(spec, source, None, NO_MASK)
        out = machine.backend.forward(problem, weights, save=True)
        want = REFERENCE.backward(*wide_call(problem, weights), *wide(out.states, dy), None)
        odd = np.empty(dy.nbytes + 4, np.uint8)[4:].view("float32").reshape(dy.shape)
        odd[...] = dy
        for given in (dy, odd, *(view for _, view in layouts(dy))):
            workspace = copy.copy(out.workspace)
            got = machine.backend.backward(problem, weights, out.states, given, None, workspace)
            for name, g, w in zip(got._fields, got, want, strict=True):
                assert_near(g, w, spec.dtype, name)


def wide(*arrays):
    return [array.astype(float) for array in arrays]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("lengths", [None, [33, 50, 20, 0, 16], [40] * 5], ids=str)
def test_pieces_of_time(monkeypatch, flags, lengths):
    """Longer than cuDNN takes at a time, with rows that end in each piece and at its end."""
    monkeypatch.setattr(cudnn_call, "STEPS", 16)
    monkeypatch.setattr(cudnn, "TRIAL_STEPS", 16)
    machine = Machine(most_steps=16)
    spec = make_spec(I, 4)
    rng = np.random.default_rng(12)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "none", False, "none", flags, (5, 50))
    if lengths is not None:
        problem.mask = plan_mask(None, lengths, 5, 50)
        problem.x[~problem.mask.valid(50)] = np.nan
    assert_agrees(machine, problem, weights)
    machine.clear()
    machine.backend.forward(problem, weights)
    longest = 50 if lengths is None else max(lengths)
    assert machine.fake.calls.count("RNNForward") == -(-longest // 16)


def test_a_step_more_than_cudnn_takes():
    spec = make_spec(1, 1, "float64")  # without trials
    x = np.random.default_rng(13).standard_normal((1, 65536, 1))
    machine = Machine()
    weights = make_weights(np.random.default_rng(14), spec)
    problem = GRUProblem(spec, x, None, NO_MASK)
    got = machine.backend.forward(problem, weights)
    assert machine.fake.calls.count("RNNForward") == 2
    assert_near(got.y, REFERENCE.forward(problem, weights).y, spec.dtype, "y")


# -- what cuDNN is asked ---------------------------------------------------------------------------


def test_the_order_of_calls(machine):
    spec = make_spec(I, H, "float64")  # STANDARD alone: no trials in between
    rng = np.random.default_rng(15)
    weights = make_weights(rng, spec)
    problem = draw(rng, spec, "lengths", False, "none", (False, True, False), (B, T))
    out = machine.backend.forward(problem, weights, save=True)
    machine.backend.backward(problem, weights, out.states, None, out.state, out.workspace)
    runs = [c for c in machine.fake.calls if c == "SetStream" or c.startswith("RNN")]
    back = ["RNNBackwardData_v8", "RNNBackwardWeights_v8"]
    assert runs == ["SetStream", "RNNForward", "SetStream", *back]
    assert machine.fake.calls.count("Create") == 1


def test_launches(machine):
    """Nothing at all around the plain call; a kernel each for what is not."""
    spec = make_spec(4, 8)
    rng = np.random.default_rng(16)
    weights = make_weights(rng, spec)
    plain = draw(rng, spec, "none", False, "none", (False, True, False), (B, T))
    machine.backend.forward(plain, weights)
    machine.clear()
    machine.backend.forward(plain, weights)
    assert machine.emulator.launched == []
    masked = draw(rng, spec, "lengths", False, "one", (True, True, False), (B, T))
    machine.backend.forward(masked, weights)
    assert machine.emulator.launched == ["gather_x", "keep_ended", "spread"]


def test_weights_are_packed_once():
    spec = make_spec(I, H)
    rng = np.random.default_rng(17)
    weights, problem = (
        make_weights(rng, spec),
        GRUProblem(spec, np.ones((2, 3, I), "f"), None, NO_MASK),
    )
    machines = Machine(), Machine()
    for machine in 2 * machines:
        machine.backend.forward(problem, weights)
    assert [m.emulator.launched.count("pack_weights") for m in machines] == [1, 1]
    assert [m.emulator.launched.count("synchronize") for m in machines] == [1, 1]
    machines[0].backend.forward(problem, make_weights(rng, spec))
    assert machines[0].emulator.launched.count("pack_weights") == 2


@pytest.mark.parametrize(
    ("dtype", "precision", "math"),
    [
        ("float32", None, libcudnn.FMA_MATH),
        ("float32", "tf32", libcudnn.DEFAULT_MATH),
        ("float64", "tf32", libcudnn.DEFAULT_MATH),
        ("float16", None, libcudnn.TENSOR_OP_MATH),
    ],
)
def test_precision(machine, dtype, precision, math):
    spec = make_spec(I, H, dtype, precision=precision)
    weights = make_weights(np.random.default_rng(18), spec)
    machine.backend.forward(GRUProblem(spec, np.ones((2, 3, I), dtype), None, NO_MASK), weights)
    made = [thing.math for thing in machine.fake.objects.values() if thing.kind == "rnn"]
    assert set(made) == {math}


def test_every_dtype_has_its_types():
    assert {name: types[1] for name, types in cudnn_call.TYPES.items()} == {
        **dict.fromkeys(("float16", "bfloat16", "float32"), libcudnn.DATA_FLOAT),
        "float64": libcudnn.DATA_DOUBLE,
    }
    assert cudnn_call.TYPES["bfloat16"][0] == 9


# -- algorithms ------------------------------------------------------------------------------------


def timed(machine, **seconds):
    """Let the trials find that STANDARD, STATIC and SMALL take so long."""
    algorithms = {STANDARD: "standard", STATIC: "static", SMALL: "small"}

    def times(work):
        work()
        return seconds[algorithms[machine.fake.alive("rnn")[-1].algorithm]]

    machine.emulator.times = times


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize(
    ("seconds", "without", "units", "dtype", "chosen"),
    [
        ({"standard": 3, "static": 2, "small": 1}, (), H, "float32", SMALL),
        ({"standard": 3, "static": 1, "small": 2}, (), H, "float16", STATIC),
        ({"standard": 1.0, "static": 0.95, "small": 0.99}, (), H, "float32", STANDARD),
        ({"standard": 3, "static": 2}, {SMALL}, H, "float32", STATIC),
        ({"standard": 3, "small": 2}, {STATIC}, H, "float32", SMALL),
        ({"standard": 3}, {STATIC, SMALL}, H, "float32", STANDARD),
        ({"standard": 3, "static": 4}, (), 193, "float32", STANDARD),
        ({"standard": 3, "static": 2}, (), 193, "float32", STATIC),
    ],
)
def test_the_fastest_algorithm_is_taken(seconds, without, units, dtype, chosen, save):
    machine = Machine(without=without)
    timed(machine, **seconds)
    spec = make_spec(2, units, dtype)
    weights = make_weights(np.random.default_rng(19), spec)
    problem = GRUProblem(spec, np.ones((2, 3, 2), dtype), None, NO_MASK)
    machine.backend.forward(problem, weights, save)
    timed(machine)  # from here on measuring raises
    machine.clear()
    out = machine.backend.forward(problem, weights, save)
    if save:
        machine.backend.backward(problem, weights, out.states, out.y, None, out.workspace)
        assert machine.fake.calls.count("RNNBackwardData_v8") == 1
    assert set(machine.algorithms()) == {chosen}


def test_the_way_back_is_measured_with_it(machine):
    """An algorithm that only goes forward is none for training."""
    refused = machine.fake._RNNBackwardData_v8

    def only_standard(handle, rnn, *others):
        require(machine.fake.objects[rnn].algorithm == STANDARD, 3000)
        refused(handle, rnn, *others)

    machine.fake._RNNBackwardData_v8 = only_standard
    machine.fake.cudnnRNNBackwardData_v8 = type(machine.fake.cudnnRNNBackwardData_v8)(
        machine.fake._checked("cudnnRNNBackwardData_v8")
    )
    machine.backend = cudnn.CudnnBackend(machine.emulator, libcudnn.Cudnn(machine.fake))
    timed(machine, standard=3, static=2, small=1)
    spec = make_spec(I, H)
    weights = make_weights(np.random.default_rng(20), spec)
    problem = GRUProblem(spec, np.ones((B, T, I), "f"), None, NO_MASK)
    assert machine.backend.forward(problem, weights, save=True).workspace.algorithm == STANDARD
    machine.clear()
    machine.backend.forward(problem, weights)
    assert machine.algorithms()[-1] == SMALL


@pytest.mark.parametrize(("kind", "dtype"), [("lengths", "float32"), ("none", "float64")])
def test_nothing_to_choose_is_not_measured(machine, kind, dtype):
    timed(machine)
    spec = make_spec(I, H, dtype)
    rng = np.random.default_rng(21)
    problem = draw(rng, spec, kind, False, "none", (False, True, False), (B, T))
    machine.backend.forward(problem, make_weights(rng, spec))
    assert set(machine.algorithms()) == {STANDARD}


def test_choices_are_bounded(machine, monkeypatch):
    monkeypatch.setattr(cudnn, "MOST_CHOICES", 2)
    timed(machine, standard=3, static=2, small=1)
    spec = make_spec(I, H)
    weights = make_weights(np.random.default_rng(22), spec)
    for batch, chosen in ((1, SMALL), (2, SMALL), (3, STANDARD), (1, SMALL)):
        machine.clear()
        problem = GRUProblem(spec, np.ones((batch, T, I), "f"), None, NO_MASK)
        machine.backend.forward(problem, weights)
        assert machine.algorithms()[-1] == chosen


# -- both directions -------------------------------------------------------------------------------


def halves(rng, spec, kind, sequences=(True, True), zero_masked=(False, False)):
    one, other = (
        draw(rng, spec, "none", False, "none", (bool(d), sequences[d], zero_masked[d]), (B, T))
        for d in range(2)
    )
    one.mask = draw(rng, spec, kind, False, "none", (False,) * 3, (B, T)).mask
    other.x, other.mask = one.x, one.mask
    if kind == "lengths":
        one.x[~one.mask.valid(T)] = np.nan
    return one, other


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["none", "lengths"])
def test_both_directions_at_once(machine, kind, dtype):
    spec = make_spec(I, H, dtype)
    rng = np.random.default_rng(23)
    weights = [make_weights(rng, spec) for _ in range(2)]
    for sequences, zero_masked in itertools.product(
        itertools.product([False, True], repeat=2), FLAGS[:4]
    ):
        problems = halves(rng, spec, kind, sequences, zero_masked[1:])
        if zero_masked[1] and not zero_masked[2]:
            problems[1].h0 = None
        assert machine.backend.supports_both(problems) is None
        machine.clear()
        outs = machine.backend.forward_both(problems, weights, save=True)
        again = machine.backend.forward_both(problems, weights)
        wides = [wide_call(*half) for half in zip(problems, weights, strict=True)]
        expected = [REFERENCE.forward(*half, save=True) for half in wides]
        for out, second, want in zip(outs, again, expected, strict=True):
            for name in ("y", "state", "states"):
                assert_near(getattr(out, name), getattr(want, name), spec.dtype, name)
            np.testing.assert_array_equal(second.y, out.y)
        dys = [rng.standard_normal(out.y.shape).astype(dtype) for out in outs]
        dstates = [rng.standard_normal(out.state.shape).astype(dtype) for out in outs]
        dstates[0] = None
        grads = machine.backend.backward_both(problems, weights, dys, dstates, outs[0].workspace)
        want = [
            REFERENCE.backward(*half, out.states, dy.astype(float), dstate)
            for half, out, dy, dstate in zip(wides, expected, dys, dstates, strict=True)
        ]
        assert_near(grads[0].x, want[0].x + want[1].x, spec.dtype, "x")
        assert grads[1].x is None
        for got, wanted in zip(grads, want, strict=True):
            for name, g, w in list(zip(got._fields, got, wanted, strict=True))[1:]:
                assert_near(g, w, spec.dtype, name)


def test_both_are_packed_together_once(machine):
    spec = make_spec(I, H)
    rng = np.random.default_rng(24)
    one, other, third = (make_weights(rng, spec) for _ in range(3))
    problems = halves(rng, spec, "none")
    for pair, count in (((one, other), 2), ((one, other), 2), ((one, third), 4)):
        machine.backend.forward_both(problems, pair)
        assert machine.emulator.launched.count("pack_weights") == count


def test_what_it_cannot_serve_in_both_directions(machine, monkeypatch):
    spec = make_spec(I, H)
    rng = np.random.default_rng(25)

    def refused(reason, kind="none", **changes):
        problems = halves(rng, spec, kind)
        for name, value in changes.items():
            setattr(problems[1], name, value)
        assert reason in machine.backend.supports_both(problems)

    refused("one layer in both directions", x=np.ones((B, T, I), "f"))
    refused("one layer in both directions", reverse=False)
    refused("one layer in both directions", spec=make_spec(I, H, use_bias=False))
    refused("different masks", mask=plan_mask(None, [1, 2, 3, 4, 5], B, T))
    refused("different masks", "lengths", mask=NO_MASK)
    refused("dropout", dropout=np.ones((B, I), "f"))
    refused("activation is not tanh", spec=make_spec(I, H, activation=activations.relu))
    monkeypatch.setattr(cudnn_call, "STEPS", 5)
    refused("more than 5 steps")


# -- what is refused, and what fails ---------------------------------------------------------------

OTHER = {
    "activation is not tanh": {"activation": activations.relu},
    "recurrent_activation is not sigmoid": {"recurrent_activation": activations.hard_sigmoid},
    "reset_after is False": {"reset_after": False},
    "dtype longdouble is not one of float16": {"dtype": np.longdouble},
    "precision 'bf16x3'": {"precision": "bf16x3"},
}
CASES = {
    **{reason: {"spec": make_spec(I, H, **changes)} for reason, changes in OTHER.items()},
    "recurrent_dropout is in use": {"recurrent_dropout": np.ones((3, B, H), "f")},
    "each gate has its own dropout mask": {"dropout": np.ones((3, B, I), "f")},
    "unroll is True": {"unroll": True},
    "use_cudnn is False": {"use_cudnn": False},
    "the mask is not right-padded": {"mask": plan_mask(np.tri(B, T)[:, ::-1], None, B, T)},
    "no row has a valid step": {"mask": MaskPlan(LENGTHS, np.zeros(B, np.intp), any_empty=True)},
    "reset_mask resets rows": {"resets": plan_resets(np.ones((B, T)), B, T)},
    "the input has an empty axis": {"x": np.ones((B, 0, I), "f")},
}


def plain_problem():
    return GRUProblem(make_spec(I, H), np.ones((B, T, I), "f"), None, NO_MASK)


@pytest.mark.parametrize("reason", CASES)
def test_each_reason_alone_refuses(machine, reason):
    problem = plain_problem()
    for name, value in CASES[reason].items():
        setattr(problem, name, value)
    (said,) = machine.backend.reasons(problem)
    assert said.startswith(reason.replace("longdouble", np.dtype(np.longdouble).name))
    assert machine.backend.supports(problem) == machine.backend.supports_backward(problem) == said


def test_every_row_of_the_table_is_tried():
    said = {reason.partition("{")[0] for reason, _ in cudnn.REASONS} - {"", cudnn.HOST}
    assert all(any(case.startswith(reason[:10]) for case in CASES) for reason in said)
    assert len(cudnn.REASONS) == len(CASES) + 2  # what the machine lacks, and host arrays


@pytest.mark.parametrize("batch_side", [(0, T, I), (B, T, 0)], ids=str)
def test_other_empty_axes(machine, batch_side):
    problem = plain_problem()
    problem.x = np.ones(batch_side, "f")
    assert machine.backend.reasons(problem) == ["the input has an empty axis"]


def test_host_arrays_are_refused_without_a_look_at_the_machine(monkeypatch):
    monkeypatch.setattr(cudnn.CudnnBackend, "missing", lambda self: "cuDNN was not found")
    backend = cudnn.CudnnBackend()
    assert backend.reasons(plain_problem()) == ["cuDNN was not found", cudnn.HOST]
    monkeypatch.setattr(cudnn.CudnnBackend, "missing", None)
    assert backend.supports(plain_problem()) == cudnn.HOST


def test_a_function_that_is_called_tanh_is_not_tanh(machine):
    problem = plain_problem()
    problem.spec = problem.spec._replace(activation=np.tanh)
    assert machine.backend.supports(problem) == "activation is not tanh"


def test_failures_name_the_call_and_the_condition(machine):
    problem = plain_problem()
    weights = make_weights(np.random.default_rng(26), problem.spec)
    machine.fake.most_steps = T - 1
    with pytest.raises(BackendError, match=r"RNNDataDescriptor: CUDNN_STATUS_NOT_SUPPORTED \(3000"):
        machine.backend.forward(problem, weights)
    machine.fake.most_steps = 65535
    problem.x[0, 0] = np.inf  # which the fake does not take
    with pytest.raises(
        BackendError, match=r"(?s)cudnnRNNForward: .*EXECUTION_FAILED \(5000\): .*padding"
    ):
        machine.backend.forward(problem, weights)
    problem.x[...] = 1
    machine.backend.forward(problem, weights)
    assert machine.fake.calls.count("Create") == 1, "a failure loses no handle"
    assert machine.fake.alive("rnn") == []


def test_a_device_that_gives_no_handle(machine):
    def refuse(at):
        raise Refused(1001, "cudaGetDeviceCount(&count) != cudaSuccess")

    machine.fake._Create = refuse
    machine.fake.cudnnCreate = type(machine.fake.cudnnCreate)(machine.fake._checked("cudnnCreate"))
    machine.backend = cudnn.CudnnBackend(machine.emulator, libcudnn.Cudnn(machine.fake))
    problem = plain_problem()
    weights = make_weights(np.random.default_rng(27), problem.spec)
    with pytest.raises(
        BackendError, match=r"cudnnCreate: .*NOT_INITIALIZED \(1001\): cudaGetDevice"
    ):
        machine.backend.forward(problem, weights)


def test_threads_share_no_handle(machine):
    """Two calls at once have two handles; those that come later take them over."""
    problem = plain_problem()
    weights = make_weights(np.random.default_rng(28), problem.spec)
    both, backend = threading.Barrier(2, timeout=60), machine.backend

    def work():
        with backend._session() as session:
            both.wait()
            used.append(session.handle)

    used = []
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(used)) == 2
    for _ in range(3):
        backend.forward(problem, weights)
    assert machine.fake.calls.count("Create") == 2
