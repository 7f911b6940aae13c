"""`fastgru.distributed.ray` as a plain function, and on Ray Data with two actors."""

import os
import signal
from pathlib import Path

import docs_support
import numpy as np
import pytest
import subprocesses

import fastgru
from fastgru import dispatch

pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")

# Ray uses what it has deprecated, and leaves its processes to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:::ray\."),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HERE = Path(__file__).parent
Predictor = fastgru.distributed.ray.Predictor
B, T, I, H = 37, 9, 5, 6


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(5)
    layer = fastgru.GRU(H, return_sequences=True, return_state=True)
    layer.build((None, None, I))
    layer.set_weights([rng.normal(size=w.shape).astype("float32") / 2 for w in layer.weights])
    return layer


@pytest.fixture(scope="module")
def path(layer, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "gru.safetensors"
    fastgru.save(layer, path)
    return path


def columns():
    """Padded rows; two lengths are 0, and what is padded is NaN."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(B, T, I)).astype("float32")
    lengths = rng.integers(0, T + 1, size=B)
    lengths[[3, 8]] = 0
    x[np.arange(T) >= lengths[:, None]] = np.nan
    return {
        "id": np.arange(B) * 10,
        "x": x,
        "n": lengths,
        "h0": rng.normal(size=(B, H)).astype("float32"),
        "mask": rng.random((B, T)) < 0.8,
        "resets": rng.random((B, T)) < 0.1,
    }


NAMES = {"lengths": "n", "initial_state": "h0", "outputs": ["y", "state"], "keep": ["id"]}


def expected(layer, table):
    y, state = layer(table["x"], table["h0"], lengths=table["n"])
    return {"id": table["id"], "y": y, "state": state}


def assert_same_bits(got, expected):
    assert list(got) == list(expected)
    for name, column in expected.items():
        assert (got[name].shape, got[name].dtype) == (column.shape, column.dtype)
        assert got[name].tobytes() == column.tobytes(), name


@pytest.mark.parametrize("source", ["path", "layer"])
def test_a_batch_is_one_call_and_may_be_read_only(layer, path, source):
    table = columns()
    for column in table.values():
        column.setflags(write=False)
    predict = Predictor({"path": path, "layer": layer}[source], **NAMES)
    assert_same_bits(predict(table), expected(layer, table))
    x = np.nan_to_num(table["x"])
    masked = Predictor(
        str(path), sequences="z", mask="mask", reset_mask="resets", outputs=("a", "b")
    )
    a, b = layer(x, mask=table["mask"], reset_mask=table["resets"])
    assert_same_bits(masked({**table, "z": x}), {"a": a, "b": b})


def test_a_state_for_each_direction():
    both = fastgru.Bidirectional(fastgru.GRU(H, return_state=True), merge_mode="sum")
    both.build((None, None, I))
    table = columns()
    table["back"] = table["h0"][::-1]
    names = {**NAMES, "initial_state": ["h0", "back"], "outputs": ["y", "state", "state_back"]}
    results = both(table["x"], [table["h0"], table["back"]], lengths=table["n"])
    expected = dict(zip(names["outputs"], results, strict=True))
    assert_same_bits(Predictor(both, **names)(table), {"id": table["id"], **expected})


def test_arrays_of_a_device_go_in_and_host_arrays_come_out(layer, monkeypatch):
    fake_cupy = cupy_without_a_gpu(monkeypatch)
    seen = []
    predict = Predictor(layer, on_device=True, **NAMES)
    monkeypatch.setattr(
        predict, "layer", lambda *a, **k: seen.append(type(k["lengths"])) or layer(*a, **k)
    )
    table = columns()
    got, on_host = predict(table), expected(layer, table)
    assert seen == [fake_cupy.ndarray]
    for name, column in on_host.items():
        assert type(got[name]) is np.ndarray
        np.testing.assert_allclose(got[name], column, rtol=0, atol=4e-6)


def cupy_without_a_gpu(monkeypatch):
    from cuda_emulator import COMPILER

    if not COMPILER:
        pytest.skip("the emulated device needs g++")
    import fake_cupy

    fake_cupy.install(monkeypatch.setattr, monkeypatch.setitem)
    return fake_cupy


def test_a_batch_is_computed_on_one_thread_unless_said(layer, monkeypatch):
    asked = []
    chosen = dispatch.choose
    monkeypatch.setattr(
        dispatch, "choose", lambda problem: asked.append(problem.num_threads) or chosen(problem)
    )
    Predictor(layer, **NAMES)(columns())
    Predictor(layer, num_threads=3, **NAMES)(columns())
    assert asked == [1, 3]


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (fastgru.GRU(H, stateful=True), ValueError, "expected stateful=False"),
        (fastgru.GRU(H, time_major=True), ValueError, "expected time_major=False"),
        (fastgru.GRU(H), ValueError, "it has no weights yet, and each worker"),
        (fastgru.GRUCell(H), TypeError, "expected GRU, RNN, Bidirectional or Sequential"),
    ],
)
def test_layers_that_no_actor_can_run(layer, error, message):
    with pytest.raises(error, match=message):
        Predictor(layer)


def test_wrong_columns(layer):
    table = columns()
    with pytest.raises(ValueError, match=r"outputs: expected 2 names.*got \['y'\]"):
        Predictor(layer)(table)
    with pytest.raises(ValueError, match=r"expected a column 'length', got \['h0', 'id'"):
        Predictor(layer, lengths="length")(table)
    with pytest.raises(TypeError, match="expected lists of column names"):
        Predictor(layer, outputs="y")
    ragged = np.empty(B, object)
    ragged[:] = [row[:n] for row, n in zip(table["x"], table["n"], strict=True)]
    with pytest.raises(ValueError, match=r"column 'x': expected arrays of one shape.*pad them"):
        Predictor(layer, **NAMES)({**table, "x": ragged})


# ---- on Ray --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    """Ray Data on two processors."""
    ray = pytest.importorskip("ray", reason="pip install 'fastgru[ray]'")
    data = pytest.importorskip("ray.data", reason="pip install 'fastgru[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home folder
        patch.setenv("PYTHONPATH", subprocesses.environment(HERE)["PYTHONPATH"])
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield data
        ray.shutdown()


LOADED = []


class Told(Predictor):
    """A predictor that says in which process it is and how often it was made, and dies if told."""

    def __init__(self, path, marker=None):
        super().__init__(path, **NAMES)
        self.marker = marker
        LOADED.append(path)

    def __call__(self, batch):
        if self.marker and (batch["id"] == 200).any():
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        told = np.broadcast_to([os.getpid(), len(LOADED)], (len(batch["id"]), 2))
        return {**super().__call__(batch), "told": told}


def on_ray(data, table, *arguments):
    rows = data.from_items(
        [{name: column[i] for name, column in table.items()} for i in range(B)],
        override_num_blocks=9,
    )
    done = rows.map_batches(
        Told,
        fn_constructor_args=arguments,
        batch_size=3,
        compute=data.ActorPoolStrategy(size=2),
        num_cpus=1,
    ).take_all()
    done.sort(key=lambda row: row["id"])
    got = {name: np.stack([row[name] for row in done]) for name in done[0]}
    return got, {tuple(told) for told in got.pop("told").tolist()}


def test_two_actors_give_the_result_of_one_call(data, layer, path):
    table = columns()
    got, told = on_ray(data, table, path)
    processes = {process for process, _ in told}
    assert len(processes - {os.getpid()}) == 2
    assert {loaded for _, loaded in told} == {1}
    assert_same_bits(got, expected(layer, table))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX")
def test_a_killed_actor_changes_nothing(data, layer, path, tmp_path):
    table = columns()
    marker = tmp_path / "killed"
    got, _ = on_ray(data, table, path, str(marker))
    assert marker.exists(), "nobody was killed"
    assert_same_bits(got, expected(layer, table))


def test_the_documentation(data, tmp_path):
    docs_support.run("distributed.md", "Ray Data", tmp_path)
