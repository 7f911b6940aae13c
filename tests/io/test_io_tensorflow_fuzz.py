"""Altered models of several files: each is read or is a ValueError, in little time and memory.

10,000 of each kind with FASTGRU_EXHAUSTIVE=1, some hundred otherwise; ``pytest -s`` prints figures.
"""

import importlib.util
import json
import subprocess
import sys

import pytest
import subprocesses
from exhaustive import EVERYTHING

COUNT = 10_000 if EVERYTHING else 250
NEEDS = {"keras_shards": "h5py", "torch_shards": "safetensors"}


@pytest.mark.parametrize("kind", ["checkpoint", "tensorflow_js", "keras_shards", "torch_shards"])
def test_altered_files(kind):
    if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
        pytest.skip(f"writing the files needs {NEEDS[kind]}")
    script = subprocesses.SUPPORT / "folder_fuzz.py"
    done = subprocess.run(
        [sys.executable, script, kind, "0", str(COUNT)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout)
    print(f"\n{kind}: {ends}")
    assert ends["read"] + ends["refused"] == COUNT
    assert ends["refused"] > COUNT / 4
    assert ends["read"] > COUNT / 50, "nothing but errors would prove little"
    assert ends["s"] < 2
    assert ends["MB"] < 500
