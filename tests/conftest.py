"""What all tests share: the judge's backend, the path, and what runs beside what with pytest-xdist.

With ``pytest -n auto`` each worker runs whole test modules. Tests that measure time, memory or how
threads share the processors have the marker ``alone``: they come last, one after the other, and
nothing runs beside them.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

try:
    import fcntl
except ImportError:  # Windows: alone only among themselves
    fcntl = None

# pytest puts this folder on the path. Its folders keras and distributed must not be found there as
# the packages of these names, where those are not installed.
sys.path[:] = [place for place in sys.path if place != str(Path(__file__).parent)]

# Before anything imports keras: its NumPy backend is the judge, and the smallest to install.
os.environ["KERAS_BACKEND"] = "numpy"

# A shell starts jobs in the background with SIGINT ignored, and the processes that tests start and
# interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MOST_WORKERS = 4  # each imports Keras and JAX, and what is alone does not become faster


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Return what ``-n auto`` means: one worker a processor."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, MOST_WORKERS)


def pytest_configure(config):
    """Let xdist keep groups together and in their order; let processes share what they compile."""
    if "FASTGRU_CUDA_SHIM" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="cuda_shim")
        os.environ["FASTGRU_CUDA_SHIM"] = folder.name  # see cuda_emulator; children inherit it
        config.add_cleanup(folder.cleanup)
    if getattr(config.option, "dist", "no") == "load":  # what -n means by itself
        config.option.dist = "loadgroup"
        config.option.loadscopereorder = False


# Of `pytest -m quick`: what most mistakes break, in modules that start no processes.
QUICK = {
    *("test_activations", "test_gates", "test_masks", "test_variables", "test_seeds"),
    *("test_semantics", "test_semantics_numbers", "test_options", "test_errors", "test_functional"),
    *("test_stream", "test_tape", "test_configs", "test_half", "test_cli", "test_io_safetensors"),
    *("test_keras_pages", "test_keras_surface", "test_io_torch_weights", "test_training_page"),
}


def is_alone(item):
    return item.get_closest_marker("alone") is not None


def pytest_collection_modifyitems(config, items):
    """Mark what is quick; make each module a group of xdist's, all that is alone the last one."""
    for item in items:
        if item.path.stem in QUICK and not is_alone(item):
            item.add_marker("quick")
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=is_alone)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("alone" if is_alone(item) else item.path.stem))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Hold a lock that several tests share, or that one that is alone has for itself."""
    if fcntl is None or not hasattr(item.config, "workerinput"):
        return (yield)
    with open(__file__) as file:
        fcntl.flock(file, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:  # closing is not enough: a forked child may have the file open still
            fcntl.flock(file, fcntl.LOCK_UN)


@pytest.fixture(params=["reference", "default"])
def backend(request):
    """Run the test on the oracle, and on whatever fastgru chooses by itself."""
    import fastgru

    if request.param == "default":
        yield request.param
    else:
        with fastgru.use_backend(request.param):
            yield request.param
