"""The reference backend: the equations, written in NumPy as plainly as possible.

The tests compare every other backend with it. It also serves the calls that no other backend can:
those with custom and non-elementwise activations. It is not made for speed.

With x' = x * dropout and k = h * recurrent_dropout (both per gate), a step computes
(docs/semantics.md 1)::

    z  = act_r(x' Wz + bz + k Uz + cz)
    r  = act_r(x' Wr + br + k Ur + cr)
    n  = act(x' Wh + bh + r * (k Uh + ch))      reset_after=True
    n  = act(x' Wh + bh + (r * k) Uh)           reset_after=False, where c = 0
    h' = z * h + (1 - z) * n

Of a dtype of 16 bits the arithmetic is done in float32, and h' is rounded to the dtype
(docs/semantics.md 14).

Source: Cho et al. 2014, arXiv:1406.1078 v1 and v3, as implemented by Keras 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru.device import follow
from fastgru.dtypes import rounded, sum_dtype
from fastgru.problem import GRUGrads, GRUOutput, GRUProblem, GRUWeights


class ReferenceBackend:
    """Forward and backward from the equations, for any activation, on host and device."""

    name = "reference"

    def missing(self) -> None:
        """Return None, since nothing beyond NumPy is needed."""

    def supports(self, problem: GRUProblem) -> str | None:
        """Return None, for every problem."""

    def supports_backward(self, problem: GRUProblem) -> str | None:
        """Return None, for every problem."""

    def forward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        save: bool = False,
        keep_gates: bool = True,
    ) -> GRUOutput:
        """Compute the layer's outputs, step by step."""
        p = problem
        x, valid, resets = _in_processing_order(p)
        steps, batch, _ = x.shape
        units, dtype, sums = p.spec.units, p.spec.dtype, sum_dtype(p.spec.dtype)
        step = _Step(p, weights)
        previous = _zeros(x, batch, units)  # the output before the first valid step
        h = previous if p.h0 is None else p.h0.astype(sums)
        y = _zeros(p.x, batch, steps, units) if p.return_sequences else None
        states = _zeros(p.x, batch, steps, units) if save else None
        x_part = step.input_part(x)
        for s in range(steps):
            if resets is not None:
                h = np.where(resets[s, :, None], sums.type(0), h)
            h_new = step.blend(h, *step.gates(x_part[s], h)[:3])
            h_new = rounded(h_new, dtype).astype(sums, copy=False)
            if valid is None:
                h = previous = h_new
            else:
                used = valid[s, :, None]
                h = np.where(used, h_new, h)
                skipped = sums.type(0) if p.zero_output_for_mask else previous
                previous = np.where(used, h_new, skipped)
            if y is not None:
                y[:, s] = previous
            if states is not None:
                states[:, s] = h
        result = previous.astype(dtype, copy=False) if y is None else y
        if p.out is not None:
            p.out[...] = result
            result = p.out
        return GRUOutput(result, h.astype(dtype), states)

    def backward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        states: np.ndarray,
        dy: np.ndarray | None,
        dstate: np.ndarray | None,
        workspace: Any = None,
    ) -> GRUGrads:
        """Return the gradients, with the gates computed again from the saved states.

        With dh the gradient of h' at a step, a_g the argument of gate g's activation,
        q = k Uh + ch and dq the gradients of the recurrent products::

            dn = dh (1 - z)    dz = dh (h - n)    da_g = dg * act'(a_g)
            reset_after=True:   dr = da_n q            dq = [da_z, da_r, da_n r]
            reset_after=False:  dr = (da_n Uh^T) k_h   dq = [da_z, da_r, da_n]
            dk_g = dq_g U_g^T, and with reset_after=False dk_h is multiplied by r
            the gradient of h = dh z + sum_g recurrent_dropout_g dk_g

        A rounding of 16 bits has the derivative 1.
        """
        p = problem
        x, valid, resets = _in_processing_order(p)
        steps, batch, _ = x.shape
        units, dtype, sums = p.spec.units, p.spec.dtype, sum_dtype(p.spec.dtype)
        zero = sums.type(0)
        step = _Step(p, weights)
        h_before = _states_before(p, states, resets, _zeros(x, steps, batch, units))
        gates = step.gates(step.input_part(x), h_before)
        dout = _output_gradient_per_step(p, dy, valid, steps, batch)

        dh = _zeros(x, batch, units) if dstate is None else dstate.astype(sums)
        da = _zeros(x, steps, batch, 3, units)  # gates in the order z r h
        dq = np.zeros_like(da) if p.spec.reset_after else da
        for s in range(steps - 1, -1, -1):
            at_step = [values[s] for values in gates]
            da_step, dq_step, dh_before = step.backward(h_before[s], at_step, dh + dout[s])
            if valid is not None:
                used = valid[s, :, None]
                dh_before = np.where(used, dh_before, dh)
                da_step = [np.where(used, d, zero) for d in da_step]
                dq_step = [np.where(used, d, zero) for d in dq_step]
            for g in range(3):
                da[s, :, g], dq[s, :, g] = da_step[g], dq_step[g]
            dh = dh_before if resets is None else np.where(resets[s, :, None], zero, dh_before)

        dx, dkernel, drecurrent = step.products_backward(x, h_before, gates[1], da, dq)
        dbias = None
        if weights.bias is not None:
            rows = [d.sum((0, 1)).reshape(-1) for d in ((da, dq) if p.spec.reset_after else (da,))]
            dbias = np.stack(rows).reshape(weights.bias.shape)
        if p.reverse:
            dx = dx[::-1]
        dx, dh = rounded(dx, dtype), rounded(dh, dtype)
        return GRUGrads(dx.transpose(1, 0, 2), dh, dkernel, drecurrent, dbias)


