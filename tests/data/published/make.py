"""Write what the libraries compute with the trained models of tests/io/test_io_published_models.py.

The packages lie in a folder, as `pip download --no-deps` leaves them; nothing is downloaded here.
Each file of this folder is made by one library::

    FASTGRU_MODELS=models python tests/data/published/make.py keras2   # tensorflow, tf_keras 2.21
    FASTGRU_MODELS=models python tests/data/published/make.py keras3   # keras 3.15.1, on jax
    FASTGRU_MODELS=models python tests/data/published/make.py torch    # torch 2.13.0, safetensors
    FASTGRU_MODELS=models python tests/data/published/make.py webrtc   # g++

An array is called ``<model>/<gru>:x``, ``:y``, ``:mask``, ``:lengths``.
"""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "support"))
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np  # noqa: E402
import published_models as models  # noqa: E402


def keras2(into):
    import tf_keras

    yield "crema", models.crema_judge(models.fetch("crema", into / "crema"))
    folder = models.fetch("sleepecg_0_5_5", into / "sleepecg")
    for name in models.CLASSIFIERS:
        path = models.classifier_file(folder, name, "0.5.5", into)
        yield f"sleepecg_0_5_5/{name}", models.classifier_judge(tf_keras, path)


def keras3(into):
    import keras

    folder = models.fetch("sleepecg_0_5_9", into / "sleepecg")
    for name in models.CLASSIFIERS:
        path = models.classifier_file(folder, name, "0.5.9", into)
        yield f"sleepecg_0_5_9/{name}", models.classifier_judge(keras, path)


def torch(into):
    yield "persian", models.persian_judge(models.fetch("persian", into / "persian"))
    yield "g2p_en", models.g2p_judge(models.fetch("g2p_en", into / "g2p_en"))
    folder = models.fetch("e2k", into / "e2k")
    for name in (*models.E2K, "accent"):
        yield f"e2k/{name}", models.e2k_judge(folder, name)


def webrtc(into):
    yield "webrtc", models.webrtc_judge(models.fetch("webrtc", into / "webrtc"), into)


if __name__ == "__main__":
    kind = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        made = {
            f"{model}/{key}": array
            for model, arrays in globals()[kind](Path(folder))
            for key, array in arrays.items()
        }
    np.savez_compressed(HERE / f"{kind}.npz", **made)
