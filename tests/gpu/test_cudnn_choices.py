"""What the cuDNN backend asks of cuDNN, which algorithm it takes, what it refuses, how it fails."""

import threading

import numpy as np
import pytest
from cuda_emulator import needs_compiler
from cudnn_support import B, H, I, Machine, T
from device_support import REFERENCE, assert_near, draw, wide_call
from fake_cudnn import SMALL, STANDARD, STATIC, Refused, require
from random_problems import make_spec, make_weights

from fastgru import activations
from fastgru._cuda import engine as engines
from fastgru._cuda import libcudnn
from fastgru.backends import cudnn, cudnn_call
from fastgru.masks import LENGTHS, NO_MASK, MaskPlan, plan_mask, plan_resets
from fastgru.problem import BackendError, GRUProblem

pytestmark = needs_compiler


@pytest.fixture
def machine():
    return Machine()


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
        GRUProblem(spec=spec, x=np.ones((2, 3, I), "f")),
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
    machine.backend.forward(GRUProblem(spec=spec, x=np.ones((2, 3, I), dtype)), weights)
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
    problem = GRUProblem(spec=spec, x=np.ones((2, 3, 2), dtype))
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
    problem = GRUProblem(spec=spec, x=np.ones((B, T, I), "f"))
    assert machine.backend.forward(problem, weights, save=True).workspace.algorithm == STANDARD
    machine.clear()
    machine.backend.forward(problem, weights)
    assert machine.algorithms()[-1] == SMALL


def test_weights_are_packed_for_each_algorithm(machine):
    """Which may have them somewhere else."""
    spec = make_spec(I, H)
    rng = np.random.default_rng(29)
    weights = make_weights(rng, spec)
    for batch, fastest in ((2, "small"), (3, "static"), (2, "standard"), (3, "standard")):
        timed(machine, **({"standard": 3, "static": 3, "small": 3} | {fastest: 1}))
        problem = GRUProblem(
            spec=spec, x=rng.standard_normal((batch, T, I)).astype("f"), h0=None, mask=NO_MASK
        )
        got = machine.backend.forward(problem, weights)
        want = REFERENCE.forward(*wide_call(problem, weights))
        assert_near(got.y, want.y, spec.dtype, "y")
    assert machine.emulator.launched.count("pack_weights") == 2


def test_small_is_for_few_units(machine):
    """Also where the library would take more, which nobody has tried."""
    machine.fake.small_units = 1000
    timed(machine, standard=3, static=4)
    spec = make_spec(2, 193)
    weights = make_weights(np.random.default_rng(30), spec)
    machine.backend.forward(GRUProblem(spec=spec, x=np.ones((2, 3, 2), "f")), weights)
    assert set(machine.algorithms()) == {STANDARD, STATIC}


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
        problem = GRUProblem(spec=spec, x=np.ones((batch, T, I), "f"))
        machine.backend.forward(problem, weights)
        assert machine.algorithms()[-1] == chosen


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
    return GRUProblem(spec=make_spec(I, H), x=np.ones((B, T, I), "f"))


@pytest.mark.parametrize("reason", CASES)
def test_each_reason_alone_refuses(machine, reason):
    problem = plain_problem()._replace(**CASES[reason])
    (said,) = machine.backend.reasons(problem)
    assert said.startswith(reason.replace("longdouble", np.dtype(np.longdouble).name))
    assert machine.backend.supports(problem) == machine.backend.supports_backward(problem) == said


def test_every_row_of_the_table_is_tried():
    said = {reason.partition("{")[0] for reason, _ in cudnn.REASONS}
    assert all(any(case.startswith(reason[:10]) for case in CASES) for reason in said)
    assert len(cudnn.REASONS) == len(CASES)


@pytest.mark.parametrize("batch_side", [(0, T, I), (B, T, 0)], ids=str)
def test_other_empty_axes(machine, batch_side):
    problem = plain_problem()
    problem = problem._replace(x=np.ones(batch_side, "f"))
    assert machine.backend.reasons(problem) == ["the input has an empty axis"]


def test_host_arrays_are_refused_without_a_look_at_the_machine(monkeypatch):
    monkeypatch.setattr(cudnn.CudnnBackend, "missing", lambda self: "cuDNN was not found")
    backend = cudnn.CudnnBackend()
    assert backend.reasons(plain_problem()) == ["cuDNN was not found", cudnn.HOST]
    monkeypatch.setattr(cudnn.CudnnBackend, "missing", None)
    assert backend.supports(plain_problem()) == cudnn.HOST


@pytest.mark.parametrize("device", ["CuPy is missing", None])
@pytest.mark.parametrize("library", ["cuDNN was not found", None])
def test_what_the_machine_lacks(monkeypatch, device, library):
    monkeypatch.setattr(engines, "missing", lambda: device)
    monkeypatch.setattr(libcudnn, "missing", lambda: library)
    assert cudnn.CudnnBackend().missing() == (device or library)


def test_a_function_that_is_called_tanh_is_not_tanh(machine):
    problem = plain_problem()
    problem = problem._replace(spec=problem.spec._replace(activation=np.tanh))
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
