"""Children of a process whose threads are busy: nothing hangs, and every number is right.

Each test has a process of its own, whose children kill themselves when they hang.
"""

import os
import shutil
import subprocess

import pytest
import subprocesses
from exhaustive import EVERYTHING

from fastgru.backends import cpu as cpu_backend

FORKS = 500 if EVERYTHING else 20

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.skipif(cpu_backend._load() is None, reason="the extension is not built"),
]

SETUP = """
import os, signal, sys, threading, traceback
import numpy as np
import fastgru

rng = np.random.default_rng(0)
layer = fastgru.GRU(96, bias_initializer="random_normal", return_sequences=True, seed=1)
small = rng.standard_normal((1, 60, 40)).astype("float32")  # waits in line with its like
large = rng.standard_normal((48, 20, 40)).astype("float32")  # is shared among threads
old = layer(small), layer(large)
weights = layer.get_weights()
layer.set_weights([w * 1.5 for w in weights])
new = layer(small), layer(large)
model = fastgru.Sequential([fastgru.GRU(12, dropout=0.5, return_sequences=True), fastgru.GRU(7)])
model(large)

def is_one_of(y, i):
    return (y == old[i]).all() or (y == new[i]).all()

def check():
    # Everything that takes a lock, starts a thread or waits in line.
    assert is_one_of(layer(large), 1) and is_one_of(layer(small), 0)
    y, tape = layer.forward(large)
    assert is_one_of(y, 1)
    layer.backward(tape, y)
    threads = [threading.Thread(target=layer, args=(small,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream = layer.stream(3)
    stream.step(small[0, :3])
    model(large, training=True)
    fastgru.GRU(3)(large)
    layer.set_weights(weights)
    assert (layer(large) == old[1]).all()

def fork(work=check, seconds=60):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(seconds)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

def finish(child):
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"a child ended with status {status}"
"""

BUSY = """
done = threading.Event()
wrong = []

def busy(k):
    while not done.is_set():
        if k == 0:
            layer.set_weights([w * 1.5 for w in weights] if rng.random() < 0.5 else weights)
        elif k == 1:
            model(large, training=True)
        elif k == 2:
            fastgru.GRU(3)(small)
        elif not is_one_of(layer(large if k % 2 else small), k % 2):
            wrong.append(k)

callers = [threading.Thread(target=busy, args=(k,)) for k in range(7)]
for caller in callers:
    caller.start()
for _ in range(FORKS):
    finish(fork())
done.set()
for caller in callers:
    caller.join()
assert not wrong, wrong
check()
"""


def run(code, timeout=120, **variables):
    # Python 3.12 and later warn of every fork of a process with threads.
    environment = subprocesses.environment(**{"PYTHONWARNINGS": "ignore", **variables})
    return subprocesses.run_python(SETUP + code, environment, timeout=timeout)


def test_children_of_a_process_whose_threads_are_busy():
    run(BUSY.replace("FORKS", str(FORKS)), timeout=60 + 3 * FORKS)


def test_children_of_children():
    run("fork_two = lambda: (check(), finish(fork()), check())\nfinish(fork(fork_two))\ncheck()")


def test_workers_that_are_forked_beforehand_share_the_work():
    """As gunicorn with preload: the parent loads and warms up, and only its children compute."""
    run("""
check()
workers = [fork(lambda: [check() for _ in range(5)]) for _ in range(4)]
for worker in workers:
    finish(worker)
""")


def test_a_child_may_start_threads_again():
    run(
        """
from fastgru.backends import cpu

def shared():
    lanes = cpu._load() and cpu._native._kernels.lanes(4)  # the BLAS kernel has other ways to share
    if lanes and cpu._native._kernels.OPENMP and fastgru.get_num_threads() > 1:
        from fastgru._native import _partition
        x = np.repeat(large, 10, axis=0)
        layer(x, num_threads=2)
        assert _partition.costs()["region"] > 0
        assert _partition.plan(layer.cell.spec, lanes, (4800, 200), False, 2)[0] == 2
shared()
finish(fork(shared))
""",
        OMP_NUM_THREADS="2",
    )


