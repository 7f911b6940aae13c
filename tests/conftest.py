"""What all tests share."""

import os

import pytest

# Before anything imports keras: its NumPy backend is the judge, and the smallest to install.
os.environ["KERAS_BACKEND"] = "numpy"


@pytest.fixture(params=["reference", "default"])
def backend(request):
    """Run the test on the oracle, and on whatever fastgru chooses by itself."""
    import fastgru

    if request.param == "default":
        yield request.param
    else:
        with fastgru.use_backend(request.param):
            yield request.param
