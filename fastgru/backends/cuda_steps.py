"""The CUDA backend step by step: products, and a kernel of one thread per element after each.

A step is one product with U, two with reset_after=False, one for each gate with recurrent dropout;
so is a step back. `fastgru/_cuda/gru_kernels.cu` has the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgru._cuda.engine import Command, Each, Product, each

if TYPE_CHECKING:
    import numpy as np

    from fastgru.backends.cuda_call import CudaCall


def forward(call: CudaCall, results: np.ndarray) -> Any:
    """Run all steps and return the last state (B, H); ``results`` is the struct of that name."""
    B, H, empty, dtype = call.B, call.H, call.engine.empty, call.spec.dtype
    size, reset_after, u = B * H, call.spec.reset_after, call.u
    h = empty((B, H), dtype)
    k = empty((3, B, H), dtype) if call.state_masks == 3 else None
    q = empty((B, 3 * H), call.sums)
    call.launch("start", size, h, k)
    parts = zip([h] if k is None else k, call.columns(call.state_masks, call.gates), strict=False)
    step = [Product(state, u[:, columns], q[:, columns]) for state, columns in parts]
    z, rk = (None, None) if reset_after else (empty((B, H), call.sums), empty((B, H), dtype))
    for first, steps, products in call.input_products():
        p = each(products.reshape(steps, B, 3 * H))
        common = (results, Each(first, 1), p, q, call.bias, h, k)
        if reset_after:
            kernels: list[Command] = [call.kernel("step_after", size, *common)]
        else:
            kernels = [
                call.kernel("step_before_zr", size, *common, z, rk),
                Product(rk, u[:, call.gate(2)], q[:, call.gate(2)]),
                call.kernel("step_before_h", size, *common, z),
            ]
        call.engine.repeat(steps, [*step, *kernels])
    return h


def backward(call: CudaCall, states: Any, dy: Any, carry: Any, pending: Any, d: Any) -> Any:
    """Walk back and return dh0 (B, H); the arrays are those of the kernel `back_step`."""
    B, T, H, engine = call.B, call.T, call.H, call.engine
    products = engine.empty((call.state_masks, B, H), call.sums)
    if T:
        engine.repeat(T, _step_back(call, states, dy, products, carry, pending, d))
    dh0 = engine.empty((B, H), call.spec.dtype)
    call.launch("back_end", B * H, carry, products, dh0)
    return dh0


def _step_back(
    call: CudaCall, states: Any, dy: Any, products: Any, carry: Any, pending: Any, d: Any
) -> list[Command]:
    """Return the commands of a step back, from the last step on; see gru_step.cu."""
    T, B, H = call.T, call.B, call.H
    s, rows = Each(T - 1, -1), d.reshape(T, B, 4 * H)[::-1]
    commands: list[Command] = [
        call.kernel("back_step", B * H, s, states, dy, products, carry, pending, d)
    ]
    if not call.spec.reset_after:
        e = call.engine.empty((B, H), call.sums)
        commands += [
            Product(each(rows[:, :, :H]), call.u[:, call.gate(2)].T, e),
            call.kernel("back_reset", B * H, s, states, e, carry, d),
        ]
    parts = zip(call.columns(call.state_masks, call.gates), products, strict=False)
    return commands + [
        Product(each(rows[:, :, H:][:, :, columns]), call.u[:, columns].T, out)
        for columns, out in parts
    ]
