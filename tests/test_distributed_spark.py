"""`fastgru.distributed.spark` on Spark itself, with two Python workers in processes of their own."""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import subprocesses

import fastgru

pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
pytest.importorskip("pyspark", reason="pip install 'fastgru[spark]', and Java")

HERE = Path(__file__).parent
predict_udf = fastgru.distributed.spark.predict_udf
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
    number = "float" if table["x"].dtype == np.float32 else "double"
    kinds = {
        **{"id": "long", "x": f"array<{number}>", "n": "long"},
        **{"mask": "array<boolean>", "resets": "array<boolean>"},
        **{"a": f"array<{number}>", "b": f"array<{number}>"},
    }
    flat = [column.reshape(B, -1).tolist() for column in table.values()]
    flat = [[row[0] for row in c] if k == "long" else c for c, k in zip(flat, kinds.values())]
    schema = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    return session.createDataFrame(list(zip(*flat)), schema).repartition(5)


def collected(rows, name, shape, dtype):
    """Return a column of results in the order of the rows' numbers."""
    found = sorted(rows.select("id", name).collect())
    assert [row[0] for row in found] == list(range(B))
    return np.array([row[1] for row in found], dtype).reshape(B, *shape)


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
    for name, expected in zip(outputs, results, strict=True):
        column = "out" if len(outputs) == 1 else f"out.{name}"
        kind = dict(rows.select(column).dtypes).popitem()[1]
        assert kind == {"float32": "array<float>", "float64": "array<double>"}[layer.dtype]
        came = collected(rows, column, expected.shape[1:], expected.dtype)
        assert came.tobytes() == expected.tobytes(), name


def killed_once(marker):
    """Return a function of a column of numbers that kills its process at row 20, the first time."""
    from pyspark.sql.functions import udf

    def pass_on(number):
        if number == 20:
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return number
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return udf(pass_on, "long")
