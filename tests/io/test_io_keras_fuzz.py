"""Altered and hostile Keras files: see keras_fuzz.py, which this runs in a process with limits.

FASTGRU_EXHAUSTIVE=1 runs 10,000 cases of each kind of source instead of some hundred in all.
"""

import json
import subprocess
import sys

import keras_fuzz
import pytest
import subprocesses
from exhaustive import EVERYTHING

COUNT = 120_000 if EVERYTHING else 1_200


@pytest.mark.alone
def test_altered_files(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", keras_fuzz.__file__, "0", str(COUNT), tmp_path],
        env=subprocesses.environment(),
        capture_output=True,
        text=True,
        timeout=COUNT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["loaded"] + figures["refused"] == COUNT + len(keras_fuzz.BOMBS)
    # Neither are all files refused before they are looked at, nor do the changes change nothing.
    assert 0.1 < figures["loaded"] / COUNT < 0.5
    assert list(tmp_path.iterdir()) == []
