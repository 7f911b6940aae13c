"""from_onnx: ONNX's own node tests, ONNX Runtime, PyTorch's exports, sources and imports."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip(
    "onnx", reason="the package that reads models; pip install fastgru[onnx]"
)
import subprocesses  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from onnx_support import (  # noqa: E402
    one_node_model,
    random_weights,
    run,
    run_onnxruntime,
    x_for,
)

import fastgru  # noqa: E402
from fastgru.io import from_onnx  # noqa: E402

DATA = Path(__file__).parents[1] / "data" / "onnx"
I, H = 5, 4


def as_onnx(layer, x, layout=0, direction="forward", **arguments):
    """Run a layer that came from a node; return Y and Y_h as the node has them."""
    halves = getattr(layer, "halves", (layer,))
    for half in halves:
        half.return_sequences = half.return_state = half.zero_output_for_mask = True
    y, *states = layer(x, **arguments)
    y = y if layout else y.swapaxes(0, 1)  # (B, T, D H)
    y = y.reshape(*y.shape[:2], len(halves), -1)
    if direction == "reverse":
        y = y[:, ::-1]
    y_h = np.stack(states, axis=1)  # (B, D, H)
    return (y, y_h) if layout else (y.transpose(1, 2, 0, 3), y_h.swapaxes(0, 1))


def node_tests():
    """ONNX's own tests of the operator."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it makes those of all operators to choose from
        return {case.name: case for case in collect_testcases("GRU")}


@pytest.fixture(scope="module")
def onnx_cases():
    return node_tests()


def test_there_are_node_tests(onnx_cases):
    assert {"test_gru_defaults", "test_gru_seq_length", "test_gru_batchwise"} <= set(onnx_cases)


@pytest.mark.parametrize(
    "name",
    ["defaults", "with_initial_bias", "seq_length", "batchwise", "reverse", "bidirectional"],
)
def test_onnx_own_node_tests(onnx_cases, name):
    case = onnx_cases.get(f"test_gru_{name}")
    if case is None:
        pytest.skip(f"onnx {onnx.__version__} has no node test of this name")
    model = copy.deepcopy(case.model)
    (node,) = model.graph.node
    for inputs, outputs in case.data_sets:
        # In the tests the weights are inputs; a layer holds its own.
        given = dict(zip(filter(None, node.input), inputs, strict=True))
        x = given.pop("X")
        for key, value in given.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
        (layer,) = from_onnx(model).values()
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        direction = attributes.get("direction", b"forward").decode()
        got = as_onnx(layer, x, attributes.get("layout", 0), direction)
        got = [value for value, output in zip(got, node.output, strict=True) if output]
        assert len(got) == len(outputs)
        for ours, theirs in zip(got, outputs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_all_node_tests_are_named_above(onnx_cases):
    parameters = test_onnx_own_node_tests.pytestmark[0].args[1]
    assert set(onnx_cases) <= {f"test_gru_{name}" for name in parameters}


# ---- ONNX Runtime --------------------------------------------------------------------------------

# A function, its alpha and beta.
FUNCTIONS = [
    ("Tanh", [], []),
    ("Sigmoid", [], []),
    ("Relu", [], []),
    ("Softsign", [], []),
    ("Softplus", [], []),
    ("LeakyRelu", [0.3], []),
    ("ThresholdedRelu", [0.2], []),
    ("ThresholdedRelu", [-0.7], []),
    ("Elu", [0.7], []),
    ("HardSigmoid", [0.2], [0.5]),
    ("HardSigmoid", [1 / 6], [0.5]),
    ("Affine", [1.0], [0.0]),
    ("ScaledTanh", [1.0], [1.0]),
]


@pytest.mark.parametrize("seed", range(200))
def test_random_nodes_agree_with_onnxruntime(seed):
    rng = np.random.default_rng(seed)
    b, t, i, h = (int(n) for n in rng.integers(1, 9, 4))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    directions = 1 + (direction == "bidirectional")
    options = {"hidden_size": h, "direction": direction}
    options["linear_before_reset"] = int(rng.integers(2))
    if rng.integers(2):
        # Activations that grow without bound in z would make numbers that no tolerance fits.
        gates = [FUNCTIONS[n] for n in rng.choice([1, 9, 10], directions)]
        candidates = [FUNCTIONS[n] for n in rng.integers(len(FUNCTIONS), size=directions)]
        rows = [row for pair in zip(gates, candidates, strict=True) for row in pair]
        options["activations"] = [name for name, _, _ in rows]
        values = {"activation_alpha": [a for _, alphas, _ in rows for a in alphas]}
        values["activation_beta"] = [b for _, _, betas in rows for b in betas]
        options.update((key, value) for key, value in values.items() if value)
    biased, started, cut = rng.integers(2, size=3)
    weights = random_weights(seed, directions, i, h, biased=bool(biased))
    feeds = {"X": rng.normal(size=(t, b, i)).astype("float32")}
    call = {}
    if started:
        feeds["h"] = rng.normal(size=(directions, b, h)).astype("float32")
        call["initial_state"] = list(feeds["h"])
    if cut:
        feeds["lengths"] = rng.integers(0, t + 1, b, dtype=np.int32)
        feeds["lengths"][0] = t
        call["lengths"] = feeds["lengths"]
    model = one_node_model(weights, [name for name in feeds if name != "X"], **options)
    y, y_h = run_onnxruntime(model, feeds)
    ours, state = as_onnx(from_onnx(model, "g"), feeds["X"], direction=direction, **call)
    np.testing.assert_allclose(ours, y, rtol=0, atol=1e-5 * max(1, np.abs(y).max()))
    if cut:  # of a row without steps ONNX Runtime makes zeros, and we the initial state
        some = feeds["lengths"] > 0
        state, y_h = state[:, some], y_h[:, some]
    np.testing.assert_allclose(state, y_h, rtol=0, atol=1e-5 * max(1, np.abs(y_h).max()))


# ---- PyTorch's exports ---------------------------------------------------------------------------


def exported(name):
    """Input, states and outputs of PyTorch for one of the files in tests/data/onnx."""
    with np.load(DATA / "outputs.npz") as file:
        return {
            key.partition(".")[2]: file[key] for key in file.files if key.partition(".")[0] == name
        }


EXPORTS = [
    "dynamo",
    "dynamo_stack",
    "dynamo_batch_first",
    "dynamo_plain",
    "script",
    "script_stack",
    "script_plain",
    "script_state",
]


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_of_pytorch(name):
    arrays = exported(name)
    layers = list(from_onnx(DATA / f"{name}.onnx").values())
    assert len(layers) == (2 if name in ("dynamo_stack", "dynamo_plain", "script_stack") else 1)
    batch_first = name in ("dynamo_batch_first", "script_state")
    y, states = arrays["x"], []
    y = y.swapaxes(0, 1) if batch_first else y  # the node is time-major, a Transpose before it
    for layer in layers:
        assert layer.time_major
        assert layer.return_sequences
        assert layer.return_state
        start = {"initial_state": list(arrays["h"])} if "h" in arrays else {}
        y, *state = layer(y, **start)
        states += state
    y = y.swapaxes(0, 1) if batch_first else y
    np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.stack(states), arrays["y_h"], rtol=0, atol=1e-6)


