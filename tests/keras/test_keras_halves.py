"""float16, bfloat16 and mixed policies: random layers beside Keras on JAX, and their configs.

Keras rounds what each of about ten operations of a step gives; fastgru rounds the state alone. An
operation's rounding is half an epsilon of its result, which here is below 4, and what reaches the
state goes through activations that are at most as steep as 1 and a blend by a gate in [0, 1]. So a
step adds a few epsilons, of which a gate of 1/2 forgets half: 4 epsilons of the dtype in all. The
largest of 400 configurations is 1. FASTGRU_EXHAUSTIVE=1 compares 1,000.
"""

import copy
import functools
import pickle

import numpy as np
import pytest
import subprocesses
from exhaustive import EVERYTHING
from half_cases import POLICIES, build, flatten, numbered

import fastgru

keras = pytest.importorskip("keras", reason="Keras is the judge here; pip install fastgru[test]")
pytest.importorskip("jax", reason="Keras computes in 16 bits on JAX; pip install fastgru[test]")

COUNT = 1000 if EVERYTHING else 16
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # between 1 and the next number
TOLERANCE = 4


@functools.cache
def judged():
    """What Keras gives: {index: (arrays, members)}."""
    code = f"""
        import io, sys
        import numpy as np
        from half_cases import numbered, of_keras

        found = {{}}
        for index in range({COUNT}):
            arrays, members = of_keras(numbered(index))
            found.update({{f"{{index}}.{{i}}": array for i, array in enumerate(arrays)}})
            found[f"{{index}}.members"] = np.array(members)
        file = io.BytesIO()
        np.savez(file, **found)
        print(file.getvalue().hex())
    """
    import io

    printed = subprocesses.run_python(code, KERAS_BACKEND="jax", timeout=3600)
    stored = np.load(io.BytesIO(bytes.fromhex(printed.splitlines()[-1])))
    results = {}
    for index in range(COUNT):
        names = [n for n in stored.files if n.startswith(f"{index}.") and "members" not in n]
        arrays = [stored[f"{index}.{i}"] for i in range(len(names))]
        results[index] = arrays, list(stored[f"{index}.members"])
    return results


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_random_configurations(backend):
    errors = {"ours": [], "theirs": []}
    for index, (theirs, members) in judged().items():
        case = numbered(index)
        layer = build(case, fastgru)
        ours_members = [layer.dtype, layer.compute_dtype, layer.variable_dtype]
        assert [*ours_members, layer.dtype_policy.name] == members
        with fastgru.use_backend(backend):
            outputs = layer(case.x, initial_state=case.states, mask=case.mask)
        ours = flatten(outputs)
        assert [a.shape for a in ours] == [a.shape for a in theirs], case
        off = max(np.abs(a - b).max(initial=0) for a, b in zip(ours, theirs, strict=True))
        assert off <= TOLERANCE * EPS[case.dtype], f"{index}: {off}, {case}"
        exact = in_float64(case)
        for name, arrays in (("ours", ours), ("theirs", theirs)):
            off = max(np.abs(a - b).max(initial=0) for a, b in zip(arrays, exact, strict=True))
            errors[name].append(off / EPS[case.dtype])
    assert np.mean(errors["ours"]) <= np.mean(errors["theirs"])  # by more than a half, mostly


def in_float64(case):
    """Return what the layer would give without rounding, from the same numbers."""
    weights = [w.astype(case.dtype) for w in case.weights]
    layer = build(case._replace(weights=weights), fastgru, "float64")
    states = None if case.states is None else [s.astype("float64") for s in case.states]
    outputs = layer(case.x.astype("float64"), initial_state=states, mask=case.mask)
    return flatten(outputs)


def layers_of(library, dtype):
    """One of each layer, of either library."""
    cells = [library.GRUCell(units, dtype=dtype) for units in (3, 4)]
    return {
        "GRU": library.GRU(3, dtype=dtype),
        "RNN": library.RNN(library.GRUCell(3, dtype=dtype), dtype=dtype),
        "stack": library.RNN(library.StackedRNNCells(cells, dtype=dtype), dtype=dtype),
        "Bidirectional": library.Bidirectional(library.GRU(3, dtype=dtype), dtype=dtype),
        "GRUCell": library.GRUCell(3, dtype=dtype),
    }


