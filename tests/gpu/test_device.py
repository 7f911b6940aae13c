"""Device arrays at the front end: where results live, what is refused, what follows what."""

import copy
import sys
from types import SimpleNamespace

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
import subprocesses
from fake_cudnn import FakeCudnn

import fastgru
import fastgru.backends.cudnn as cudnn_backend
from fastgru._cuda import engine as engines

pytestmark = cuda_emulator.needs_compiler
B, T, I, H = 4, 6, 3, 5


@pytest.fixture
def cupy(monkeypatch):
    fake_cupy.install(monkeypatch.setattr, monkeypatch.setitem, blocks=3, shared_bytes=1 << 16)
    return sys.modules["cupy"]


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((B, T, I)).astype("float32")


def gru(cls=fastgru.GRU, **how):
    layer = cls(H, return_sequences=True, seed=3, **how)
    layer.build((None, None, I))
    rng = np.random.default_rng(2)
    layer.set_weights([rng.uniform(-0.5, 0.5, v.shape).astype(v.dtype) for v in layer.weights])
    return layer


class Foreign:
    """An array of another library on a device; `module` of its class says whose."""

    def __init__(self, array, kind=2):
        self.array, self.kind = array, kind

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, **how):
        return self.array


def test_results_are_where_the_sequences_are(cupy, x):
    layer = gru(return_state=True)
    y, state = layer(cupy.asarray(x))
    assert type(y) is type(state) is cupy.ndarray
    want, want_state = layer(x)
    assert type(want) is np.ndarray
    np.testing.assert_allclose(y.get(), want, atol=1e-6)
    np.testing.assert_allclose(state.get(), want_state, atol=1e-6)
    _, tape = layer.forward(cupy.asarray(x))
    grads = layer.backward(tape, cupy.asarray(np.ones_like(want)))
    assert all(type(g) is cupy.ndarray for g in (grads.inputs, grads.initial_state, *grads.weights))


@pytest.mark.parametrize("kind", [2, 13], ids=["kDLCUDA", "kDLCUDAManaged"])
def test_dlpack_producers_on_the_device(cupy, x, kind):
    layer = gru()
    y = layer(Foreign(cupy.asarray(x), kind), mask=Foreign(cupy.asarray(np.ones((B, T), bool))))
    assert type(y) is cupy.ndarray
    np.testing.assert_allclose(y.get(), layer(x), atol=1e-6)


def test_cuda_array_interface_alone(cupy, x):
    array = SimpleNamespace(__cuda_array_interface__={})
    inner = cupy.asarray
    cupy.asarray = lambda value, **how: inner(x if value is array else value, **how)
    np.testing.assert_allclose(gru()(array).get(), gru()(x), atol=1e-6)


MIXTURES = {
    "initial_state": (B, H),
    "mask": (B, T),
    "reset_mask": (B, T),
    "lengths": (B,),
    "out": (B, T, H),
}


@pytest.mark.parametrize("argument", MIXTURES)
@pytest.mark.parametrize("sequences_on_device", [True, False])
@pytest.mark.parametrize("cls", ["gru", "bidirectional", "sequential", "function"])
def test_mixtures_are_refused(cupy, x, argument, sequences_on_device, cls):
    layer = gru()
    if cls == "bidirectional":
        layer = fastgru.Bidirectional(layer, merge_mode="sum")
    elif cls == "sequential":
        layer = fastgru.Sequential([gru(), fastgru.GRU(H, return_sequences=True)])
    values = np.ones(MIXTURES[argument], "int32" if argument == "lengths" else "float32")
    given = values
    here, there = (cupy.asarray, np.copy) if sequences_on_device else (np.copy, cupy.asarray)
    values = there(values)
    if argument == "initial_state" and cls in ("bidirectional", "sequential"):
        values = [values, values]
    place = "a CUDA device" if sequences_on_device else "host memory"
    weights = [here(w) for w in gru().get_weights()]
    function = {"function": lambda x, **how: fastgru.gru(x, *weights, **how)}.get(cls, layer)
    pattern = rf"{argument}.*expected an array (on|in) {place}.*silently"
    with pytest.raises(TypeError, match=pattern):
        function(here(x), **{argument: values})
    if argument == "out":
        np.testing.assert_array_equal(fake_cupy.unwrapped(values), given)


