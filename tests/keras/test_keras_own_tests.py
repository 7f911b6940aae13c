"""The recurrent tests inside the installed keras package, with fastgru doing its GRU layers' work.

They run in a pytest of their own, because `keras_behind_fastgru` changes keras for good.
"""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import subprocesses

keras = pytest.importorskip("keras", reason="its own tests are run; pip install fastgru[test]")

MODULES = ["gru", "rnn", "bidirectional", "stacked_rnn_cells", "dropout_rnn_cell"]
# Those of other backends, which Keras skips by itself on this one.
SKIPPED = {
    "gru_test.test_stateful_with_symbolic_batch_size": "TensorFlow backend",
    "gru_test.test_torch_cudnn_dispatch_fires": "torch-backend",
    "bidirectional_test.test_torch_cudnn_bidirectional_gru_dispatch_fires": "torch-backend",
}
# Among them are all that give figures for a GRU, masks, states and both directions included.
THROUGH_FASTGRU = 31  # calls of fastgru.gru in keras 3.15.1
RUN = 43


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Run Keras' tests; return the JUnit report's test cases and how often fastgru was called."""
    folder = tmp_path_factory.mktemp("keras")
    source = Path(keras.__file__).parent / "src" / "layers" / "rnn"
    files = [source / f"{module}_test.py" for module in MODULES]
    assert all(file.exists() for file in files), "keras ships its tests"
    config = folder / "pytest.ini"
    config.write_text("[pytest]\n")
    environment = {
        **subprocesses.environment(),
        "KERAS_BACKEND": "numpy",
        "FASTGRU_CALLS_FILE": str(folder / "calls"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "keras_behind_fastgru"]
    command += ["-p", "no:cacheprovider", "--import-mode=importlib", "-c", str(config)]
    command += [
        "-o",
        "junit_family=xunit1",
        "--junitxml",
        str(folder / "report.xml"),
        *map(str, files),
    ]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert (folder / "report.xml").exists(), done.stdout + done.stderr
    cases = ElementTree.parse(folder / "report.xml").getroot().iter("testcase")
    return list(cases), int((folder / "calls").read_text()), done.stdout


def name_of(case):
    return f"{Path(case.get('file')).stem}.{case.get('name')}"


def test_none_fails(session):
    cases, _, output = session
    failed = [
        name_of(c) for c in cases for kind in ("failure", "error") if c.find(kind) is not None
    ]
    assert not failed, output[-5000:]


def test_those_that_cannot_run_are_of_other_backends(session):
    cases, _, _ = session
    skipped = {
        name_of(c): c.find("skipped").get("message") for c in cases if c.find("skipped") is not None
    }
    assert skipped.keys() == SKIPPED.keys()
    for name, reason in SKIPPED.items():
        assert reason in skipped[name]
    assert len(cases) - len(skipped) >= RUN


def test_fastgru_did_the_work(session):
    _, calls, _ = session
    assert calls >= THROUGH_FASTGRU