def members(layer):
    policy = layer.dtype_policy
    both = [layer.dtype, layer.compute_dtype, layer.variable_dtype]
    return [*both, policy.name, policy.compute_dtype, policy.variable_dtype]


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_and_configs_are_keras(policy):
    live = keras.DTypePolicy(policy)
    for given in (policy, live, keras.dtype_policies.serialize(live)):
        ours, theirs = layers_of(fastgru, given), layers_of(keras.layers, policy)
        for name, layer in ours.items():
            assert members(layer) == members(theirs[name])
            assert layer.get_config()["dtype"] == theirs[name].get_config()["dtype"]
            assert members(type(layer).from_config(theirs[name].get_config())) == members(layer)
            again = type(theirs[name]).from_config(layer.get_config())
            assert members(again) == members(layer)
    with_object = {**ours["GRU"].get_config(), "dtype": live}
    assert members(fastgru.GRU.from_config(with_object)) == members(ours["GRU"])


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_variables_and_outputs_are_computed(policy, tmp_path):
    compute = policy.removeprefix("mixed_")
    variable = "float32" if policy != compute else compute
    layer = fastgru.Sequential(
        [
            fastgru.Bidirectional(fastgru.GRU(5, return_sequences=True, dtype=policy)),
            fastgru.GRU(3, return_state=True, kernel_regularizer="l2", dtype=policy),
        ]
    )
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(compute)
    y, state = layer(x)
    assert y.dtype == state.dtype == compute
    assert {v.dtype.name for v in layer.weights} == {variable}
    (y, state), tape = layer.forward(x)
    grads = layer.backward(tape, np.ones_like(y), None)
    assert grads.inputs.dtype == compute
    assert [g.dtype for g in grads.weights] == [v.dtype for v in layer.trainable_weights]
    for weight, gradient in zip(layer.trainable_weights, grads.weights, strict=True):
        weight.assign_sub(gradient)
    y, _ = layer(x)
    fastgru.save(layer, tmp_path / "a.safetensors")
    loaded = fastgru.load(tmp_path / "a.safetensors")
    for other in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert members(other) == members(layer)
        np.testing.assert_array_equal(other(x)[0], y)
    plain = layer.from_config(layer.get_config())
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(plain(x)[0], y)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_mixed_policy_computes_with_rounded_weights(policy):
    compute = policy.removeprefix("mixed_")
    mixed, pure = fastgru.GRU(5, dtype=policy), fastgru.GRU(5, dtype=compute)
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(compute)
    mixed.build(x.shape)
    pure.build(x.shape)
    pure.set_weights([w.astype(compute) for w in mixed.get_weights()])
    np.testing.assert_array_equal(mixed(x), pure(x))
    before = mixed.get_weights()[0]
    tiny = before * np.float32(2.0**-13)  # too little for 16 bits, but not for the variables
    for _ in range(4):
        mixed.kernel.assign_add(tiny)
    assert (mixed.kernel.value != before).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stateful", [True, False])
def test_pieces_dropout_and_resets(policy, stateful):
    """What a layer keeps and draws has the dtype of calls; both backends have the same numbers."""
    compute = policy.removeprefix("mixed_")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 6, 4)).astype(compute)
    resets = rng.random((3, 6)) < 0.3
    options = {"dropout": 0.3, "recurrent_dropout": 0.4, "seed": 1, "dtype": policy}
    results = []
    for backend in ("cpu", "reference"):
        layer = fastgru.GRU(5, return_sequences=True, stateful=stateful, **options)
        layer.build(x.shape)
        weights = np.random.default_rng(1)
        layer.set_weights([weights.normal(0, 0.3, v.shape).astype(v.dtype) for v in layer.weights])
        with fastgru.use_backend(backend):
            y = layer(x, reset_mask=resets, training=True)
            whole = layer(x)
            if stateful:
                assert layer.states[0].dtype == compute
                layer.reset_states()
                halves = [layer(x[:, :2]), layer(x[:, 2:])]
                layer.reset_states()
                np.testing.assert_array_equal(np.concatenate(halves, axis=1), layer(x))
        assert y.dtype == compute
        results.append([y.astype("float32"), whole.astype("float32")])
    np.testing.assert_allclose(*results, rtol=0, atol=2 * EPS[compute])


def test_functions():
    x = np.random.default_rng(0).standard_normal((3, 6, 4)).astype("float16")
    layer = fastgru.GRU(5, return_sequences=True, return_state=True, dtype="float16")
    y, state = layer(x)
    got, last = fastgru.gru(x, *layer.get_weights())
    np.testing.assert_array_equal(got, y)
    np.testing.assert_array_equal(last, state)
    step = fastgru.gru_cell(x[:, 0], np.zeros((3, 5), "float16"), *layer.get_weights())
    assert step.dtype == "float16"
    np.testing.assert_array_equal(step, y[:, 0])


@pytest.mark.parametrize("name", ["mixed_bfloat16", "float16"])
def test_a_quantized_policy_stands_for_what_it_was_made_from(name):
    assert fastgru.GRU(3, dtype=f"int8_from_{name}").dtype_policy.name == name
