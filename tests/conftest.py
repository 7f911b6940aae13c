"""What all tests share."""

import os
import signal
import sys
from pathlib import Path

import pytest

# pytest puts this folder on the path. Its folders keras and distributed must not be found there as
# the packages of these names, where those are not installed.
sys.path[:] = [place for place in sys.path if place != str(Path(__file__).parent)]

# Before anything imports keras: its NumPy backend is the judge, and the smallest to install.
os.environ["KERAS_BACKEND"] = "numpy"

# A shell starts jobs in the background with SIGINT ignored, and the processes that tests start and
# interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["reference", "default"])
def backend(request):
    """Run the test on the oracle, and on whatever fastgru chooses by itself."""
    import fastgru

    if request.param == "default":
        yield request.param
    else:
        with fastgru.use_backend(request.param):
            yield request.param
