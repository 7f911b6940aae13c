# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""GRU forward of any `GRUProblem`, and what it keeps for backward."""

from libc.string cimport memset

from fastgru._native._arrays cimport bytes_of, cnp, is_walkable, require
from fastgru._native._execute cimport execute
from fastgru._native._headers cimport ROW_GROUP, gru_job
from fastgru._native._job cimport set_problem, set_weights, set_y
from fastgru._native._weights cimport PackedWeights

import threading

import numpy as np

from fastgru._native._weights import aligned

cnp.import_array()

cdef object _empty = np.empty
# What the last backward of a thread has used up. Memory fresh from the system costs a training step
# up to a sixth of its time, and the allocator gives large blocks back too soon.
_spare = threading.local()


class Workspace:
    """What forward keeps for backward, of every row and step that was taken.

    ``gates`` (panels, rows, 4 or 3, lanes) and, with reset_after=False, ``reset_state`` (rows, H)
    are described in job.h. ``slots`` (B * T,) says which row each place of its order has, and
    ``taken`` (rows,) which place each row has; None: all were taken, and both are the same.
    """

    __slots__ = ("gates", "reset_state", "rows", "slots", "taken")

    def __init__(self, problem, PackedWeights packed):
        spec = packed.spec
        B, T = problem.x.shape[:2]
        valid = problem.mask.valid(T)
        self.slots = self.taken = self.reset_state = None
        self.rows = B * T
        if valid is not None:
            if problem.reverse:
                valid = valid[:, ::-1]
            groups = [valid[b : b + ROW_GROUP].T.ravel() for b in range(0, B, ROW_GROUP)]
            taken = np.concatenate(groups) if groups else np.zeros(0, bool)
            self.taken = np.flatnonzero(taken)
            self.rows = len(self.taken)
            self.slots = np.cumsum(taken, dtype=np.intp) - 1
        vectors = 4 if spec.reset_after else 3
        shape = (packed.panels, self.rows, vectors, packed.lanes)
        memory = _spare.__dict__.pop("memory", None)
        self.gates = aligned(shape, packed.sums, memory)
        if self.gates.base is not memory:
            # Freed and taken again: of that glibc learns to keep as much for the other arrays of a
            # training step too, rather than return it to the system and fetch it page by page.
            self.gates = None
            self.gates = aligned(shape, packed.sums)
        if not spec.reset_after:
            self.reset_state = _empty((self.rows, spec.units), packed.sums)

    def release(self):
        """Leave the largest part of the memory to the next forward call of this thread."""
        _spare.memory = self.gates.base
        self.gates = None


def forward(PackedWeights packed, problem, int threads, bint save, bint keep_gates):
    """Run a `GRUProblem` that `CPUBackend.supports`; return (y, state, states, workspace).

    Parameters
    ----------
    packed : PackedWeights
        Of the problem's spec and weights.
    problem : GRUProblem
        Its arrays have the dtype of ``packed``; dropout masks may have another.
    threads : int
        Upper bound, at least 1.
    save : bool
        Also return what `backward` needs, else None twice; the states may be y itself.
    keep_gates : bool
        With ``save``: without the workspace, backward runs forward again. The kernel must have a
        backward.
    """
    cdef gru_job job
    cdef list kept = []
    cdef Py_ssize_t B, T, H
    memset(&job, 0, sizeof(job))
    set_weights(&job, packed)
    set_problem(&job, problem, packed, kept)
    B, T, H = job.B, job.T, job.H
    dtype = packed.dtype
    state = _empty((B, H), dtype)
    job.state = bytes_of(state)
    out = problem.out
    if out is not None and job.sequences:
        require(out, "out", packed.type, 3, B, T, H)
    elif out is not None:
        require(out, "out", packed.type, 2, B, H)
    if out is not None and is_walkable(out, packed.item):
        y = out
    else:
        y = _empty((B, T, H), dtype) if job.sequences else _empty((B, H), dtype)
    set_y(&job, y)
    states = workspace = None
    if save:
        if job.sequences and job.steps == NULL and job.lengths == NULL and out is None:
            states = y
        else:
            states = _empty((B, T, H), dtype)
            job.states = bytes_of(states)
    if save and keep_gates:
        workspace = Workspace(problem, packed)
        job.gates = bytes_of(workspace.gates)
        job.rows_kept = workspace.rows
        if workspace.reset_state is not None:
            job.reset_state = bytes_of(workspace.reset_state)
        if workspace.slots is not None:
            job.slots = <const Py_ssize_t *> bytes_of(workspace.slots)

    if B > 0:
        execute(&job, packed, threads)
    if out is not None and y is not out:
        out[...] = y
        y = out
    return y, state, states, workspace
