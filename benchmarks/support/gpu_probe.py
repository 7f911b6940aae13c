"""What gpu.py measures of fastgru itself, on the device and below its layers.

One process, behind the same pipe as the peers; each method is one request, so that an error costs
one line of a table. Times are the device's own, between events, and the least of a few runs.
"""

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 3
CUDNN_STEPS = 64
MATHS = {"float32": ("float32", None), "tf32": ("float32", "tf32")}
MATHS |= {name: (name, None) for name in ("float16", "bfloat16")}

# The kernels' own barrier, so often that the launch is nothing beside it.
BARRIERS = """
KERNEL many_barriers(unsigned *arrived, long long rounds) {
    for (long long round = 1; round <= rounds; round++)
        grid_barrier(arrived, (unsigned)round);
}
"""


class Probe:
    """Ours, on CuPy's current device."""

    def __init__(self, threads: int) -> None:
        del threads
        sys.path.append(str(Path(__file__).resolve().parents[2]))  # an installed one comes first
        import cupy

        import fastgru

        cupy.cuda.runtime.getDevice()  # raises what is wrong with the device
        self._cupy, self._fastgru = cupy, fastgru

    def versions(self) -> dict[str, str]:
        """Give the version of fastgru and CuPy, of CUDA's parts, and what the device is."""
        runtime = self._cupy.cuda.runtime
        device = self._cupy.cuda.Device()
        properties = runtime.getDeviceProperties(device.id)
        found: dict[str, object] = {
            "fastgru": self._fastgru.__version__,
            "cupy": self._cupy.__version__,
            "driver": runtime.driverGetVersion(),
            "runtime": runtime.runtimeGetVersion(),
            "cublas": self._cublas_version(),
            "cudnn": self._cudnn_version(),
            "device": properties["name"].decode(),
            "compute capability": device.compute_capability,
            "multiprocessors": properties["multiProcessorCount"],
            "memory, GiB": round(properties["totalGlobalMem"] / 2**30, 1),
            "system": platform.platform(),
        }
        return {name: str(value) for name, value in found.items()}

    def _cublas_version(self) -> int:
        from cupy_backends.cuda.libs import cublas

        version: int = cublas.getVersion(self._cupy.cuda.device.get_cublas_handle())
        return version

    def _cudnn_version(self) -> str:
        from fastgru._cuda import libcudnn

        return libcudnn.missing() or str(libcudnn.load().getVersion())

    def cudnn_missing(self) -> str | None:
        """Return why there is no cuDNN, or None."""
        from fastgru._cuda import libcudnn

        return libcudnn.missing()

    def _microseconds(self, work: Callable[[], object]) -> float:
        events = self._cupy.cuda
        times = []
        work()
        for _ in range(RUNS):
            start, end = events.Event(), events.Event()
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(events.get_elapsed_time(start, end) * 1e3)
        return min(times)

    # ---- cuDNN -----------------------------------------------------------------------------------

    def cudnn(self, math: str, algorithm: str, units: int, batch: int) -> dict[str, Any]:
        """Run one algorithm of cuDNN's GRU, as wide as its input: microseconds a step.

        Parameters
        ----------
        math : str
            Of `MATHS`.
        algorithm : str
            standard, static or small.
        units, batch : int

        Returns
        -------
        dict
            ``status`` is ok, or what cuDNN said; then ``forward`` (inference), ``training``
            (forward and backward), both with steps first, ``rows_first`` (inference, batch-major),
            and ``repeats``: two runs in training give the same bits, of y, dx and all weights.
        """
        if math == "bfloat16":
            import ml_dtypes  # noqa: F401  NumPy knows the name once it is imported
        from fastgru import activations
        from fastgru._cuda import libcudnn
        from fastgru.backends.cudnn import CudnnBackend
        from fastgru.backends.cudnn_call import Net
        from fastgru.problem import GRUSpec

        dtype, precision = MATHS[math]
        spec = GRUSpec(
            *(units, units, np.dtype(dtype), activations.tanh, activations.sigmoid, True, True),
            precision,
        )
        number = {
            "standard": libcudnn.RNN_ALGO_STANDARD,
            "static": libcudnn.RNN_ALGO_PERSIST_STATIC,
            "small": libcudnn.RNN_ALGO_PERSIST_STATIC_SMALL_H,
        }[algorithm]
        result: dict[str, Any] = {}
        try:
            with CudnnBackend()._session() as session:
                net = Net(session, spec, 1, number)
                forward, training, outputs = self._cudnn_run(net, spec, batch, True)
                result["forward"] = self._microseconds(forward) / CUDNN_STEPS
                result["training"] = self._microseconds(training) / CUDNN_STEPS
                result["repeats"] = outputs() == outputs()
                forward, _, _ = self._cudnn_run(net, spec, batch, False)
                result["rows_first"] = self._microseconds(forward) / CUDNN_STEPS
        except (RuntimeError, TypeError, ValueError) as error:
            return {"status": f"{type(error).__name__}: {error}".splitlines()[0]}
        return result | {"status": "ok"}

    def _cudnn_run(
        self, net: Any, spec: Any, batch: int, steps_first: bool
    ) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], bytes]]:
        """Make arrays; return forward, forward and backward, and the latter with its bits."""
        engine, noise = net.session.engine, np.random.default_rng(1).standard_normal(1 << 16)
        units, outer = spec.units, (CUDNN_STEPS, batch) if steps_first else (batch, CUDNN_STEPS)

        def drawn(*shape: int) -> Any:
            # Repeated: drawing millions takes longer than all that is measured.
            return engine.array(np.resize(noise * units**-0.5, shape).astype(spec.dtype))

        x, dy, hx = drawn(*outer, units), drawn(*outer, units), drawn(1, batch, units)
        y, dx, hy, dhx = (engine.zeros(a.shape, spec.dtype) for a in (x, x, hx, hx))
        space = drawn(*net.space().shape)
        desc = net.descriptors(CUDNN_STEPS, [CUDNN_STEPS] * batch, steps_first=steps_first)

        def forward(training: bool = False) -> Any:
            return net.forward(training, desc, x, hx, y, hy, space)

        def training() -> Any:
            dspace = net.space()
            net.backward(desc, x, hx, y, dy, None, dx, dhx, space, dspace, forward(True))
            return dspace

        def outputs() -> bytes:
            dspace = training()
            return b"".join(array.get().tobytes() for array in (y, dx, dspace))

        return forward, training, outputs

    # ---- our own kernels -------------------------------------------------------------------------

    def paths(self, dtype: str, units: int, batch: int, steps: int) -> dict[str, float]:
        """Time forward of the CUDA backend, step by step and in one launch: microseconds a step.

        ``resident``, and the ``tile`` of rows that it multiplies at a time, are missing where the
        persistent kernel has no room.
        """
        from fastgru.backends import cuda_persistent as persistent

        layer, x = self._layer(units, dtype, (batch, steps, units // 2))
        found, kept = {}, (persistent.MAX_ROWS, persistent.MIN_TILE)
        try:
            for name, most in (("steps", 0), ("resident", 1 << 30)):
                persistent.MAX_ROWS, persistent.MIN_TILE = most, 1
                with self._fastgru.use_backend("cuda"):
                    plan = self._planned(persistent, lambda: layer(x))
                    if (plan is not None) == (name == "resident"):
                        found[name] = self._microseconds(lambda: layer(x)) / steps
                    if plan is not None:
                        found["tile"] = plan.tile
        finally:
            persistent.MAX_ROWS, persistent.MIN_TILE = kept
        return found

    @staticmethod
    def _planned(persistent: Any, call: Callable[[], object]) -> Any:
        """Return what a call found as the plan of the persistent kernel."""
        plans, plan = [], persistent.forward_plan

        def noted(asked: Any) -> Any:
            plans.append(plan(asked))
            return plans[-1]

        persistent.forward_plan = noted
        try:
            call()
        finally:
            persistent.forward_plan = plan
        return plans[-1]

    def barrier(self, rounds: int = 2000) -> dict[str, float]:
        """Time the grid barrier of the persistent kernels, with a block on each multiprocessor."""
        from fastgru import activations
        from fastgru._cuda import source

        options = source.options(np.dtype(np.float32), activations.tanh, activations.sigmoid)
        kernel = self._cupy.RawModule(
            code=source.text("forward") + BARRIERS, options=("-std=c++17", *options)
        ).get_function("many_barriers")
        blocks = self._cupy.cuda.Device().attributes["MultiProcessorCount"]
        arrived = self._cupy.zeros(1, np.uint32)

        def work() -> None:
            arrived.fill(0)
            kernel((blocks,), (256,), (arrived, rounds))

        return {"blocks": blocks, "microseconds": self._microseconds(work) / rounds}

    # ---- what must not change --------------------------------------------------------------------

    def memory(self, calls: int) -> dict[str, dict[str, float]]:
        """Count the device's memory after 10 and after many calls, forward and training: MiB."""
        layer, x = self._layer(128, "float32", (8, 10, 64))

        def training() -> None:
            y, tape = layer.forward(x)
            layer.backward(tape, y)

        found = {}
        for name, call in (("forward", lambda: layer(x)), ("training", training)):
            for _ in range(10):
                call()
            first = self._used()
            for _ in range(calls - 10):
                call()
            found[name] = {"after 10": first, f"after {calls}": self._used()}
        return found

    def _used(self) -> float:
        self._cupy.cuda.get_current_stream().synchronize()
        free, total = self._cupy.cuda.runtime.memGetInfo()
        return round((total - free) / 2**20, 1)

    def repeats(self, dtype: str, units: int, batch: int) -> dict[str, bool]:
        """Say whether two runs give the same bits, of y and of every gradient."""
        layer, x = self._layer(units, dtype, (batch, 50, units // 2))

        def run() -> tuple[bytes, bytes]:
            y, tape = layer.forward(x)
            grads = layer.backward(tape, y)
            return y.get().tobytes(), b"".join(
                array.get().tobytes() for array in (grads.inputs, *grads.weights)
            )

        once, again = run(), run()
        return {"forward": once[0] == again[0], "training": once == again}

    def _layer(self, units: int, dtype: str, shape: tuple[int, int, int]) -> tuple[Any, Any]:
        layer: Any = self._fastgru.GRU(units, return_sequences=True, dtype=dtype)
        x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
        return layer, self._cupy.asarray(x)