class _Step:
    """The weights by gate, and the arithmetic of a step and its gradients."""

    def __init__(self, problem: GRUProblem, weights: GRUWeights) -> None:
        spec, units = problem.spec, problem.spec.units
        self.spec = spec
        arrays: list[Any] = [problem.dropout, problem.recurrent_dropout]
        arrays += [weights.kernel, weights.recurrent_kernel, weights.bias]
        sums = sum_dtype(spec.dtype)
        arrays = [
            None if array is None else follow(array, problem.x).astype(sums, copy=False)
            for array in arrays
        ]
        self.dropout, self.recurrent_dropout, kernel, recurrent_kernel, bias = arrays
        gates = [slice(g * units, (g + 1) * units) for g in range(3)]
        self.w = [kernel[:, g] for g in gates]
        self.u = [recurrent_kernel[:, g] for g in gates]
        zero = sums.type(0)
        self.b: list[Any] = [zero] * 3
        self.c: list[Any] = [zero] * 3
        if bias is not None:
            rows = np.atleast_2d(bias)
            self.b = [rows[0, g] for g in gates]
            if spec.reset_after:
                self.c = [rows[1, g] for g in gates]

    def gate_input(self, x: np.ndarray, gate: int) -> np.ndarray:
        """Return x (..., B, I) times the dropout mask of the gate."""
        if self.dropout is None:
            return x
        return x * (self.dropout if self.dropout.ndim == 2 else self.dropout[gate])

    def recurrent_input(self, h: np.ndarray, gate: int) -> np.ndarray:
        """Return h (..., B, H) times the recurrent dropout mask of the gate."""
        return h if self.recurrent_dropout is None else h * self.recurrent_dropout[gate]

    def input_part(self, x: np.ndarray) -> np.ndarray:
        """Return x' W + b of each gate: (T, B, I) -> (T, 3, B, H)."""
        parts = [self.gate_input(x, g) @ self.w[g] + self.b[g] for g in range(3)]
        return np.stack(parts, axis=1)

    def gates(self, x_part: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return z, r, n, their activations' arguments, and q = k Uh + ch.

        x_part is (..., 3, B, H) and h (..., B, H). Only reset_after=True uses q.
        """
        spec = self.spec
        k = [self.recurrent_input(h, g) for g in range(3)]
        a_z = x_part[..., 0, :, :] + (k[0] @ self.u[0] + self.c[0])
        a_r = x_part[..., 1, :, :] + (k[1] @ self.u[1] + self.c[1])
        z = activate(spec.recurrent_activation, a_z)
        r = activate(spec.recurrent_activation, a_r)
        if spec.reset_after:
            q = k[2] @ self.u[2] + self.c[2]
            a_n = x_part[..., 2, :, :] + r * q
        else:
            q = r
            a_n = x_part[..., 2, :, :] + (r * k[2]) @ self.u[2]
        return z, r, activate(spec.activation, a_n), a_z, a_r, a_n, q

    @staticmethod
    def blend(h: np.ndarray, z: np.ndarray, r: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the new state."""
        return z * h + (1 - z) * n

    def backward(
        self, h: np.ndarray, gates: list[np.ndarray], dh: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Return da and dq of the three gates, and the gradient of h, (B, H) each.

        gates are what `gates` returned for the step, and dh is the gradient of its new state.
        """
        spec, u = self.spec, self.u
        z, r, n, a_z, a_r, a_n, q = gates
        da_n = vjp(spec.activation, a_n, n, dh * (1 - z))
        da_z = vjp(spec.recurrent_activation, a_z, z, dh * (h - n))
        if spec.reset_after:
            dr, dq_n = da_n * q, da_n * r
            dk_n = dq_n @ u[2].T
        else:
            drk = da_n @ u[2].T  # the gradient of r * k
            dr, dq_n, dk_n = drk * self.recurrent_input(h, 2), da_n, drk * r
        da_r = vjp(spec.recurrent_activation, a_r, r, dr)
        dh_before = dh * z
        for gate, dk in enumerate((da_z @ u[0].T, da_r @ u[1].T, dk_n)):
            dh_before += self.recurrent_input(dk, gate)
        return [da_z, da_r, da_n], [da_z, da_r, dq_n], dh_before

    def products_backward(
        self, x: np.ndarray, h: np.ndarray, r: np.ndarray, da: np.ndarray, dq: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the gradients of x (T, B, I), the kernel (I, 3H) and the recurrent one (H, 3H).

        h and r are (T, B, H): the states before each step, and the reset gates. da and dq are
        (T, B, 3, H).
        """
        inputs, units = x.shape[-1], h.shape[-1]
        dx = np.zeros_like(x)
        dkernel = _zeros(x, inputs, 3, units)
        drecurrent = _zeros(x, units, 3, units)
        for g in range(3):
            dx += self.gate_input(da[:, :, g] @ self.w[g].T, g)
            x_g = self.gate_input(x, g)
            dkernel[:, g] = np.einsum("tbi,tbh->ih", x_g, da[:, :, g], optimize=True)
            k = self.recurrent_input(h, g)
            if g == 2 and not self.spec.reset_after:
                k = k * r
            drecurrent[:, g] = np.einsum("tbk,tbh->kh", k, dq[:, :, g], optimize=True)
        return dx, dkernel.reshape(inputs, 3 * units), drecurrent.reshape(units, 3 * units)


def _zeros(like: Any, *shape: int) -> Any:
    return np.zeros_like(like, order="C", shape=shape)


def _states_before(
    p: GRUProblem, states: np.ndarray, resets: np.ndarray | None, h: np.ndarray
) -> np.ndarray:
    """Fill h (T, B, H), which is zeros, with the state before each step, and return it."""
    if len(h):
        if p.h0 is not None:
            h[0] = p.h0
        h[1:] = states.transpose(1, 0, 2)[:-1]
        if resets is not None:
            h[resets] = 0
    return h


def activate(activation: Any, x: np.ndarray) -> np.ndarray:
    """Return act(x) in x's dtype; ValueError if a custom function changes the shape."""
    y = np.asarray(activation(x), like=x)
    if y.shape != x.shape:
        raise ValueError(
            f"activation {activation!r}: expected it to keep the shape {x.shape}, got {y.shape}"
        )
    return y.astype(x.dtype, copy=False)


def vjp(activation: Any, x: np.ndarray, y: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Return the gradient at x of an activation y = act(x), given the gradient at y."""
    if hasattr(activation, "vjp"):
        return activation.vjp(x, y, dy)
    return (dy * activation.gradient(x, y)).astype(dy.dtype, copy=False)


def _in_processing_order(
    p: GRUProblem,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return x (T, B, I) with masked steps zeroed, valid (T, B) and resets (T, B).

    x is in the dtype of sums.
    """
    valid = p.mask.valid(p.x.shape[1], p.x)
    x = p.x.astype(sum_dtype(p.spec.dtype), copy=False)
    if valid is not None:
        x = np.where(valid[:, :, None], x, x.dtype.type(0))  # NaN there must change nothing
    time = slice(None, None, -1) if p.reverse else slice(None)

    def order(matrix: np.ndarray | None) -> np.ndarray | None:
        return None if matrix is None else matrix.T[time]

    return x.transpose(1, 0, 2)[time], order(valid), order(p.resets)


def _output_gradient_per_step(
    p: GRUProblem,
    dy: np.ndarray | None,
    valid: np.ndarray | None,
    steps: int,
    batch: int,
) -> np.ndarray:
    """Return the gradient of each step's new output (T, B, H).

    A masked output repeats the last valid one, so its gradient is added to that step's. Outputs
    before the first valid step, and masked ones with zero_output_for_mask, are constant zeros.
    """
    dout = np.zeros_like(p.x, sum_dtype(p.spec.dtype), "C", shape=(steps, batch, p.spec.units))
    if dy is None or not steps:
        return dout
    if p.return_sequences:
        dout[...] = dy.transpose(1, 0, 2)
    else:
        dout[-1] = dy
    if valid is None:
        return dout
    pending = np.zeros_like(dout[0])
    for s in range(steps - 1, -1, -1):
        used = valid[s, :, None]
        if not p.zero_output_for_mask:
            pending = pending + dout[s]
            dout[s] = np.where(used, pending, 0)
            pending = np.where(used, 0, pending)
        else:
            dout[s] = np.where(used, dout[s], 0)
    return dout
