"""What all tests share."""

import os
import signal

import pytest

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