def test_weights_of_the_function_are_where_the_sequences_are(cupy, x):
    weights = gru().get_weights()
    moved = [cupy.asarray(w) for w in weights]
    y, state = fastgru.gru(cupy.asarray(x), *moved)
    want, want_state = fastgru.gru(x, *weights)
    np.testing.assert_allclose(y.get(), want, atol=1e-6)
    np.testing.assert_allclose(state.get(), want_state, atol=1e-6)
    with pytest.raises(TypeError, match="x: expected an array in host memory"):
        fastgru.gru(cupy.asarray(x), *weights)
    with pytest.raises(TypeError, match="bias: expected an array on a CUDA device"):
        fastgru.gru(cupy.asarray(x), *moved[:2], weights[2])


def test_lists_follow_the_sequences(cupy, x):
    layer = gru()
    lengths, state = [0, 6, 3, 1], [[0.5] * H] * B
    want = layer(x, lengths=lengths, initial_state=np.array(state, "float32"))
    np.testing.assert_allclose(
        layer(cupy.asarray(x), lengths=lengths, initial_state=[state]).get(), want, atol=1e-6
    )
    mask = (np.arange(T) < np.array(lengths)[:, None]).tolist()
    got = layer(cupy.asarray(x), mask=mask, initial_state=[state])
    np.testing.assert_allclose(got.get(), want, atol=1e-6)


def test_another_device_is_refused(cupy, x):
    with pytest.raises(
        ValueError, match=r"sequences: .*current device 0.*on device 1.*Device\(1\)"
    ):
        gru()(fake_cupy.ndarray(x, device=1))


@pytest.mark.parametrize("cls", [fastgru.GRU, fastgru.Bidirectional])
def test_states_follow_the_sequences(cupy, x, cls):
    def make():
        layer = gru(stateful=True)
        return layer if cls is fastgru.GRU else cls(layer)

    layer, twin = make(), make()
    twin.build((B, T, I))
    layer.build((B, T, I))
    twin.set_weights(layer.get_weights())
    for on_device in (False, True, True, False):
        got = layer(cupy.asarray(x) if on_device else x)
        np.testing.assert_allclose(fake_cupy.unwrapped(got), twin(x), atol=1e-6)
        kept = layer.states[0].value
        assert isinstance(kept, cupy.ndarray if on_device else np.ndarray)
    layer(cupy.asarray(x))
    before = layer.states[0].value
    before[...] = 9  # a copy: CuPy's arrays cannot be frozen
    assert not (layer.states[0].numpy() == 9).any()
    assert type(layer.states[0].numpy()) is np.ndarray
    assert copy.deepcopy(layer.states[0]).numpy().shape == (B, H)


def test_a_stream_follows_its_inputs(cupy, x):
    layer = gru()
    stream, twin = layer.stream(B), layer.stream(B)
    for t, on_device in enumerate((False, True, True, False)):
        step = cupy.asarray(x[:, t]) if on_device else x[:, t]
        got = stream.step(step)
        assert isinstance(got, cupy.ndarray if on_device else np.ndarray)
        np.testing.assert_allclose(fake_cupy.unwrapped(got), twin.step(x[:, t]), atol=1e-6)
    rows = [2, 0]
    got = stream.step(cupy.asarray(x[rows, 4]), rows=cupy.asarray(np.array(rows)))
    np.testing.assert_allclose(got.get(), twin.step(x[rows, 4], rows=rows), atol=1e-6)
    stream.reset(rows=[1])
    twin.reset(rows=[1])
    np.testing.assert_allclose(stream.state.get(), twin.state, atol=1e-6)
    stream.state = np.ones((B, H), "float32")
    assert type(stream.state) is np.ndarray


