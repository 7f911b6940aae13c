"""What the CUDA kernels take of a multiprocessor: registers and spills, from `ptxas -v`.

Needs no GPU: pip's nvidia-cuda-nvrtc compiles them as CuPy does, for sm_80, sm_90 and sm_100, with
tanh and sigmoid. Then, how the persistent kernels are cut on a device of a given size.

    pip install nvidia-cuda-nvrtc
    PYTHONPATH=. python benchmarks/registers.py
"""

import argparse
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np

from fastgru import activations
from fastgru._cuda import source
from fastgru.backends import cuda_persistent
from fastgru.dtypes import sum_dtype

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from nvrtc import Nvrtc

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
DTYPES = ("float32", "float64", "float16", "bfloat16")
KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def kernels(nvrtc: Nvrtc, arch: str, dtype: str) -> dict[str, tuple[int, int]]:
    """Return {kernel: (registers, bytes of stack and spills)}."""
    options = source.options(np.dtype(dtype), activations.tanh, activations.sigmoid)
    found = {}
    for program in source.PROGRAMS:
        _, log = nvrtc.compile(
            source.text(program),
            *("-std=c++17", f"-arch={arch}", "-ftz=true", "--ptxas-options=-v", *options),
        )
        for name, *spilled, registers in KERNEL.findall(log):
            found[name] = (int(registers), sum(map(int, spilled)))
    return found


def plan(dtype: str, planes: int, batch: int, units: int, blocks: int, shared: int) -> str:
    """Return how a persistent kernel is cut, as a cell of the table."""
    engine = SimpleNamespace(residency=lambda: (blocks, shared), resident_blocks=lambda *_: blocks)
    sums = sum_dtype(np.dtype(dtype))
    call = SimpleNamespace(engine=engine, B=batch, T=1, H=units, sums=sums, options=())
    cut = cuda_persistent.plan(call, "", planes)
    return f"{cut.blocks} x {cut.units}, {cut.tile}, {cut.shared_bytes >> 10}" if cut else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=132, help="multiprocessors (H100, H200: 132)")
    parser.add_argument("--shared-kb", type=int, default=227, help="of a block (sm_90: 227)")
    arguments = parser.parse_args()
    nvrtc = Nvrtc()
    columns = [(dtype, arch) for dtype in DTYPES for arch in ARCHITECTURES]
    taken = {column: kernels(nvrtc, *reversed(column)) for column in columns}
    worst = max(spilled for column in taken.values() for _, spilled in column.values())
    print(f"Registers a thread, NVRTC {nvrtc.version()}, tanh and sigmoid.")
    print(f"Most bytes of stack and spills of any kernel: {worst}.\n")
    print(f"{'':18}" + "".join(f"{dtype:21}" for dtype in DTYPES).rstrip())
    print(f"{'':18}" + "".join(f"{arch:7}" for _, arch in columns).rstrip())
    for name in taken[columns[0]]:
        row = "".join(f"{taken[column][name][0]:<7}" for column in columns)
        print(f"{name:18}{row.rstrip()}")

    print(
        f"\nPersistent kernels on {arguments.blocks} multiprocessors with {arguments.shared_kb} KB:"
    )
    print("blocks x units of each, rows of a tile, KB of shared memory; -: step by step\n")
    print(f"{'':16}{'H':6}" + "".join(f"{f'B = {batch}':18}" for batch in (1, 8, 32)).rstrip())
    for dtype in ("float32", "float64"):
        for what, planes in (("forward", 1), ("back", 3)):
            for units in (128, 256, 512, 1024, 1536):
                cells = (
                    plan(dtype, planes, batch, units, arguments.blocks, arguments.shared_kb << 10)
                    for batch in (1, 8, 32)
                )
                line = f"{dtype} {what:8}{units:<6}" + "".join(f"{cell:18}" for cell in cells)
                print(line.rstrip())


if __name__ == "__main__":
    main()
