"""New Python processes that import the fastgru under test, wherever it is installed."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fastgru

PLACE = str(Path(fastgru.__file__).parents[1])
SUPPORT = Path(__file__).parent


def environment(*places, **variables):
    """Return os.environ with `places`, fastgru's place and this folder on the path."""
    path = [*map(str, places), PLACE, str(SUPPORT), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p), **variables}


def run_python(code, env=None, timeout=120, **variables):
    """Run code that must succeed and return what it printed.

    -P: the current folder is not on the path, where a checkout without its extensions may lie.
    """
    result = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        env={**(environment() if env is None else env), **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_script(script, *arguments, timeout=120):
    """Run a file, as programs that start processes of their own must be; return its output."""
    result = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