def test_weights_are_assigned_from_the_device(cupy, x):
    layer = gru()
    value = layer.kernel.numpy()
    layer.kernel.assign(cupy.asarray(value * 2))
    assert type(layer.kernel.value) is np.ndarray
    np.testing.assert_array_equal(layer.kernel.value, value * 2)
    layer.kernel.assign_sub(cupy.asarray(value))
    np.testing.assert_array_equal(layer.kernel.value, value)
    np.testing.assert_allclose(layer(cupy.asarray(x)).get(), layer(x), atol=1e-6)


def test_the_same_seed_drops_the_same(cupy, x):
    layers = [gru(dropout=0.4, recurrent_dropout=0.3) for _ in range(2)]
    for _ in range(2):
        got = layers[0](cupy.asarray(x), training=True)
        np.testing.assert_allclose(got.get(), layers[1](x, training=True), atol=1e-6)
    masks = layers[0].cell.get_dropout_mask(cupy.asarray(x[:, 0]))
    assert all(isinstance(mask, cupy.ndarray) for mask in masks)


def test_weights_on_the_device_follow_a_write(cupy, x):
    layer = gru()
    layer(cupy.asarray(x))
    layer.set_weights([w + 0.25 for w in layer.get_weights()])
    np.testing.assert_allclose(layer(cupy.asarray(x)).get(), layer(x), atol=1e-6)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_out_on_the_device(cupy, x, merge):
    layer = fastgru.Bidirectional(gru(time_major=True), merge_mode=merge)
    seq = x.transpose(1, 0, 2)
    want = layer(seq)
    out = cupy.asarray(np.zeros_like(want))
    assert layer(cupy.asarray(seq), out=out) is out
    np.testing.assert_allclose(out.get(), want, atol=1e-6)
    with pytest.raises(TypeError, match="out: expected a CuPy array, got Foreign"):
        layer(cupy.asarray(seq), out=Foreign(out))


