"""Layers on many machines, by the engines that people scale with: Dask, Ray Data and Spark.

Rows of a batch do not know of each other, so each engine cuts the batch, runs the layer on the
pieces and puts the results together: `dask.apply`, `ray.Predictor`, `spark.predict_udf`. The
engines do all scheduling, retrying and transport. They are extras, imported when they are used.
"""

from fastgru.distributed import dask, ray, spark

__all__ = ["dask", "ray", "spark"]
