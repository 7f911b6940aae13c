"""The CUDA backend: every configuration, forward and backward.

The products x.W are made for a chunk of steps at once. Then a chunk is one launch of a persistent
kernel where that has room (`cuda_persistent`); otherwise each step is a few launches
(`cuda_steps`). So is the walk back, after which dW, dU and dx are single products (`cuda_call`).
"""

from __future__ import annotations

from typing import Any

from fastgru._cuda import engine as engines
from fastgru._cuda import source
from fastgru.activations import Activation
from fastgru.backends import cuda_persistent, cuda_steps
from fastgru.backends.cuda_call import CudaCall
from fastgru.problem import GRUGrads, GRUOutput, GRUProblem, GRUWeights


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
        self, problem: GRUProblem, weights: GRUWeights, save: bool = False, keep_gates: bool = True
    ) -> GRUOutput:
        """Run the layer; with ``save`` also return what `backward` needs."""
        with engines.reported():
            call = CudaCall(self._engine or engines.current(), problem, weights)
            return _forward(call, problem.out, save, keep_gates)

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
            call = CudaCall(self._engine or engines.current(), problem, weights)
            if workspace is None:
                # Not to `problem.out`: the user may have written there since.
                workspace = _forward(call, None, True, True).workspace
            return _backward(call, states, dy, dstate, workspace)


def _forward(call: CudaCall, out: Any, save: bool, keep_gates: bool) -> GRUOutput:
    """Run the layer; y is ``out`` if that is an array."""
    B, T, H = call.B, call.T, call.H
    empty, address, dtype = call.engine.empty, call.engine.address, call.spec.dtype
    y, row_stride, step_stride = call.output(out)
    states = empty((T, B, H), dtype) if save else None
    kept = empty((T, B, 4, H), dtype) if save and keep_gates else None
    results = source.struct(
        source.RESULTS,
        **{"y": address(y), "y_b": row_stride, "y_s": step_stride},
        **{"states": address(states), "kept": address(kept)},
    )
    plan = cuda_persistent.forward_plan(call)
    if plan is None:
        h = cuda_steps.forward(call, results)
    else:
        h = cuda_persistent.forward(call, plan, results)
    if out is not None and y is not out:
        out[...] = y
        y = out
    return GRUOutput(y, h, None if states is None else states.transpose(1, 0, 2), kept)


def _backward(call: CudaCall, states: Any, dy: Any, dstate: Any, d: Any) -> GRUGrads:
    """Return the gradients; d (T, B, 4, H) is what forward kept and is overwritten."""
    engine, shape = call.engine, (call.B, call.H)
    states = engine.array(states.transpose(1, 0, 2))
    dy = None if dy is None else engine.array(dy)
    carry, pending = engine.zeros(shape, call.sums), engine.zeros(shape, call.sums)
    if dstate is not None:
        carry[...] = engine.array(dstate)
    plan = cuda_persistent.backward_plan(call)
    if plan is None:
        dh0 = cuda_steps.backward(call, states, dy, carry, pending, d)
    else:
        dh0 = cuda_persistent.backward(call, plan, states, dy, carry, pending, d)
    dx, dw, du, db = call.gradients(d.reshape(call.T * call.B, 4 * call.H), states)
    return GRUGrads(dx, dh0, dw, du, db)