def test_out_over_an_input(cupy):
    layer = fastgru.GRU(I, return_sequences=True)
    x = np.random.default_rng(3).standard_normal((B, T, I)).astype("float32")
    want, moved = layer(x), cupy.asarray(x.copy())
    assert layer(moved, out=moved) is moved
    np.testing.assert_allclose(moved.get(), want, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(cupy, x, dtype):
    pytest.importorskip("ml_dtypes", reason="bfloat16 is a type of ml_dtypes")
    layer, wide = gru(dtype=dtype), gru()
    wide.set_weights([w.astype("float32") for w in layer.get_weights()])
    half = x.astype(layer.weights[0].dtype)
    assert layer.dtype == dtype
    got = layer(cupy.asarray(half))
    assert got.dtype.name == dtype
    np.testing.assert_allclose(got.get().astype("float32"), wide(half.astype("float32")), atol=3e-2)
    assert layer(half).dtype.name == dtype  # on the host too, and nearly the same
    np.testing.assert_allclose(
        got.get().astype("float32"), layer(half).astype("float32"), atol=3e-2
    )
    assert (layer(cupy.asarray(x)) == got).all()


def test_precision(cupy, x):
    layer = fastgru.GRU(H, precision="tf32")
    assert layer.precision == layer.get_config()["precision"] == "tf32"
    assert fastgru.GRU.from_config(layer.get_config()).precision == "tf32"
    assert "precision" not in fastgru.GRU(H).get_config()
    np.testing.assert_allclose(layer(cupy.asarray(x)).get(), layer(x), atol=2e-3)
    with pytest.raises(ValueError, match=r"tf32.*float32 products, got dtype 'float64'"):
        fastgru.GRU(H, precision="tf32", dtype="float64")


def test_what_the_kernels_cannot_serve(cupy, x):
    """Activations over an axis, and custom ones, are computed by CuPy's own functions."""
    for activation in ("softmax", "sparsemax", lambda a: np.sin(a) / 2):
        layer = gru(activation=activation)
        explanation = layer.explain(cupy.asarray(x))
        assert explanation.backend == "reference"
        assert "not elementwise" in explanation.reasons["cuda"] or "custom" in str(explanation)
        got = layer(cupy.asarray(x))
        np.testing.assert_allclose(got.get(), layer(x), atol=1e-6)


def test_backends_by_name(cupy, x):
    layer = gru()
    with fastgru.use_backend("cuda"), pytest.raises(ValueError, match="arrays are in host memory"):
        layer(x)
    with fastgru.use_backend("cpu"), pytest.raises(ValueError, match="arrays are on a device"):
        layer(cupy.asarray(x))
    with fastgru.use_backend("reference"):
        np.testing.assert_allclose(layer(cupy.asarray(x)).get(), layer(x), atol=1e-6)


# -- cuDNN ------------------------------------------------------------------------------------


@pytest.fixture
def cudnn(monkeypatch):
    library = FakeCudnn()
    monkeypatch.setattr(cudnn_backend, "MOST_CHOICES", 0)  # no trials: calls are counted
    fake_cupy.install(monkeypatch.setattr, monkeypatch.setitem, library)
    return library


def test_cudnn_serves_what_it_can(cudnn, x):
    moved = fake_cupy.ndarray(x)
    for how, backend in (
        *(({}, "cudnn"), ({"use_cudnn": False}, "cuda")),
        *(({"unroll": True}, "cuda"), ({"reset_after": False}, "cuda")),
        ({"activation": "softmax"}, "reference"),
    ):
        layer = gru(**how)
        explanation = layer.explain(moved)
        assert explanation.backend == explanation.backward == backend
        np.testing.assert_allclose(layer(moved).get(), layer(x), atol=1e-6)
        assert bool(cudnn.calls) == (backend == "cudnn")
        cudnn.calls.clear()
    np.testing.assert_allclose(gru(use_cudnn=True)(moved).get(), gru()(x), atol=1e-6)
    assert "use_cudnn is False" in str(gru(use_cudnn=False).explain(moved))


def test_use_cudnn_true_names_each_reason(cudnn, x):
    layer = gru(use_cudnn=True, reset_after=False, unroll=True)
    with pytest.raises(
        ValueError, match=r"use_cudnn=True.*reset_after is False; unroll is True; u"
    ):
        layer(fake_cupy.ndarray(x))
    mask = fake_cupy.ndarray(np.eye(B, T) > 0)
    with pytest.raises(ValueError, match=r"use_cudnn=True.*the mask is not right-padded; u"):
        gru(use_cudnn=True)(fake_cupy.ndarray(x), mask=mask)
    with (
        fastgru.use_backend("cuda"),
        pytest.raises(ValueError, match=r"use_cudnn=True.*backend 'cuda' was asked for; u"),
    ):
        gru(use_cudnn=True)(fake_cupy.ndarray(x))
    assert not cudnn.runs


# Each row of the table, as a layer and a call meet it: constructor, call, reason.
ROWS = {
    "activation": ({"activation": "relu"}, {}, "activation is not tanh"),
    "gates": ({"recurrent_activation": "tanh"}, {}, "recurrent_activation is not sigmoid"),
    "reset_after": ({"reset_after": False}, {}, "reset_after is False"),
    "recurrent dropout": ({"recurrent_dropout": 0.5}, {}, "recurrent_dropout is in use"),
    "three masks": ({"dropout": 0.5, "implementation": 1}, {}, "each gate has its own dropout"),
    "unroll": ({"unroll": True}, {}, "unroll is True"),
    "holes": ({}, {"mask": np.eye(B, T) > 0}, "the mask is not right-padded"),
    "all masked": ({}, {"lengths": [0] * B}, "no row has a valid step"),
    "resets": ({}, {"reset_mask": np.eye(B, T) > 0}, "reset_mask resets rows between steps"),
    "no steps": ({}, {"sequences": np.zeros((B, 0, I), "f")}, "the input has an empty axis"),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_alone_refuses_cudnn(cudnn, x, row):
    how, arguments, reason = ROWS[row]
    arguments = {"sequences": x, "training": True, **arguments}
    moved = {
        name: fake_cupy.ndarray(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    alone = rf"use_cudnn=True was asked for, and cuDNN cannot serve this call: {reason}[^;]*; use_c"
    with pytest.raises(ValueError, match=alone):
        gru(use_cudnn=True, **how)(**moved)
    assert not cudnn.runs
    other, twin = gru(**how), gru(**how)
    assert other.explain(**moved).backend == "cuda"
    np.testing.assert_allclose(other(**moved).get(), twin(**arguments), atol=1e-6)


def test_a_machine_without_cudnn(cupy, x):
    alone = r"cannot serve this call: cuDNN was not found; use_cudnn='auto'"
    with pytest.raises(ValueError, match=alone):
        gru(use_cudnn=True)(cupy.asarray(x))
    with (
        pytest.raises(fastgru.BackendError, match="'cudnn': cuDNN was not found"),
        fastgru.use_backend("cudnn"),
    ):
        pass


@pytest.mark.parametrize("merge", ["concat", "mul", None])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("lengths", [None, [6, 0, 2, 5]])
def test_both_directions_are_one_call(cudnn, x, merge, time_major, sequences, lengths):
    pattern = gru(time_major=time_major, return_state=True)
    pattern.return_sequences = sequences
    layer = fastgru.Bidirectional(pattern, merge_mode=merge)
    seq = x.transpose(1, 0, 2) if time_major else x
    layer.build(seq.shape)
    rng = np.random.default_rng(4)
    layer.set_weights([rng.uniform(-0.6, 0.6, v.shape).astype("float32") for v in layer.weights])
    starts = list(rng.standard_normal((2, B, H)).astype("float32"))
    moved = [fake_cupy.ndarray(s) for s in starts]
    want, want_tape = layer.forward(seq, initial_state=starts, lengths=lengths)
    got, tape = layer.forward(fake_cupy.ndarray(seq), initial_state=moved, lengths=lengths)
    assert cudnn.calls.count("RNNForward") == 1
    plain = layer(fake_cupy.ndarray(seq), initial_state=moved, lengths=lengths)
    assert cudnn.calls.count("RNNForward") == 2
    for g, p, w in zip(got, plain, want, strict=True):
        np.testing.assert_allclose(g.get(), w, atol=1e-6)
        np.testing.assert_allclose(p.get(), w, atol=1e-6)
    dys = [rng.standard_normal(w.shape).astype("float32") for w in want[: 1 if merge else 2]]
    dstates = list(rng.standard_normal((2, B, H)).astype("float32"))
    there = [[fake_cupy.ndarray(d) for d in values] for values in (dys, dstates)]
    wanted = layer.backward(want_tape, dys if merge is None else dys[0], dstates)
    grads = layer.backward(tape, there[0] if merge is None else there[0][0], there[1])
    assert cudnn.calls.count("RNNBackwardData_v8") == 1
    np.testing.assert_allclose(grads.inputs.get(), wanted.inputs, atol=1e-5)
    for name in ("initial_state", "weights"):
        for g, w in zip(getattr(grads, name), getattr(wanted, name), strict=True):
            np.testing.assert_allclose(g.get(), w, atol=2e-5, err_msg=name)


def test_directions_that_differ_are_two_calls(cudnn, x):
    layer = fastgru.Bidirectional(gru(dropout=0.5))
    layer(fake_cupy.ndarray(x), training=True)
    assert cudnn.calls.count("RNNForward") == 2
    twice = fastgru.Sequential([fastgru.Bidirectional(gru()), fastgru.Bidirectional(gru())])
    want = twice(x)
    cudnn.calls.clear()
    np.testing.assert_allclose(twice(fake_cupy.ndarray(x)).get(), want, atol=1e-6)
    assert cudnn.calls.count("RNNForward") == 2


# -- machines that lack something ---------------------------------------------------------------


def test_without_cupy(monkeypatch, x):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        fastgru.BackendError, match=r"sequences: .*CuPy is missing.*fastgru\[cuda12"
    ):
        gru()(Foreign(x))
    with (
        pytest.raises(fastgru.BackendError, match=r"'cuda': CuPy is missing.*fastgru\[cuda12"),
        fastgru.use_backend("cuda"),
    ):
        pass


NO_DRIVER = "cudaErrorInsufficientDriver: CUDA driver version is insufficient"


@pytest.fixture
def no_driver(monkeypatch):
    def fail():
        raise fake_cupy.CUDARuntimeError(NO_DRIVER)

    runtime = SimpleNamespace(getDevice=fail, CUDARuntimeError=fake_cupy.CUDARuntimeError)
    module = SimpleNamespace(ndarray=fake_cupy.ndarray, cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", module)


def test_without_a_driver(no_driver, x):
    with pytest.raises(fastgru.BackendError, match=f"sequences: .*{NO_DRIVER}"):
        gru()(Foreign(x))
    with pytest.raises(fastgru.BackendError, match=NO_DRIVER), fastgru.use_backend("cuda"):
        pass
    assert gru()(x).shape == (B, T, H)


def test_show_config_without_a_driver(no_driver, capsys):
    fastgru.show_config()
    assert NO_DRIVER in capsys.readouterr().out


def test_failures_of_the_libraries_have_their_names(cupy, x, monkeypatch):
    class CUBLASError(RuntimeError):
        __module__ = "cupy_backends.cuda.libs.cublas"

    def fail(*_):
        raise CUBLASError("CUBLAS_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(engines.current(), "gemm", fail)
    layer = gru(stateful=True)
    layer.build((B, T, I))
    with pytest.raises(fastgru.BackendError, match="CUBLASError: CUBLAS_STATUS_EXECUTION_FAILED"):
        layer(cupy.asarray(x))
    np.testing.assert_array_equal(layer.states[0].numpy(), 0)


def test_failures_of_a_launch_are_told_once(cupy, x):
    layer = gru(stateful=True)
    layer.build((B, T, I))
    cuda_emulator.shim("fail_at").value = 2  # start, then pack_x
    with pytest.raises(fastgru.BackendError) as raised:
        layer(cupy.asarray(x))
    told = "pack_x: CUDA_ERROR_LAUNCH_FAILED in step 0 of 1: told to fail"
    assert str(raised.value) == told
    assert raised.value.__cause__ is None
    np.testing.assert_array_equal(layer.states[0].numpy(), 0)


def test_without_memory(cupy, x, monkeypatch):
    class OutOfMemoryError(MemoryError):
        __module__ = "cupy.cuda.memory"

    def fail(*_):
        raise OutOfMemoryError("Out of memory allocating 512 bytes")

    monkeypatch.setattr(engines.current(), "empty", fail)
    with pytest.raises(MemoryError, match="512 bytes"):
        gru()(cupy.asarray(x))


def test_real_cupy_without_a_driver():
    cupy = pytest.importorskip("cupy", reason="needs CuPy", exc_type=ImportError)
    if cupy.cuda.is_available():
        pytest.skip("needs a machine without a CUDA driver")
    said = subprocesses.run_python("""
        import cupy, numpy, fastgru
        from fastgru._cuda import engine
        fastgru.GRU(2)(numpy.zeros((1, 2, 3), "float32"))
        class OnDevice:
            __cuda_array_interface__ = {"shape": (1, 2, 3), "typestr": "<f4", "data": (0, False)}
        try:
            fastgru.GRU(2)(OnDevice())
        except fastgru.BackendError as error:
            print("raised", error)
        print(engine.missing())
    """)
    assert said.startswith("raised sequences: got an array on a CUDA device")
    assert said.count("cudaError") == 2
