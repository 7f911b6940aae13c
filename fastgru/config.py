"""show_config: what this build and this machine will use."""

from __future__ import annotations

import sys

from fastgru.threads import get_num_threads
from fastgru.version import __version__


def show_config() -> None:
    """Print versions, CPU features in use, BLAS, threads, GPU and cuDNN."""
    import platform

    import numpy
    import scipy

    from fastgru import dispatch
    from fastgru._cuda import engine, libcudnn
    from fastgru.backends import cpu

    slow = cpu.CPUBackend().missing()
    rows = {
        **({"NOT COMPILED": f"NumPy computes, 4 to 50 times slower: {slow}"} if slow else {}),
        "fastgru": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.machine()}, {sys.byteorder}-endian",
        **{key: str(value) for key, value in cpu.build_info().items()},
        "threads": str(get_num_threads()),
        "backends": ", ".join(dispatch.available()),
        "gpu": engine.missing() or engine.current().describe(),
        "cudnn": libcudnn.missing() or f"version {libcudnn.load().getVersion()}",
    }
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:<{width}}  {value}")