def test_verify_passes_and_fails():
    arrays = exported("dynamo")
    layer = from_onnx(DATA / "dynamo.onnx", "node_gru__1", verify=(arrays["x"], arrays["y"]))
    assert isinstance(layer, fastgru.GRU)
    with pytest.raises(ValueError, match=r"node_gru__1 differ .* by up to") as failed:
        from_onnx(DATA / "dynamo.onnx", verify=(arrays["x"], arrays["y"] + 0.1))
    assert "formula" not in str(failed.value)
    with pytest.raises(ValueError, match="shape"):
        from_onnx(DATA / "dynamo.onnx", verify=(arrays["x"], arrays["y_h"]))


def test_verify_catches_a_forgotten_linear_before_reset():
    arrays = exported("dynamo")
    path = DATA / "forgotten.onnx"
    layer = from_onnx(path, "node_gru__1")
    assert not layer.reset_after  # what the file says
    with pytest.raises(ValueError, match=r"linear_before_reset=1\) they agree.*onnxscript#2852"):
        from_onnx(path, verify=(arrays["x"], arrays["y"]))
    # What the message advises.
    model = onnx.load(path)
    (node,) = [node for node in model.graph.node if node.op_type == "GRU"]
    node.attribute.append(helper.make_attribute("linear_before_reset", 1))
    from_onnx(model, verify=(arrays["x"], arrays["y"]))


def test_verify_with_several_nodes_wants_a_name():
    arrays = exported("dynamo_stack")
    pair = (arrays["x"], arrays["y"])
    with pytest.raises(ValueError, match="several GRUs; name one of node_GRU_79, node_GRU_162"):
        from_onnx(DATA / "dynamo_stack.onnx", verify=pair)
    with pytest.raises(ValueError, match="differ"):
        from_onnx(DATA / "dynamo_stack.onnx", "node_GRU_79", verify=pair)


# ---- sources and imports ------------------------------------------------------------------------


def test_sources(tmp_path):
    model = one_node_model(random_weights(18, 1, I, H))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    data = model.SerializeToString()
    for source in (path, str(path), data, bytearray(data), memoryview(data), model):
        np.testing.assert_array_equal(
            run(from_onnx(source, "g"), x_for()), run(from_onnx(model, "g"), x_for())
        )
    with pytest.raises(TypeError):
        from_onnx(3)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "nothing.onnx")


def test_importing_io_imports_no_format():
    code = "import sys, fastgru.io; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in subprocesses.run_python(code).split()}
    assert not loaded & {"onnx", "google", "h5py", "safetensors"}


def test_without_the_package_the_message_says_what_to_install():
    code = """
        import sys
        sys.modules["onnx"] = None
        import fastgru.io
        try:
            fastgru.io.from_onnx(b"")
        except ImportError as error:
            print(error)
    """
    assert "pip install 'fastgru[onnx]'" in subprocesses.run_python(code)


def test_no_framework_is_imported():
    code = f"""
        import sys
        refused = {{"tensorflow", "keras", "torch", "onnxruntime"}}
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in refused:
                    raise ImportError(name)
        sys.meta_path.insert(0, Refuse())
        from fastgru.io import from_onnx
        print(from_onnx({str(DATA / "script_stack.onnx")!r}))
        assert not refused & set(sys.modules)
    """
    assert "/gru/GRU_1" in subprocesses.run_python(code)
