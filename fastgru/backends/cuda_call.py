"""One call on a CUDA device: its arrays and weights there, and the products of many steps at once.

The walks over the steps, `cuda_steps` and `cuda_persistent`, take what they need from a `CudaCall`.
Its engine (`fastgru._cuda.engine`) has the arrays, the products and the launches; the tests run the
same code on an engine that emulates the kernels on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru._cuda import engine as engines
from fastgru._cuda import source
from fastgru._cuda.engine import Launch
from fastgru.dtypes import sum_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgru.problem import GRUProblem, GRUSpec, GRUWeights

# The most bytes of a chunk's inputs and products: large enough for a product of hundreds of rows,
# small enough for its result to be still in the second-level cache when the steps read it.
CHUNK_BYTES = 16 << 20


class DeviceWeights(NamedTuple):
    """A layer's weights on a device: w (I, 3H), u (H, 3H), bias (4, H) in the dtype of sums.

    The rows of the bias: z and r, of input and recurrence summed; h of the input; h of the
    recurrence.
    """

    spec: GRUSpec
    w: Any
    u: Any
    bias: Any


def _on_device(engine: engines.Engine, spec: GRUSpec, weights: GRUWeights) -> DeviceWeights:
    """Return the weights on the engine's device, moved there by the first call."""
    per_device = weights.packed.setdefault("cuda", {})
    there: DeviceWeights | None = per_device.get(engine)
    if there is not None and there.spec == spec:
        return there
    shape, sums = (4, spec.units), sum_dtype(spec.dtype)
    bias = np.zeros_like(weights.kernel, sums, "C", shape=shape)  # on the host or on the device
    if weights.bias is not None:
        rows = weights.bias.astype(sums).reshape(-1, 3, spec.units)
        bias[:3] = rows[0]
        if spec.reset_after:
            bias[:2] += rows[1, :2]
            bias[3] = rows[1, 2]
    arrays = (weights.kernel, weights.recurrent_kernel, bias)
    there = DeviceWeights(spec, *(engine.array(array) for array in arrays))
    engine.synchronize()
    per_device[engine] = there
    return there


