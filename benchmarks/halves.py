"""float16 and bfloat16 beside float32 on the CPU: the time of a call, side by side.

Each round calls the layers of all dtypes, one after the other; what is printed are the medians of
float32's times and of each round's ratios.

    python benchmarks/halves.py [--seconds S] [--threads N] [B,T,I,H ...]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import ml_dtypes  # noqa: F401  NumPy knows "bfloat16" once it is imported
import numpy as np

import fastgru

# Those of docs/performance.md.
SHAPES = [
    *("1,1,64,128", "1,1,256,512", "1,100,16,32", "1,100,64,128", "1,100,256,256"),
    *("1,100,512,512", "1,50,1024,1024", "4,100,128,256", "8,100,256,512", "32,10,8,4"),
    *("32,100,128,256", "64,100,512,512", "128,50,1024,1024", "256,50,32,64"),
]
DTYPES = ["float32", "float16", "bfloat16"]


def call_of(shape: tuple[int, ...], dtype: str) -> Callable[[], object]:
    """Return a call of a layer that has been called before."""
    batch, steps, inputs, units = shape
    rng = np.random.default_rng(0)
    layer = fastgru.GRU(units, return_sequences=True, dtype=dtype)
    layer.build((batch, steps, inputs))
    scale = units**-0.5
    layer.set_weights([rng.normal(0, scale, v.shape).astype(v.dtype) for v in layer.weights])
    x = rng.standard_normal((batch, steps, inputs)).astype(layer.compute_dtype)
    layer(x)
    return lambda: layer(x)


def seconds_of(call: Callable[[], object], times: int) -> float:
    """Return the seconds of one of so many calls."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape")
    parser.add_argument("--threads", type=int, default=0, help="0: the library's setting")
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    arguments = parser.parse_args()
    if arguments.threads:
        fastgru.set_num_threads(arguments.threads)
    print(f"{'B,T,I,H':>20} {'float32 us':>12}" + "".join(f" {dtype:>9}" for dtype in DTYPES[1:]))
    for text in arguments.shapes:
        shape = tuple(int(size) for size in text.split(","))
        calls = [call_of(shape, dtype) for dtype in DTYPES]
        times = max(1, int(200e-6 / seconds_of(calls[0], 3)))
        rounds: list[list[float]] = []
        end = time.perf_counter() + arguments.seconds
        while len(rounds) < 5 or time.perf_counter() < end:
            rounds.append([seconds_of(call, times) for call in calls])
        base = statistics.median(one[0] for one in rounds)
        ratios = [statistics.median(one[k] / one[0] for one in rounds) for k in (1, 2)]
        print(f"{text:>20} {1e6 * base:12.1f}" + "".join(f" {ratio:9.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
