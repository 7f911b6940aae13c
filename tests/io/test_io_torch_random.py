"""Random models that PyTorch and safetensors wrote: read right, or refused; never other numbers."""

import numpy as np
import pytest
from exhaustive import EVERYTHING

from fastgru import io

pytest.importorskip("torch", reason="writes models with PyTorch: pip install torch")
pytest.importorskip("safetensors", reason="pip install 'fastgru[safetensors]'")
from torch_random import random_case

COUNT = 300 if EVERYTHING else 60
REFUSED = ("spectral", "other")  # their formulas are in no file


@pytest.mark.filterwarnings("ignore")  # of torch, about what it deprecates
@pytest.mark.parametrize("seed", range(COUNT))
def test_random_models(tmp_path, seed):
    """FASTGRU_EXHAUSTIVE=1: 300 of them."""
    source, prefix, x, y, what = random_case(seed, tmp_path)
    if what.startswith(REFUSED) and ", live" not in what:
        with pytest.raises(ValueError, match="expected under"):
            io.from_torch(source, prefix)
        return
    got = io.from_torch(source, prefix)(x)
    got = got[0] if isinstance(got, (list, tuple)) else got
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-5, err_msg=what)
