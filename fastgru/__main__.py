"""``python -m fastgru``."""

import sys

from fastgru.cli import main

sys.exit(main())
