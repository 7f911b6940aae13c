"""What `fastgru.distributed` says where an engine is missing; the engines' own tests are beside."""

import sys

import numpy as np
import pytest

import fastgru


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        (
            "dask",
            lambda: fastgru.distributed.dask.apply(fastgru.GRU(2), np.ones((3, 4, 5))),
            "Dask",
        ),
        ("pyspark", lambda: fastgru.distributed.spark.predict_udf("x.safetensors", 4), "PySpark"),
    ],
)
def test_a_missing_engine(monkeypatch, package, call, message):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"needs {message} .*pip install 'fastgru\[\w+\]'"):
        call()
