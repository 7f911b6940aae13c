"""What a layer and its inference add to the process: what is returned, packed weights, scratch."""

import sys

import pytest
from subprocesses import environment, run_python

pytest.importorskip("fastgru._native._kernels", reason="the extension is not built")
pytestmark = pytest.mark.alone

CODE = """
    import numpy as np
    import fastgru

    def status(name):
        lines = open("/proc/self/status").read().splitlines()
        return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) * 1024

    fastgru.GRU(4)(np.zeros((2, 3, 5), np.float32))  # imports everything
    before = status("VmRSS")
    x = np.random.default_rng(0).standard_normal((32, 1000, 256), np.float32)
    layer = fastgru.GRU(512, return_state=True, ARGUMENTS)
    y, state = layer(x)
    peak = status("VmHWM")
    weights = sum(weight.nbytes for weight in layer.get_weights())
    print(peak - before, x.nbytes + y.nbytes + state.nbytes + 2 * weights)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(
    "arguments",
    [
        "return_sequences=True",
        # Without 65 MB of outputs the peak would be the QR decomposition of the default
        # recurrent_initializer: LAPACK takes 30 MB for it.
        "return_sequences=False, recurrent_initializer='glorot_uniform'",
    ],
)
def test_peak_of_inference(arguments):
    # Weights twice, because they are packed. 16 MB for the scratch of the threads, of which there
    # are two here, and for what the initializers leave in the allocator; the input's projection,
    # were it made for all steps at once, would take 197 MB.
    code = CODE.replace("ARGUMENTS", arguments)
    added, expected = map(int, run_python(code, environment(), OMP_NUM_THREADS="2").split())
    assert added <= expected + 16e6, f"{added / 1e6:.1f} MB, expected {expected / 1e6:.1f} + 16 MB"
