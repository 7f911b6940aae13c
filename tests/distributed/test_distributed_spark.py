"""`fastgru.distributed.spark` on Spark itself, with Python workers in processes of their own."""

import os
import shutil
import signal
import sys
from pathlib import Path

import docs_support
import numpy as np
import pytest
import subprocesses

import fastgru
from fastgru import dispatch
from fastgru.distributed import spark

pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
pytest.importorskip("pyspark", reason="pip install 'fastgru[spark]', and Java")

# PySpark 4.0 leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HERE = Path(__file__).parent
predict_udf = spark.predict_udf
B, T, I, H = 37, 9, 5, 6


@pytest.fixture(scope="module")
def session():
    """Two threads of Java, each with a Python process of its own."""
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        pytest.skip("Spark needs Java; Debian: openjdk-17-jre-headless")
    from pyspark.sql import SparkSession

    options = {
        "spark.ui.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", subprocesses.environment(HERE)["PYTHONPATH"])
        builder = SparkSession.builder.master("local[2, 2]").config(map=options)  # one retry
        with builder.getOrCreate() as session:
            session.sparkContext.setLogLevel("OFF")  # it tells at length of a process that died
            yield session


def saved(layer, folder):
    """Build a layer with weights of which none is zero, and save it."""
    rng = np.random.default_rng(5)
    layer.build((None, None, I))
    layer.set_weights([rng.normal(size=w.shape).astype(w.dtype) / 2 for w in layer.weights])
    path = folder / "layer.safetensors"
    fastgru.save(layer, path)
    return path


def columns(dtype):
    """Rows padded with NaN; two lengths are 0, one mask is empty."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(B, T, I)).astype(dtype)
    lengths = rng.integers(0, T + 1, size=B)
    lengths[[3, 8]] = 0
    mask = (np.arange(T) < lengths[:, None]) & (rng.random((B, T)) < 0.8)
    x[np.arange(T) >= lengths[:, None]] = np.nan
    return {
        "id": np.arange(B),
        "x": x,
        "n": lengths,
        "mask": mask,
        "resets": rng.random((B, T)) < 0.1,
        "a": rng.normal(size=(B, H)).astype(dtype),
        "b": rng.normal(size=(B, H)).astype(dtype),
    }


def frame(session, table):
    """Return the rows as a data frame in five partitions, arrays flat."""
    number = {"float32": "float", "float64": "double"}[table["x"].dtype.name]
    kinds = {"id": "long", "n": "long", "mask": "array<boolean>", "resets": "array<boolean>"}
    names = ", ".join(f"{name} {kinds.get(name, f'array<{number}>')}" for name in table)
    flat = [c.tolist() if c.ndim == 1 else c.reshape(B, -1).tolist() for c in table.values()]
    return session.createDataFrame([*zip(*flat, strict=True)], names).repartition(5)


def collected(rows):
    """Return the results of column "out", a list of columns, in the order of the rows' numbers."""
    found = sorted(rows.select("id", "out").collect(), key=lambda row: row["id"])
    assert [row["id"] for row in found] == [*range(B)]
    results = [row["out"] if isinstance(row["out"], tuple) else (row["out"],) for row in found]
    return [np.array(column) for column in zip(*results, strict=True)]


CASES = {
    "lengths": (lambda: fastgru.GRU(H), ["lengths"], ["n"]),
    "float64": (lambda: fastgru.GRU(H, dtype="float64", return_sequences=True), ["lengths"], ["n"]),
    "masks": (
        lambda: fastgru.GRU(H, return_sequences=True, return_state=True),
        ["reset_mask", "initial_state", "mask"],
        ["resets", "a", "mask"],
    ),
    "two directions": (
        lambda: fastgru.Bidirectional(fastgru.GRU(H, return_state=True)),
        ["initial_state", "lengths"],
        ["a", "b", "n"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_that_of_one_call(session, tmp_path, case):
    make, arguments, names = CASES[case]
    layer = make()
    path = saved(layer, tmp_path)
    table = columns(layer.dtype)
    given = {"mask": table["mask"], "lengths": table["n"], "reset_mask": table["resets"]}
    given["initial_state"] = [table["a"], table["b"]][: names.count("a") + names.count("b")]
    results = layer(table["x"], **{what: given[what] for what in arguments})
    results = results if isinstance(results, tuple) else (results,)
    outputs = ["y", "first", "second"][: len(results)]
    predict = predict_udf(path, T, arguments=arguments, outputs=outputs, batch_size=4)
    rows = frame(session, table).withColumn("out", predict("x", *names))
    kind = {"float32": "array<float>", "float64": "array<double>"}[layer.dtype]
    if len(outputs) > 1:
        kind = f"struct<{','.join(f'{name}:{kind}' for name in outputs)}>"
    assert dict(rows.dtypes)["out"] == kind
    for got, expected in zip(collected(rows), results, strict=True):
        assert got.reshape(expected.shape).astype(expected.dtype).tobytes() == expected.tobytes()


def killing(marker):
    """Return a function of numbers that kills its process at number 20, the first time."""
    from pyspark.sql.functions import udf

    def passed_on(number):
        if number == 20:
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return number
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return udf(passed_on, "long")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is POSIX")
def test_a_killed_worker_changes_nothing(session, tmp_path):
    layer = fastgru.GRU(H)
    path = saved(layer, tmp_path)
    table = columns("float32")
    marker = tmp_path / "killed"
    predict = predict_udf(path, T, arguments=["lengths"], batch_size=4)
    rows = frame(session, table).withColumn("out", predict("x", "n"))
    (got,) = collected(rows.withColumn("id", killing(str(marker))("id")))
    assert marker.exists(), "nobody was killed"
    expected = layer(table["x"], lengths=table["n"])
    assert got.astype("float32").tobytes() == expected.tobytes()


def test_a_worker_computes_on_one_thread(tmp_path, monkeypatch):
    layer = fastgru.GRU(H)
    path = saved(layer, tmp_path)
    asked = []
    chosen = dispatch.choose
    monkeypatch.setattr(
        dispatch, "choose", lambda problem: asked.append(problem.num_threads) or chosen(problem)
    )
    table = columns("float32")
    predict = spark._load_predict(str(path), ("lengths",), ("y",), 2)
    assert predict(table["x"], table["n"]).shape == (B, H)
    assert asked == [1]


def test_wrong_arguments(tmp_path):
    path = saved(fastgru.GRU(H, return_state=True), tmp_path)
    two = ["y", "state"]
    for error, message, how in [
        (ValueError, r"outputs: expected 2 names.*got \['y'\]", {}),
        (
            ValueError,
            "arguments: expected some of mask, lengths, .*got 'length'",
            {"outputs": two, "arguments": ["length"]},
        ),
        (TypeError, "expected lists of names", {"outputs": two, "arguments": "lengths"}),
        (ValueError, "timesteps: expected an integer >= 1, got 0", {"timesteps": 0}),
    ]:
        with pytest.raises(error, match=message):
            predict_udf(path, **{"timesteps": T, **how})
    for layer, message in [
        (fastgru.GRU(H, stateful=True), "expected stateful=False"),
        (fastgru.GRU(H, time_major=True), "expected time_major=False"),
        (fastgru.GRU(H, dtype="float16"), "expected a layer of float32 or float64, got float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict_udf(saved(layer, tmp_path), T)


def test_the_documentation(session, tmp_path):
    docs_support.run("distributed.md", "Spark", tmp_path)
