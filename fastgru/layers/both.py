"""Both halves of a Bidirectional in one call of a backend that has such a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgru import dispatch
from fastgru.layers.tape import Record, record_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgru.layers.call import Call


def run_both(
    parts: Sequence[Call], save: bool, keep_gates: bool
) -> list[tuple[Any, list[Any], list[Record]]] | None:
    """Run both halves at once: (y, states, records) of each, as `RNN.run` gives them.

    None where each half has to run by itself.
    """
    first, second = (part.problems for part in parts)
    if len(first) != 1 or len(second) != 1 or not first[0][1].on_device:
        return None
    _, problems, _ = zip(*(part.problems[0] for part in parts), strict=True)
    for part, problem in zip(parts, problems, strict=True):
        problem.x = part.x
    backend = dispatch.choose_both(problems)
    if backend is None:
        return None
    weights = [part.weights[0] for part in parts]
    outputs = backend.forward_both(problems, weights, save, keep_gates)
    return [
        (o.y, [o.state], [record_of(problem, w, o, backend.name, both=True)] if save else [])
        for problem, w, o in zip(problems, weights, outputs, strict=True)
    ]


def backward_both(
    records: Sequence[Record], dys: Sequence[Any], dstates: Sequence[Any]
) -> list[tuple[Any, list[Any], list[Any]]]:
    """Return what `backward_through` gives, of halves that `run_both` ran.

    The gradient of x is whole in the first; in the second it is None.
    """
    problems, weights = [r.problem for r in records], [r.weights for r in records]
    backend = dispatch.choose_both(problems)
    assert backend is not None
    done = backend.backward_both(problems, weights, dys, dstates, records[0].workspace)
    return [(grads.x, [grads.h0], grads.weights) for grads in done]
