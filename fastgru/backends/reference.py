"""The reference backend: the equations, in NumPy, as plainly as they can be written.

It is the oracle that every other backend is held against, and it serves what they cannot:
custom and non-elementwise activations. It is not fast and does not try to be.

With x' = x * dropout, k = h * recurrent_dropout (both per gate), per step (docs/semantics.md 1)::

    z  = act_r(x' Wz + bz + k Uz + cz)
    r  = act_r(x' Wr + br + k Ur + cr)
    n  = act(x' Wh + bh + r * (k Uh + ch))      reset_after=True
    n  = act(x' Wh + bh + (r * k) Uh)           reset_after=False, where c = 0
    h' = z * h + (1 - z) * n

Source: Cho et al. 2014, arXiv:1406.1078 v1 and v3, as implemented by Keras 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru.device import follow
from fastgru.problem import HOST_FLOATS, GRUGrads, GRUOutput, GRUProblem, GRUWeights


class ReferenceBackend:
    """Forward and backward from the equations, any activation, wherever the arrays are."""

    name = "reference"

    def missing(self) -> None:
        """Return None: NumPy is there."""

    def supports(self, problem: GRUProblem) -> str | None:
        """Return None, or that the host has no arithmetic in halves."""
        name = problem.spec.dtype.name
        if problem.on_device or name in HOST_FLOATS:
            return None
        return f"dtype {name} is for CuPy arrays"

    def supports_backward(self, problem: GRUProblem) -> str | None:
        """Return the same as `supports`."""
        return self.supports(problem)

    def forward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        save: bool = False,
        keep_gates: bool = True,
    ) -> GRUOutput:
        """Run the layer, a step at a time."""
        p = problem
        x, valid, resets = _in_processing_order(p)
        steps, batch, _ = x.shape
        units, dtype = p.spec.units, p.spec.dtype
        step = _Step(p, weights)
        previous = _zeros(x, batch, units)  # the output before the first valid step
        h = previous if p.h0 is None else p.h0.copy()
        y = _zeros(x, batch, steps, units) if p.return_sequences else None
        states = _zeros(x, batch, steps, units) if save else None
        x_part = step.input_part(x)
        for s in range(steps):
            if resets is not None:
                h = np.where(resets[s, :, None], dtype.type(0), h)
            h_new = step.blend(h, *step.gates(x_part[s], h)[:3])
            if valid is None:
                h = previous = h_new
            else:
                used = valid[s, :, None]
                h = np.where(used, h_new, h)
                skipped = dtype.type(0) if p.zero_output_for_mask else previous
                previous = np.where(used, h_new, skipped)
            if y is not None:
                y[:, s] = previous
            if states is not None:
                states[:, s] = h
        result = previous if y is None else y
        if p.out is not None:
            p.out[...] = result
            result = p.out
        return GRUOutput(result, h.copy(), states)

    def backward(
        self,
        problem: GRUProblem,
        weights: GRUWeights,
        states: np.ndarray,
        dy: np.ndarray | None,
        dstate: np.ndarray | None,
        workspace: Any = None,
    ) -> GRUGrads:
        """Return the gradients; the gates are computed again from the saved states.

        With dh the gradient of h' at a step, a_g the argument of gate g's activation and
        q = k Uh + ch::

            dn = dh (1 - z)    dz = dh (h - n)    da_g = dg * act'(a_g)
            reset_after:      dr = da_n q        dq = [da_z, da_r, da_n r]
            reset before:     dr = (da_n Uh^T) k  (and k_h also gets (da_n Uh^T) r)
            carry = dh z + sum_g recurrent_dropout_g * (dq_g U_g^T)
        """
        p = problem
        x, valid, resets = _in_processing_order(p)
        steps, batch, inputs = x.shape
        units, dtype = p.spec.units, p.spec.dtype
        step = _Step(p, weights)

        h_prev = _zeros(x, steps, batch, units)
        if steps:
            if p.h0 is not None:
                h_prev[0] = p.h0
            h_prev[1:] = states.transpose(1, 0, 2)[:-1]
            if resets is not None:
                h_prev[resets] = 0
        z, r, n, a_z, a_r, a_n, q = step.gates(step.input_part(x), h_prev)
        dout = _output_gradient_per_step(p, dy, valid, steps, batch)

        carry = _zeros(x, batch, units) if dstate is None else dstate.astype(dtype)
        da = _zeros(x, steps, batch, 3, units)  # gradient of the arguments, z r h
        dq = da if not p.spec.reset_after else np.zeros_like(da)
        for s in range(steps - 1, -1, -1):
            dh = carry + dout[s]
            da_n = vjp(p.spec.activation, a_n[s], n[s], dh * (1 - z[s]))
            da_z = vjp(p.spec.recurrent_activation, a_z[s], z[s], dh * (h_prev[s] - n[s]))
            if p.spec.reset_after:
                dr, through_reset = da_n * q[s], None
            else:
                through_reset = da_n @ step.u[2].T
                dr = through_reset * step.recurrent_input(h_prev[s], 2)
            da_r = vjp(p.spec.recurrent_activation, a_r[s], r[s], dr)
            dq_n = da_n * r[s]
            before = dh * z[s]
            before += step.recurrent_input(da_z @ step.u[0].T, 0)
            before += step.recurrent_input(da_r @ step.u[1].T, 1)
            if through_reset is None:
                before += step.recurrent_input(dq_n @ step.u[2].T, 2)
            else:
                before += step.recurrent_input(through_reset * r[s], 2)
            if valid is not None:
                used = valid[s, :, None]
                before = np.where(used, before, carry)
                da_z, da_r, da_n, dq_n = (
                    np.where(used, d, dtype.type(0)) for d in (da_z, da_r, da_n, dq_n)
                )
            carry = before
            da[s, :, 0], da[s, :, 1], da[s, :, 2] = da_z, da_r, da_n
            if p.spec.reset_after:
                dq[s, :, 0], dq[s, :, 1], dq[s, :, 2] = da_z, da_r, dq_n
            if resets is not None:
                carry = np.where(resets[s, :, None], dtype.type(0), carry)

        dx = np.zeros_like(x)
        dkernel = _zeros(x, inputs, 3, units)
        drecurrent = _zeros(x, units, 3, units)
        for g in range(3):
            dx += step.gate_input(da[:, :, g] @ step.w[g].T, g)
            dkernel[:, g] = np.einsum(
                "tbi,tbh->ih", step.gate_input(x, g), da[:, :, g], optimize=True
            )
            k = step.recurrent_input(h_prev, g)
            if g == 2 and not p.spec.reset_after:
                k = k * r
            drecurrent[:, g] = np.einsum("tbk,tbh->kh", k, dq[:, :, g], optimize=True)
        dbias = None
        if weights.bias is not None:
            rows = [da.sum((0, 1)).reshape(-1)]
            if p.spec.reset_after:
                rows.append(dq.sum((0, 1)).reshape(-1))
            dbias = np.stack(rows).reshape(weights.bias.shape)
        if p.reverse:
            dx = dx[::-1]
        return GRUGrads(
            dx.transpose(1, 0, 2),
            carry,
            dkernel.reshape(inputs, 3 * units),
            drecurrent.reshape(units, 3 * units),
            dbias,
        )


class _Step:
    """The arithmetic of one step, for arrays with any leading axes."""

    def __init__(self, problem: GRUProblem, weights: GRUWeights) -> None:
        spec, units = problem.spec, problem.spec.units
        self.spec = spec
        arrays: list[Any] = [problem.dropout, problem.recurrent_dropout]
        arrays += [weights.kernel, weights.recurrent_kernel, weights.bias]
        arrays = [None if array is None else follow(array, problem.x) for array in arrays]
        self.dropout, self.recurrent_dropout, kernel, recurrent_kernel, bias = arrays
        gates = [slice(g * units, (g + 1) * units) for g in range(3)]
        self.w = [kernel[:, g] for g in gates]
        self.u = [recurrent_kernel[:, g] for g in gates]
        zero = spec.dtype.type(0)
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

        x_part is (..., 3, B, H) and h (..., B, H); q is meaningful with reset_after only.
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


def _zeros(like: Any, *shape: int) -> Any:
    return np.zeros_like(like, order="C", shape=shape)


def activate(activation: Any, x: np.ndarray) -> np.ndarray:
    """Return act(x); a custom function may neither widen the dtype nor change the shape."""
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
    """Return x (T, B, I) with masked steps zeroed, valid (T, B) and resets (T, B)."""
    valid = p.mask.valid(p.x.shape[1], p.x)
    x = p.x
    if valid is not None:
        x = np.where(valid[:, :, None], x, p.spec.dtype.type(0))  # NaN there must not spread
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
    """Fold dy into the steps that made the outputs: (T, B, H).

    A masked output repeats the last valid one, so its gradient belongs to that step; before the
    first valid step, and with zero_output_for_mask, it belongs to nobody.
    """
    dout = _zeros(p.x, steps, batch, p.spec.units)
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
