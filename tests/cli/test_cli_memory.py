"""`fastgru run` needs the memory of a batch, not of a file.

With FASTGRU_EXHAUSTIVE=1 the file has 4 GB and the process may have 1 GB of private memory; else
both are smaller. ``pytest -s`` prints the figures.
"""

import subprocess
import sys

import numpy as np
import pytest
import savedmodel_support as support
import subprocesses
from exhaustive import EVERYTHING

import fastgru

I, H, T = 256, 64, 64
if EVERYTHING:
    ROWS, LIMIT, MORE, GROWTH = 65_536, 1 << 30, [], 300_000
else:
    ROWS, LIMIT, MORE, GROWTH = 2_048, 400 << 20, ["--batch-size", "32"], 33_000

# VmHWM is the most memory the process ever had, mapped files included; RssAnon is private memory,
# of which only the present amount is known, so it is looked at when pages are given back.
CHILD = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))
from fastgru.cli import main, run

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))

private = 0
release = run._release

def looked_at(array):
    global private
    private = max(private, status("RssAnon"))
    release(array)

run._release = looked_at
created = run._created

def noted(*arguments):
    # The libraries are loaded by now, and nothing of the file is.
    global before
    before = status("VmHWM")
    return created(*arguments)

run._created = noted
code = main(sys.argv[1:])
print(before, status("VmHWM"), private)
sys.exit(code)
"""


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_a_file_larger_than_the_memory(tmp_path):
    rng = np.random.default_rng(2)
    shapes = (I, 3 * H), (H, 3 * H), (2, 3 * H)
    weights = [rng.normal(0, 0.1, shape).astype("float32") for shape in shapes]
    config = {
        "name": "gru",
        "units": H,
        "implementation": 2,
        "reset_after": True,
        "return_sequences": True,
    }
    folder = support.write_gru(tmp_path / "model", weights, config)
    source, target = tmp_path / "IN.npy", tmp_path / "OUT.npy"
    x = np.lib.format.open_memmap(source, mode="w+", dtype="float32", shape=(ROWS, T, I))
    block = rng.normal(size=(512, T, I)).astype("float32")
    for start in range(0, ROWS, len(block)):
        x[start : start + len(block)] = block + np.float32(start / ROWS)
    del x

    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, "run", folder, source, "-o", target, "--quiet", *MORE],
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    before, peak, private = map(int, done.stdout.split())
    size = (source.stat().st_size + target.stat().st_size) // 1000
    print(
        f"\nfiles {size} kB; VmHWM {before} kB before, {peak} kB at the end; RssAnon {private} kB"
    )
    assert peak - before < GROWTH < size / 5
    assert private * 1024 < LIMIT

    layer = fastgru.GRU(H, return_sequences=True)
    layer.build((None, None, I))
    layer.set_weights(weights)
    y = np.load(target, mmap_mode="r")
    assert y.shape == (ROWS, T, H)
    for start in range(0, ROWS, len(block)):
        expected = layer(block + np.float32(start / ROWS))
        np.testing.assert_array_equal(y[start : start + len(block)], expected)
