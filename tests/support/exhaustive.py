"""How much is to be tested: FASTGRU_EXHAUSTIVE=1 runs all of what usually is a sample."""

import os

EVERYTHING = os.environ.get("FASTGRU_EXHAUSTIVE", "0") not in ("", "0")
