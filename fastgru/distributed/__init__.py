"""Layers on many machines, with the engines Dask, Ray Data and Spark.

The rows of a batch do not depend on each other. So each engine splits the batch, runs the layer on
the parts and joins the results: `dask.apply`, `ray.Predictor`, `spark.predict_udf`. The engines do
all scheduling, retrying and transport. They are extras, imported when they are used.
"""

from fastgru.distributed import dask, ray, spark

__all__ = ["dask", "ray", "spark"]
