"""Both halves of a Bidirectional in one call of a backend that has such a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgru import dispatch
from fastgru.layers.tape import Record, record_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgru.layers.call import Call


def run_pair(
    parts: Sequence[Call], save: bool, keep_gates: bool
) -> list[tuple[Any, list[Any], list[Record]]] | None:
    """Run both halves at once: (y, states, records) of each, as `RNN.run` gives them.

    None where each half has to run by itself.
    """
    # Devices alone have such a call: on the host the question takes a part of a small call's time.
    if any(len(part.cell_calls) != 1 or not part.cell_calls[0][1].on_device for part in parts):
        return None
    problems = [part.cell_calls[0][1].with_x(part.x) for part in parts]
    pair = dispatch.fast_path(problems[0].on_device).direction_pair(problems)
    if pair is None:
        return None
    weights = [part.weights[0] for part in parts]
    outputs = pair.forward_pair(problems, weights, save, keep_gates)
    return [
        (o.y, [o.state], [record_of(problem, w, o, pair.name, pair=True)] if save else [])
        for problem, w, o in zip(problems, weights, outputs, strict=True)
    ]


def backward_pair(
    records: Sequence[Record], dys: Sequence[Any], dstates: Sequence[Any]
) -> list[tuple[Any, list[Any], list[Any]]]:
    """Return what `backward_through` gives, of halves that `run_pair` ran.

    The gradient of x is whole in the first; in the second it is None.
    """
    problems, weights = [r.problem for r in records], [r.weights for r in records]
    pair = dispatch.fast_path(problems[0].on_device).direction_pair(problems)
    assert pair is not None
    grads = pair.backward_pair(problems, weights, dys, dstates, records[0].workspace)
    return [(half.x, [half.h0], half.weights) for half in grads]