@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside a region"])
def test_threads_that_another_library_has_started(tmp_path, inside):
    """A library on the same OpenMP leaves threads behind that the child does not have."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build another library with OpenMP")
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "#include <omp.h>\n"
        "void region(void (*call)(void)) {\n"
        "    volatile int ran[3];\n"
        "#pragma omp parallel num_threads(3)\n"
        "    {\n"
        "        ran[omp_get_thread_num()] = 1;\n"
        "#pragma omp master\n"
        "        if (call)\n"
        "            call();\n"
        "    }\n"
        "}\n"
    )
    command = [compiler, "-fopenmp", "-shared", "-fPIC", "-o", str(library), str(source)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the C compiler (cc) has no OpenMP")
    inside_code = """
@ctypes.CFUNCTYPE(None)
def call():
    finish(fork())

region(call)
"""
    code = f"""
import ctypes
region = ctypes.CDLL({str(library)!r}).region
region(None)
fastgru.set_num_threads(3)  # the first of ours that may start any
{inside_code if inside else "finish(fork())"}
check()
"""
    run(code, OMP_NUM_THREADS="1")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_of_multiprocessing(tmp_path, method):
    script = tmp_path / "work.py"
    script.write_text(
        """
import multiprocessing, sys, threading, warnings
import numpy as np
import fastgru

def answer(layer, x):
    return layer(x)

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Python 3.12's, of forks of a process with threads
    layer = fastgru.GRU(96, bias_initializer="random_normal")
    x = np.random.default_rng(0).standard_normal((48, 20, 40)).astype("float32")
    expected = layer(x)
    done = threading.Event()

    def busy():
        while not done.is_set():
            layer(x)

    callers = [threading.Thread(target=busy) for _ in range(3)]
    for caller in callers:
        caller.start()
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        for y in pool.starmap(answer, [(layer, x)] * 6):
            np.testing.assert_array_equal(y, expected)
    done.set()
"""
    )
    subprocesses.run_script(script, method)


def test_inputs_and_weights_in_files_that_are_mapped_read_only(tmp_path):
    """What joblib hands to its workers: arrays on a read-only map."""
    run(f"""
folder = {str(tmp_path)!r}
for name, array in zip("xkrb", (large, *weights)):
    np.save(f"{{folder}}/{{name}}.npy", array)
x, *mapped = (np.load(f"{{folder}}/{{name}}.npy", mmap_mode="r") for name in "xkrb")
assert isinstance(x, np.memmap) and not x.flags.writeable

def work():
    layer.set_weights(mapped)
    assert (layer(x) == old[1]).all()
    assert (layer(x[::2]) == old[1][::2]).all()
    assert (layer(x, lengths=np.load(folder + "/n.npy", mmap_mode="r")) == old[1]).all()
    stream = layer.stream(48)
    assert (stream.step(x[:, 0]) == old[1][:, 0]).all()

np.save(folder + "/n.npy", np.full(48, 20))
for child in [fork(work) for _ in range(3)]:
    finish(child)
""")


def test_workers_of_joblib_map_large_inputs_read_only(tmp_path):
    pytest.importorskip("joblib", reason="needs joblib")
    script = tmp_path / "work.py"
    script.write_text(
        """
import joblib
import numpy as np
import fastgru

def part(layer, x, i):
    assert isinstance(x, np.memmap) and not x.flags.writeable
    return layer(x[i::4])

if __name__ == "__main__":
    layer = fastgru.GRU(96, bias_initializer="random_normal")
    x = np.random.default_rng(0).standard_normal((48, 20, 40)).astype("float32")
    expected = layer(x)
    work = (joblib.delayed(part)(layer, x, i) for i in range(4))
    parts = joblib.Parallel(n_jobs=2, max_nbytes=1000)(work)
    for i, y in enumerate(parts):
        np.testing.assert_array_equal(y, expected[i::4])
"""
    )
    subprocesses.run_script(script)
