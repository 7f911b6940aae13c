"""The CUDA backend: every configuration, forward and backward.

The products x.W are made for a chunk of steps at once. Then small batches run a chunk in one
launch, with U in shared memory (`cuda_persistent.py`), where that has room, and all steps back in
another. Otherwise a step is one product with U, two with reset_after=False, three with recurrent
dropout, and everything between them one thread per row and unit (`fastgru/_cuda/gru_kernels.cu`);
so is a step back. After the walk back, dW, dU and dX are single products.

The engine (`fastgru._cuda.engine`) has the arrays, the products and the launches; the tests run
this very code on an engine that emulates the kernels on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru._cuda import engine as engines
from fastgru._cuda import source
from fastgru._cuda.engine import Each, Launch, Product, each
from fastgru.activations import Activation
from fastgru.backends import cuda_persistent as persistent
from fastgru.problem import GRUGrads, GRUOutput, GRUProblem, GRUSpec, GRUWeights

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the inputs of a chunk of steps and their products may take: large enough that the product is
# one of hundreds of rows, small enough that its result is still in the second-level cache.
CHUNK_BYTES = 16 << 20


class CudaBackend:
    """Forward and backward on a CUDA device.

    Parameters
    ----------
    engine : Engine, optional
        Where to compute; without one, CuPy's current device at each call.
    """

    name = "cuda"

    def __init__(self, engine: engines.Engine | None = None) -> None:
        self._engine = engine

    def missing(self) -> str | None:
        """Return what this machine lacks, None for nothing."""
        return None if self._engine else engines.missing()

    def supports(self, problem: GRUProblem) -> str | None:
        """Return None when `forward` can serve the problem, else the reason it cannot."""
        if not (problem.on_device or self._engine):
            return "the arrays are in host memory"
        spec = problem.spec
        for act in (spec.activation, spec.recurrent_activation):
            if type(act) is not Activation:
                return f"activation {getattr(act, '__name__', act)!r} is custom Python code"
            if not act.elementwise:
                return f"activation {act.name!r} is not elementwise"
        return None

    def supports_backward(self, problem: GRUProblem) -> str | None:
        """Return None when `backward` can serve the problem, else the reason it cannot."""
        return self.supports(problem)

    def forward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        save: bool = False,
        keep_gates: bool = True,
    ) -> GRUOutput:
        """Run the layer; with ``save`` also return what `backward` needs."""
        with engines.reported():
            engine = self._engine or engines.current()
            return Call(engine, problem, weights).forward(save, keep_gates)

    def backward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        states: Any,
        dy: Any,
        dstate: Any,
        workspace: Any = None,
    ) -> GRUGrads:
        """Return the gradient of <y, dy> + <state, dstate>; without a workspace, forward again.

        The workspace is overwritten.
        """
        with engines.reported():
            engine = self._engine or engines.current()
            if workspace is None:
                if problem.out is not None:  # the caller's, who may have written there since
                    problem = problem._replace(out=None)
                workspace = Call(engine, problem, weights).forward(True, True).workspace
            return Call(engine, problem, weights).backward(states, dy, dstate, workspace)


class _Packed(NamedTuple):
    """A layer's weights on a device: w (I, 3H), u (H, 3H), bias (4, H).

    The rows of the bias: z and r, those of input and recurrence summed; h of the input; h of the
    recurrence. Sums take it, so it has their dtype.
    """

    spec: GRUSpec
    w: Any
    u: Any
    bias: Any


def _packed(engine: engines.Engine, spec: GRUSpec, weights: GRUWeights) -> _Packed:
    per_device = weights.packed.setdefault("cuda", {})
    packed: _Packed | None = per_device.get(engine)
    if packed is not None and packed.spec == spec:
        return packed
    shape, sums = (4, spec.units), source.sum_dtype(spec.dtype)
    bias = np.zeros_like(weights.kernel, sums, "C", shape=shape)  # on the host or on the device
    if weights.bias is not None:
        rows = weights.bias.astype(sums).reshape(-1, 3, spec.units)
        bias[:3] = rows[0]
        if spec.reset_after:
            bias[:2] += rows[1, :2]
            bias[3] = rows[1, 2]
    arrays = (weights.kernel, weights.recurrent_kernel, bias)
    packed = _Packed(spec, *(engine.array(array) for array in arrays))
    engine.synchronize()
    per_device[engine] = packed
    return packed


class Call:
    """One call: its sizes, its masks on the device, and the struct that the kernels get."""

    def __init__(self, engine: engines.Engine, problem: GRUProblem, weights: GRUWeights) -> None:
        spec, mask = problem.spec, problem.mask
        self.problem, self.spec = problem, spec
        tf32 = spec.precision == "tf32" and spec.dtype == np.float32
        self.engine = engine.with_tf32() if tf32 else engine
        self.B, self.T, self.I = problem.x.shape
        self.H = spec.units
        self.w, self.u, self.bias = _packed(engine, spec, weights)[1:]
        self.has_bias = weights.bias is not None
        self.sums = source.sum_dtype(spec.dtype)
        self.options = source.options(spec.dtype, spec.activation, spec.recurrent_activation)
        self.x = engines.whole_strides(engine, problem.x)
        self.dropout = self._optional(problem.dropout)
        self.input_masks = 3 if problem.dropout is not None and problem.dropout.ndim == 3 else 1
        self.state_masks = 1 if problem.recurrent_dropout is None else 3
        lengths = None if mask.lengths is None else mask.lengths.astype(np.int64)
        # The struct holds addresses: the arrays are kept beside it.
        self._arrays = {
            "steps": self._optional(mask.steps),
            "lengths": self._optional(lengths),
            "resets": self._optional(problem.resets),
            "recurrent_dropout": self._optional(problem.recurrent_dropout),
            "h0": self._optional(problem.h0),
        }
        self.struct = source.struct(
            source.CALL,
            **{name: getattr(self, name) for name in "BTIH"},
            reset_after=spec.reset_after,
            reverse=problem.reverse,
            sequences=problem.return_sequences,
            zero_masked=problem.zero_output_for_mask,
            **{name: engine.address(array) for name, array in self._arrays.items()},
        )

    def _optional(self, values: Any) -> Any:
        return None if values is None else self.engine.array(values)

    def launch(self, name: str, size: int, *arguments: Any) -> None:
        """Run a kernel that makes ``size`` elements; the struct is its first argument."""
        self.engine.launch(*self.kernel(name, size, *arguments))

    def kernel(self, name: str, size: int, *arguments: Any) -> Launch:
        """Return what `launch` would run, for the engine to repeat."""
        return Launch(name, self.options, size, (self.struct, *arguments))

    def gate(self, g: int) -> slice:
        """Return the columns of gate g (z, r, h) in an array of 3H."""
        return slice(g * self.H, (g + 1) * self.H)

    def pack_x(self, first: int, steps: int, out: Any = None) -> Any:
        """Return the inputs of some steps as products take them: (input_masks, steps * B, I)."""
        shape = (self.input_masks, steps * self.B, self.I)
        if out is None:
            out = self.engine.empty(shape, self.spec.dtype)
        out = out.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        strides = [stride // self.x.itemsize for stride in self.x.strides]
        self.launch(
            "pack_x",
            *(steps * self.B * self.I, first, steps, self.engine.address(self.x), *strides),
            *(self.dropout, self.input_masks, out),
        )
        return out

    # ---- forward ---------------------------------------------------------------------------------

    def forward(self, save: bool, keep_gates: bool) -> GRUOutput:
        """Run the layer; y is `problem.out` if there is one."""
        B, T, H = self.B, self.T, self.H
        engine, empty, dtype = self.engine, self.engine.empty, self.spec.dtype
        y, y_strides = self._output()
        states = empty((T, B, H), dtype) if save else None
        kept = empty((T, B, 4, H), dtype) if save and keep_gates else None
        addresses = [engine.address(array) for array in (y, states, kept)]
        results = source.struct(
            source.RESULTS,
            **dict(zip(("y", "states", "kept"), addresses, strict=True)),
            **dict(zip(("y_b", "y_s"), y_strides, strict=True)),
        )
        plan = persistent.forward_plan(self)
        h = persistent.forward(self, results, plan) if plan else self._step_by_step(results)
        if self.problem.out is not None and y is not self.problem.out:
            self.problem.out[...] = y
            y = self.problem.out
        return GRUOutput(y, h, None if states is None else states.transpose(1, 0, 2), kept)

    def _step_by_step(self, results: np.ndarray) -> Any:
        """Run all steps, a product and a kernel each, and return the last state."""
        B, H, empty, dtype = self.B, self.H, self.engine.empty, self.spec.dtype
        size = B * H
        h = empty((B, H), dtype)
        k = empty((3, B, H), dtype) if self.state_masks == 3 else None
        q = empty((B, 3 * H), self.sums)
        z, rk = (None, None)
        if not self.spec.reset_after:
            z, rk = empty((B, H), self.sums), empty((B, H), dtype)
        self.launch("start", size, h, k)
        for first, steps, products in self.input_products():
            p = each(products.reshape(steps, B, 3 * H))
            common = (results, Each(first, 1), p, q, self.bias, h, k)
            if self.spec.reset_after:
                calls = [
                    *self._recurrent_products(h, k, q, 3),
                    self.kernel("step_after", size, *common),
                ]
            else:
                calls = [
                    *self._recurrent_products(h, k, q, 2),
                    self.kernel("step_before_zr", size, *common, z, rk),
                    Product(rk, self.u[:, self.gate(2)], q[:, self.gate(2)]),
                    self.kernel("step_before_h", size, *common, z),
                ]
            self.engine.repeat(steps, calls)
        return h

    def _output(self) -> tuple[Any, tuple[int, int]]:
        """Return where y goes, and its strides of rows and steps in elements."""
        p, sequences = self.problem, self.problem.return_sequences
        y = p.out
        if y is None or engines.whole_strides(self.engine, y) is not y or _has_gaps(y):
            shape = (self.B, self.T, self.H) if sequences else (self.B, self.H)
            y = self.engine.empty(shape, self.spec.dtype)
        if not self.T:
            y.fill(0)
        strides = [stride // y.itemsize for stride in y.strides]
        return y, (strides[0], strides[1] if sequences else 0)

    def input_products(self) -> Iterator[tuple[int, int, Any]]:
        """Yield chunks of steps: the first, how many, and x.W of all of them, (steps * B, 3H)."""
        B, H = self.B, self.H
        x_bytes = self.input_masks * B * self.I * self.spec.dtype.itemsize
        step_bytes = x_bytes + 3 * B * H * self.sums.itemsize
        chunk = max(1, min(self.T, CHUNK_BYTES // max(step_bytes, 1)))
        x = self.engine.empty((self.input_masks, chunk * B, self.I), self.spec.dtype)
        p = self.engine.empty((chunk * B, 3 * H), self.sums)
        for first in range(0, self.T, chunk):
            steps = min(chunk, self.T - first)
            parts = self.pack_x(first, steps, x)
            rows = p[: steps * B]
            if self.input_masks == 1:
                self.engine.gemm(parts[0], self.w, rows)
            else:
                for g, part in enumerate(parts):
                    self.engine.gemm(part, self.w[:, self.gate(g)], rows[:, self.gate(g)])
            yield first, steps, rows

    def _recurrent_products(self, h: Any, k: Any, q: Any, gates: int) -> list[Launch | Product]:
        """Return q = h.U of the first gates; with recurrent dropout from the masked states k."""
        if k is None:
            part = slice(0, gates * self.H)
            return [Product(h, self.u[:, part], q[:, part])]
        columns = (self.gate(g) for g in range(gates))
        return [Product(k[g], self.u[:, part], q[:, part]) for g, part in enumerate(columns)]

    # ---- backward --------------------------------------------------------------------------------

    def backward(self, states: Any, dy: Any, dstate: Any, d: Any) -> GRUGrads:
        """Return the gradients; d (T, B, 4, H) is what forward kept and is overwritten."""
        B, T, H, engine = self.B, self.T, self.H, self.engine
        states = engine.array(states.transpose(1, 0, 2))
        dy = self._optional(dy)
        carry, pending = engine.zeros((B, H), self.sums), engine.zeros((B, H), self.sums)
        if dstate is not None:
            carry[...] = engine.array(dstate)
        plan = persistent.backward_plan(self)
        if plan is None:
            dh0 = self._walk_back(states, dy, carry, pending, d)
        else:
            dh0 = persistent.backward(self, plan, states, dy, carry, pending, d)
        rows = d.reshape(T * B, 4 * H)
        dx, dw = self._input_gradients(rows)
        du = self._recurrent_gradient(rows, states)
        return GRUGrads(dx, dh0, dw, du, self._bias_gradient(rows) if self.has_bias else None)

    def _walk_back(self, states: Any, dy: Any, carry: Any, pending: Any, d: Any) -> Any:
        """Run all steps back, a product and a kernel each, and return dh0 (B, H)."""
        B, T, H, engine = self.B, self.T, self.H, self.engine
        products = engine.empty((self.state_masks, B, H), self.sums)
        if T:
            engine.repeat(T, self._step_back(states, dy, products, carry, pending, d))
        dh0 = engine.empty((B, H), self.spec.dtype)
        self.launch("back_end", B * H, carry, products, dh0)
        return dh0

    def _step_back(
        self, states: Any, dy: Any, products: Any, carry: Any, pending: Any, d: Any
    ) -> list[Launch | Product]:
        """Return what a step back is, the last step first; what they do is in the kernels' text."""
        H, size = self.H, self.B * self.H
        s, rows = Each(self.T - 1, -1), d.reshape(self.T, self.B, 4 * H)[::-1]
        calls: list[Launch | Product] = [
            self.kernel("back_step", size, s, states, dy, products, carry, pending, d)
        ]
        if not self.spec.reset_after:
            e = self.engine.empty((self.B, H), self.sums)
            calls += [
                Product(each(rows[:, :, :H]), self.u[:, self.gate(2)].T, e),
                self.kernel("back_reset", size, s, states, e, carry, d),
            ]
        # dq.U^T of the gates whose product is made, all at once without recurrent dropout.
        gates, dq = 3 if self.spec.reset_after else 2, rows[:, :, H:]
        parts = [slice(0, gates * H)] if self.state_masks == 1 else map(self.gate, range(gates))
        return calls + [
            Product(each(dq[:, :, part]), self.u[:, part].T, out)
            for part, out in zip(parts, products, strict=False)
        ]

    def _input_gradients(self, d: Any) -> tuple[Any, Any]:
        """Return dx (B, T, I) and dW (I, 3H); d (T * B, 4H) as the kernels left it."""
        engine, H, dtype = self.engine, self.H, self.spec.dtype
        x = self.pack_x(0, self.T)
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
        """Return dU (H, 3H)."""
        engine, H, rows = self.engine, self.H, self.T * self.B
        k = engine.empty((self.state_masks, rows, H), self.spec.dtype)
        self.launch("recurrent_inputs", rows * H, states, k)
        du = engine.empty((H, 3 * H), self.sums)
        dq, gates = d[:, H:], 3 if self.spec.reset_after else 2
        if self.state_masks == 1:
            engine.gemm(k[0].T, dq[:, : gates * H], du[:, : gates * H])
        else:
            for g in range(gates):
                engine.gemm(k[g].T, dq[:, self.gate(g)], du[:, self.gate(g)])
        if not self.spec.reset_after:
            engine.gemm(d[:, 3 * H :].T, d[:, :H], du[:, self.gate(2)])
        return du.astype(self.spec.dtype, copy=False)

    def _bias_gradient(self, d: Any) -> Any:
        """Return the gradient of the biases in the layer's shape: sums over all steps and rows."""
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


def _has_gaps(array: Any) -> bool:
    return bool(array.shape[-1] > 1 and array.strides[-1] != array.itemsize)
