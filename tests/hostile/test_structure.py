"""Valid files whose structure is drawn large: each is read or is a ValueError, within its bounds.

See tests/support/structure_fuzz.py, which this runs in processes of their own: 200 files of each
kind, and 20,000 with FASTGRU_EXHAUSTIVE=1; ``pytest -s`` prints what the worst of them cost.
"""

import importlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import subprocesses
from exhaustive import EVERYTHING
from hdf5_writer import Group, Strings, hdf5

if sys.platform != "linux":
    pytest.skip("memory is measured by Linux' /proc", allow_module_level=True)

import structure_fuzz

COUNT = 20_000 if EVERYTHING else 200
KINDS = sorted(structure_fuzz.kinds())


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind(kind):
    script = subprocesses.SUPPORT / "structure_fuzz.py"
    done = subprocess.run(
        [sys.executable, "-P", script, kind, "0", str(COUNT)],
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=60 + COUNT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    print(f"\n{kind}: {figures}")
    assert figures["read"] + figures["refused"] == COUNT
    assert figures["read"] > COUNT / 10, "nothing but refusals would prove little"


@pytest.mark.parametrize("module", structure_fuzz.MODULES)
def test_kinds_of_each_module(module):
    if module in structure_fuzz.MISSING:
        pytest.skip(f"{module} needs {structure_fuzz.MISSING[module]}")
    assert importlib.import_module(module).KINDS.keys() <= set(KINDS)


def test_hdf5_that_is_written_here_is_what_libhdf5_reads():
    h5py = pytest.importorskip("h5py", reason="it reads the file")
    array = np.arange(6, dtype="f4").reshape(2, 3)
    root = Group(many=Group(**{f"n{i}": array for i in range(3000)}))
    root.links["up"] = root
    root.put("a/b/c", array[:0])
    root.links["ends"] = Group()
    root.links["ends"].ends = "abab", array
    root.attributes = {"one": "é", "short": ["a", "bc"], "numbers": np.ones(3)}
    root.attributes["same"] = Strings(["x" * 9000, "", "y", "x" * 9000])
    with h5py.File(io.BytesIO(hdf5(root)), "r") as file:
        assert len(file["many"]) == 3000
        assert np.array_equal(file["up/many/n2999"], array)
        assert file["a/b/c"].shape == (0, 3)
        assert sorted(file["ends"]) == ["ab", "abab", "b", "bab"]
        assert file.attrs["one"] == "é"
        assert list(file.attrs["short"]) == [b"a", b"bc"]
        assert list(file.attrs["same"]) == ["x" * 9000, "", "y", "x" * 9000]
        assert np.array_equal(file.attrs["numbers"], np.ones(3))
