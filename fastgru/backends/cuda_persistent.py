"""Small batches of the CUDA backend: many steps in one launch (`fastgru/_cuda/persistent.cu`).

Forward is a launch for each chunk of steps, as `CudaCall.input_products` makes them; the walk back
is one launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from fastgru.backends.cuda_call import CudaCall

# The kernels read the whole state in every block and do not use tensor cores: cuBLAS is expected to
# be faster from some batch size on, and where a tile has fewer than the four rows that a warp
# multiplies for one read of U. Neither number is measured yet.
MAX_ROWS = 32
MIN_TILE = 4
THREADS = 256


class Plan(NamedTuple):
    """How a kernel is launched: each block owns ``units`` and reads ``tile`` rows at a time."""

    kernel: str
    blocks: int
    units: int
    tile: int
    shared_bytes: int


def plan(call: CudaCall, kernel: str, planes: int) -> Plan | None:
    """Return how a kernel is launched; None where it has no room or is expected to be slower.

    ``planes`` is how many rows of H elements it multiplies with U for each row of the batch.
    """
    blocks, shared_bytes = call.engine.residency()
    if not call.T or not 0 < call.B <= MAX_ROWS or not blocks:
        return None
    units, size = -(-call.H // blocks), call.sums.itemsize
    weight_bytes, row_bytes = 3 * units * call.H * size, (planes * call.H + 3 * units) * size
    tile = min(call.B, (shared_bytes - weight_bytes) // row_bytes)
    if tile < min(call.B, MIN_TILE):
        return None
    made = Plan(kernel, -(-call.H // units), units, tile, weight_bytes + tile * row_bytes)
    # The device refuses to launch more blocks than it can hold.
    room = call.engine.resident_blocks(kernel, call.options, THREADS, made.shared_bytes)
    return made if made.blocks <= room else None


def forward_plan(call: CudaCall) -> Plan | None:
    """Return the plan of `forward`, or None."""
    return plan(call, "steps_after" if call.spec.reset_after else "steps_before", call.state_masks)


def backward_plan(call: CudaCall) -> Plan | None:
    """Return the plan of `backward`, or None."""
    return plan(call, "back_after" if call.spec.reset_after else "back_before", call.gates)


def forward(call: CudaCall, plan: Plan, results: np.ndarray) -> Any:
    """Run all steps and return the last state (B, H); ``results`` is the struct of that name."""
    B, H, empty, dtype = call.B, call.H, call.engine.empty, call.spec.dtype
    h = empty((2, B, H), dtype)
    k = empty((2, 3, B, H), dtype) if call.state_masks == 3 else None
    scratch: tuple[Any, ...] = ()
    if not call.spec.reset_after:
        scratch = (empty((B, H), call.sums), empty((B, H), dtype))
    call.launch("start", B * H, h, k)
    for first, steps, p in call.input_products():
        sizes = (first, steps, plan.units, plan.tile)
        _launch(call, plan, results, *sizes, p, call.u, call.bias, h, k, _arrived(call), *scratch)
    return h[call.T % 2]


def backward(
    call: CudaCall, plan: Plan, states: Any, dy: Any, carry: Any, pending: Any, d: Any
) -> Any:
    """Walk back and return dh0 (B, H); the arrays are those of the kernel `back_step`."""
    dh0 = call.engine.empty((call.B, call.H), call.spec.dtype)
    arrays = (call.u, states, dy, carry, pending, d, dh0, _arrived(call))
    _launch(call, plan, plan.units, plan.tile, *arrays)
    return dh0


def _launch(call: CudaCall, plan: Plan, *arguments: Any) -> None:
    call.engine.launch_resident(
        *(plan.kernel, call.options, plan.blocks, THREADS, plan.shared_bytes),
        (call.common, *arguments),
    )


def _arrived(call: CudaCall) -> Any:
    """Return the counter of the grid barrier: every launch needs a new one."""
    return call.engine.zeros((1,), np.dtype(np.uint32))
