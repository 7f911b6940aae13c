"""benchmarks/soak.py: eight threads call, stream and swap weights; two minutes of it, or seconds.

FASTGRU_EXHAUSTIVE=1 runs the two minutes.
"""

import sys
from pathlib import Path

import pytest
import subprocesses
from exhaustive import EVERYTHING

from fastgru.backends import cpu as cpu_backend

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        cpu_backend.build_info().get("kernel") != "fused",
        reason="results are bit for bit the same on the fused kernel alone",
    ),
]


# With two threads a call, memory settles only as every stream has been cut in every way.
@pytest.mark.parametrize(("threads", "judged"), [("1", ("numbers", "memory")), ("2", ("numbers",))])
def test_weights_are_swapped_under_load(threads, judged, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    seconds = 120 if EVERYTHING else 2
    judged = ("numbers", "memory") if EVERYTHING else judged
    said = subprocesses.run_script(
        SOAK, "--seconds", seconds, "--judge", *judged, timeout=seconds + 120
    )
    assert "wrong: none" in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_the_soak_sees_weights_that_are_mixed(monkeypatch):
    """What judges must be able to fail: here every swap leaves half of it undone."""
    sys.path.insert(0, str(SOAK.parent))
    try:
        import soak
    finally:
        sys.path.remove(str(SOAK.parent))
    monkeypatch.setattr(soak, "SWAPS", 0.3)
    monkeypatch.setattr(soak, "ROUNDS", 1)
    subject = soak.Soak()
    for layer, sets in zip(subject.layers, subject.weights, strict=True):
        sets[1][0] = layer.get_weights()[0] * 0.5
    workers, memory = subject.run(0.5)
    assert any("neither the old nor the new" in w for worker in workers for w in worker.wrong)
    assert memory[0] > 0
