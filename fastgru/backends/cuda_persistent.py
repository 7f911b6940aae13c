"""Small batches of the CUDA backend: many steps in one launch (`fastgru/_cuda/persistent.cu`).

`plan` says whether a call has room for it, and how it is cut; forward takes a launch for each chunk
of steps whose x.W is made at once, the walk back one for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from fastgru.backends.cuda import Call

# The kernels read the whole state in every block and have no tensor cores: for batches of more rows
# the products of the library are expected to win; so they are where U is read again for less than
# the four rows that a warp multiplies at a time. Neither is measured yet.
MAX_ROWS = 32
MIN_TILE = 4
THREADS = 256


class Plan(NamedTuple):
    """How a kernel is launched: a block owns `units`, reads `tile` rows at a time."""

    kernel: str
    blocks: int
    units: int
    tile: int
    shared_bytes: int


def plan(call: Call, kernel: str, planes: int) -> Plan | None:
    """Return how a kernel is cut; None where it has no room or does not pay.

    Parameters
    ----------
    call : Call
    kernel : str
    planes : int
        How many rows of H elements it multiplies with U, for each row of the batch.
    """
    blocks, shared_bytes = call.engine.residency()
    if not call.T or not 0 < call.B <= MAX_ROWS or not blocks:
        return None
    units, size = -(-call.H // blocks), call.sums.itemsize
    weight_bytes, row_bytes = 3 * units * call.H * size, (planes * call.H + 3 * units) * size
    tile = min(call.B, (shared_bytes - weight_bytes) // row_bytes)
    if tile < min(call.B, MIN_TILE):
        return None
    cut = Plan(kernel, -(-call.H // units), units, tile, weight_bytes + tile * row_bytes)
    # A grid that the device does not hold would be made smaller, and give wrong numbers.
    room = call.engine.resident_blocks(kernel, call.options, THREADS, cut.shared_bytes)
    return cut if cut.blocks <= room else None


def forward_plan(call: Call) -> Plan | None:
    """Return the plan of `forward`, or None."""
    kernel = "steps_after" if call.spec.reset_after else "steps_before"
    return plan(call, kernel, call.state_masks)


def backward_plan(call: Call) -> Plan | None:
    """Return the plan of `backward`, or None."""
    if call.spec.reset_after:
        return plan(call, "back_after", 3)
    return plan(call, "back_before", 2)


def forward(call: Call, results: np.ndarray, plan: Plan) -> Any:
    """Run all steps and return the last state; ``results`` is the struct of that name."""
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


def backward(call: Call, plan: Plan, states: Any, dy: Any, carry: Any, pending: Any, d: Any) -> Any:
    """Walk back and return dh0 (B, H); the arrays are those of the kernel `back_step`."""
    dh0 = call.engine.empty((call.B, call.H), call.spec.dtype)
    arrays = (call.u, states, dy, carry, pending, d, dh0, _arrived(call))
    _launch(call, plan, plan.units, plan.tile, *arrays)
    return dh0


def _launch(call: Call, plan: Plan, *arguments: Any) -> None:
    call.engine.launch_resident(
        *(plan.kernel, call.options, plan.blocks, THREADS, plan.shared_bytes),
        (call.struct, *arguments),
    )


def _arrived(call: Call) -> Any:
    """Return the counter of the grid barrier, which every launch needs anew."""
    return call.engine.zeros((1,), np.dtype(np.uint32))