class CudaCall:
    """One call: its sizes, its weights and masks on the device, and the struct that kernels get.

    w, u and bias are those of `DeviceWeights`. ``input_masks`` and ``state_masks`` are how many
    masked copies of x and of the state the products take: one for each gate, or one for all.
    ``gates`` is how many gates' products with the state are made before any gate is known.
    """

    def __init__(self, engine: engines.Engine, problem: GRUProblem, weights: GRUWeights) -> None:
        spec, mask = problem.spec, problem.mask
        self.spec, self.sequences = spec, problem.return_sequences
        tf32 = spec.precision == "tf32" and spec.dtype == np.float32
        self.engine = engine.with_tf32() if tf32 else engine
        self.B, self.T, self.I = problem.x.shape
        self.H = spec.units
        self.w, self.u, self.bias = _on_device(engine, spec, weights)[1:]
        self.sums = sum_dtype(spec.dtype)
        self.options = source.options(spec.dtype, spec.activation, spec.recurrent_activation)
        self.x = engines.whole_strides(engine, problem.x)
        self.dropout = None if problem.dropout is None else engine.array(problem.dropout)
        self.input_masks = 3 if problem.dropout is not None and problem.dropout.ndim == 3 else 1
        self.state_masks = 1 if problem.recurrent_dropout is None else 3
        self.gates = 3 if spec.reset_after else 2
        values = {
            "steps": mask.steps,
            "lengths": None if mask.lengths is None else mask.lengths.astype(np.int64),
            "resets": problem.resets,
            "recurrent_dropout": problem.recurrent_dropout,
            "h0": problem.h0,
        }
        # The struct holds addresses only: the arrays are kept beside it.
        self._arrays = {name: engine.array(a) for name, a in values.items() if a is not None}
        addresses = {name: engine.address(array) for name, array in self._arrays.items()}
        self.common = source.common_struct(problem, **addresses)

    def launch(self, name: str, size: int, *arguments: Any) -> None:
        """Run a kernel that makes ``size`` elements; the struct is its first argument."""
        self.engine.repeat(1, [self.kernel(name, size, *arguments)])

    def kernel(self, name: str, size: int, *arguments: Any) -> Launch:
        """Return what `launch` would run, for the engine to repeat."""
        return Launch(name, self.options, size, (self.common, *arguments))

    def gate(self, g: int) -> slice:
        """Return the columns of gate g (z, r, h) in an array of 3H."""
        return slice(g * self.H, (g + 1) * self.H)

    def columns(self, masks: int, gates: int = 3) -> list[slice]:
        """Return which columns of the first gates the product of each masked copy makes."""
        return [self.gate(g) for g in range(gates)] if masks == 3 else [slice(0, gates * self.H)]

    def output(self, out: Any) -> tuple[Any, int, int]:
        """Return where kernels write y, and its strides of rows and steps in elements.

        That is ``out`` if it is an array whose last axis has no gaps, and else a new array.
        """
        y = out
        gaps = y is not None and self.H > 1 and y.strides[-1] != y.itemsize
        if y is None or gaps or engines.whole_strides(self.engine, y) is not y:
            shape = (self.B, self.T, self.H) if self.sequences else (self.B, self.H)
            y = self.engine.empty(shape, self.spec.dtype)
        if not self.T:
            y.fill(0)
        strides = engines.element_strides(y)
        return y, strides[0], strides[1] if self.sequences else 0

    # ---- x.W -------------------------------------------------------------------------------------

    def _pack_x(self, first: int, steps: int, out: Any) -> Any:
        """Return the inputs of some steps as products take them: (input_masks, steps * B, I)."""
        shape = (self.input_masks, steps * self.B, self.I)
        out = out.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        at, strides = self.engine.address(self.x), engines.element_strides(self.x)
        size = steps * self.B * self.I
        arguments = (first, steps, at, *strides, self.dropout, self.input_masks, out)
        self.launch("pack_x", size, *arguments)
        return out

    def _inputs(self, steps: int) -> Any:
        """Return a new array for the inputs of some steps."""
        return self.engine.empty((self.input_masks, steps * self.B, self.I), self.spec.dtype)

    def input_products(self) -> Iterator[tuple[int, int, Any]]:
        """Yield chunks of steps: the first, how many, and x.W of all of them, (steps * B, 3H)."""
        B, H = self.B, self.H
        x_bytes = self.input_masks * B * self.I * self.spec.dtype.itemsize
        step_bytes = x_bytes + 3 * B * H * self.sums.itemsize
        chunk = max(1, min(self.T, CHUNK_BYTES // max(step_bytes, 1)))
        x, p = self._inputs(chunk), self.engine.empty((chunk * B, 3 * H), self.sums)
        for first in range(0, self.T, chunk):
            steps = min(chunk, self.T - first)
            parts = self._pack_x(first, steps, x)
            rows = p[: steps * B]
            for part, columns in zip(parts, self.columns(self.input_masks), strict=True):
                self.engine.gemm(part, self.w[:, columns], rows[:, columns])
            yield first, steps, rows

    # ---- the gradients of all steps at once ------------------------------------------------------

    def gradients(self, d: Any, states: Any) -> tuple[Any, Any, Any, Any]:
        """Return dx (B, T, I), dW (I, 3H), dU (H, 3H), and the gradient of the bias or None.

        Parameters
        ----------
        d : array, shape (T * B, 4H)
            What the walk back left there.
        states : array, shape (T, B, H)
        """
        dx, dw = self._input_gradients(d)
        du = self._recurrent_gradient(d, states)
        return dx, dw, du, self._bias_gradient(d) if self.spec.use_bias else None

    def _input_gradients(self, d: Any) -> tuple[Any, Any]:
        engine, H, dtype = self.engine, self.H, self.spec.dtype
        x = self._pack_x(0, self.T, self._inputs(self.T))
        dw = engine.empty((self.I, 3 * H), self.sums)
        shares = engine.empty((self.input_masks, self.T * self.B, self.I), self.sums)
        if self.input_masks == 1:
            engine.gemm(x[0].T, d[:, H : 3 * H], dw[:, : 2 * H])
            engine.gemm(x[0].T, d[:, :H], dw[:, 2 * H :])
            w = engine.empty((self.I, 3 * H), dtype)  # in the order of d: one product for all gates
            w[:, :H], w[:, H:] = self.w[:, 2 * H :], self.w[:, : 2 * H]
            engine.gemm(d[:, : 3 * H], w.T, shares[0])
        else:
            for g, part in enumerate((slice(H, 2 * H), slice(2 * H, 3 * H), slice(0, H))):
                engine.gemm(x[g].T, d[:, part], dw[:, self.gate(g)])
                engine.gemm(d[:, part], self.w[:, self.gate(g)].T, shares[g])
        dx = engine.empty((self.B, self.T, self.I), dtype)
        size = self.B * self.T * self.I
        self.launch("unpack_dx", size, shares, self.dropout, self.input_masks, dx)
        return dx, dw.astype(dtype, copy=False)

    def _recurrent_gradient(self, d: Any, states: Any) -> Any:
        engine, H, rows = self.engine, self.H, self.T * self.B
        k = engine.empty((self.state_masks, rows, H), self.spec.dtype)
        self.launch("recurrent_inputs", rows * H, states, k)
        du = engine.empty((H, 3 * H), self.sums)
        for part, columns in zip(k, self.columns(self.state_masks, self.gates), strict=False):
            engine.gemm(part.T, d[:, H:][:, columns], du[:, columns])
        if not self.spec.reset_after:
            engine.gemm(d[:, 3 * H :].T, d[:, :H], du[:, self.gate(2)])
        return du.astype(self.spec.dtype, copy=False)

    def _bias_gradient(self, d: Any) -> Any:
        """Return the sums over all steps and rows, in the layer's shape."""
        engine, H = self.engine, self.H
        ones = engine.empty((1, self.T * self.B), self.spec.dtype)
        ones.fill(1)
        sums = engine.empty((1, 4 * H), self.sums)
        engine.gemm(ones, d, sums)
        db = engine.empty((2 if self.spec.reset_after else 1, 3 * H), self.spec.dtype)
        db[0, : 2 * H], db[0, 2 * H :] = sums[0, H : 3 * H], sums[0, :H]
        if not self.spec.reset_after:
            return db[0]
        db[1] = sums[0, H:]
        return db
