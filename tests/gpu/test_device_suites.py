"""The library's own tests with every call on a device: `calls_on_device` moves what they pass.

Without a GPU the device is the stand-in of `fake_cupy` and runs a part of them; with
FASTGRU_EXHAUSTIVE=1, or on a GPU, all. What they compare with, Keras included, is on the host.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import subprocesses
from cuda_emulator import needs_compiler
from exhaustive import EVERYTHING

TESTS = Path(__file__).parents[1]

# The fewest calls that run on the device, and the tests that cannot be about one, with the reason.
SUITES = {
    "layers/test_semantics.py": (1500, {}),
    "layers/test_semantics_numbers.py": (
        800,
        {"layers_dtype_comes_out or python_floats_never": "lists stay on the host beside arrays"},
    ),
    "layers/test_layers.py": (
        150,
        {"explain_says_who or show_config": "the names of the host's backends"},
    ),
    "layers/test_layers_arrays.py": (
        300,
        {
            "DLPack or memoryview or lists or __array__ or Variable": "kinds of arrays on the host",
            "out_is_written and True-True or out_of_bidirectional": "views of what was moved",
        },
    ),
    "layers/test_tape.py": (300, {"saving_the_states": "the names of the host's backends"}),
    "layers/test_dropout.py": (150, {}),
    "layers/test_stream.py": (
        250,
        {
            "own_buffer": "a copy comes back",
            "number_of_threads": "threads of the host",
            "any_array and list": "bits of the host's kernels",
        },
    ),
    "layers/test_functional.py": (
        200,
        {
            "lists_and_callables": "lists stay on the host beside arrays",
            "gru_out and True": "views of what was moved",
            "wrong_calls_of_gru and (half or states)": "on a device halves are allowed",
        },
    ),
    "keras/test_keras_figures.py": (80, {}),
    "building_blocks/test_regularizers_constraints.py": (0, {}),
}
LONG_SUITES = {
    "layers/test_gradients.py": (17000, {}),
    "keras/test_keras_random.py": (800, {}),
    "keras/test_keras_grid.py": (
        5000,
        {"custom_cell": "cells of the tests with weights on the host"},
    ),
}


# A part of them does with cuDNN. And what else waits for a GPU must run on one when that is there.
WITH_CUDNN = [
    "layers/test_semantics.py",
    "layers/test_tape.py",
    "layers/test_layers.py",
    "keras/test_keras_figures.py",
]
FOR_A_GPU = [
    "gpu/test_gpu.py::test_sizes[resident-128-True-float32]",
    "gpu/test_gpu_cudnn.py::test_grid[11-lengths-float32]",
    "gpu/test_gpu_cudnn.py::test_every_algorithm",
    "gpu/test_gpu_cudnn.py::test_both_directions_at_once",
]
ALL = [*SUITES, *LONG_SUITES]


def assert_passes(suite, folder, device):
    """Run a file's tests on a device, all that are about one."""
    fewest, unfit = (SUITES | LONG_SUITES).get(suite, (0, {}))
    calls = folder / "calls"
    environment = subprocesses.environment()
    environment |= {"FASTGRU_DEVICE": device, "FASTGRU_CALLS_FILE": str(calls)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "calls_on_device", "-p"]
    command += ["no:cacheprovider", "--tb=short", str(TESTS / suite)]
    if unfit:
        command += ["-k", f"not ({' or '.join(f'({names})' for names in unfit)})"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
    assert int(calls.read_text()) >= fewest


@needs_compiler
@pytest.mark.parametrize("suite", ALL if EVERYTHING else SUITES)
def test_on_the_emulated_device(suite, tmp_path):
    assert_passes(suite, tmp_path, "emulated")


@needs_compiler
@pytest.mark.parametrize("suite", ALL if EVERYTHING else WITH_CUDNN)
def test_on_the_emulated_device_with_cudnn(suite, tmp_path):
    assert_passes(suite, tmp_path, "with cudnn")


@needs_compiler
@pytest.mark.parametrize("test", FOR_A_GPU)
def test_what_waits_for_a_gpu(test, tmp_path):
    assert_passes(test, tmp_path, "with cudnn")


@pytest.mark.gpu
@pytest.mark.parametrize("suite", ALL)
def test_on_a_gpu(suite, tmp_path):
    cupy = pytest.importorskip("cupy", reason="needs CuPy", exc_type=ImportError)
    if not cupy.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert_passes(suite, tmp_path, "cupy")
