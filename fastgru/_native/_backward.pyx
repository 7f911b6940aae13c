# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""GRU backward: the walk back through time, then the gradients of the weights (job.h says how)."""

from cpython.buffer cimport PyBUF_STRIDES
from cython.parallel cimport parallel
from libc.string cimport memset

from fastgru._native._cpu cimport _kernels_f32, _kernels_f64, _padded, _strided, _Views
from fastgru._native._cut cimport Cut, Work, _cut, _part, _parts
from fastgru._native._fused cimport Fused, _set_masks
from fastgru._native._threads cimport (
    _enter_brief,
    _give_back,
    _is_long,
    _lease,
    _leave_brief,
    _raise_if_stopped,
    _team_limit,
    _thread_counts,
    _watch,
)
from fastgru._native.gates cimport (
    PTRDIFF_MAX,
    allocate_aligned,
    back_type,
    denormals_off,
    denormals_restore,
    free_aligned,
    gru_back_job,
    interrupt_poll,
    poll_join,
    products_type,
    team_barrier,
    team_rank,
    team_size,
)

import numpy as np

from fastgru._native._packing import aligned

cdef object _empty = np.empty


cdef enum:
    INPUT_ROWS = 32           # of d that W^T is read for at once, if there are so many


cdef void _run_products(
    gru_back_job *job, products_type products, int threads,
) noexcept nogil:
    threads = _lease(threads)
    job.granted = threads
    if threads == 1:
        _products_worker(job, products, 0, 1)
    else:
        with parallel(num_threads=threads):
            _products_worker(job, products, team_rank(), team_size())
    _give_back(threads)


cdef void _products_worker(
    const gru_back_job *job, products_type products, int rank, int team,
) noexcept nogil:
    cdef unsigned long long old = denormals_off()
    products(job, rank, team)
    denormals_restore(old)
    if job.poll != NULL:
        poll_join(job.poll, rank, team)


cdef void _back_worker(gru_back_job *job, const Cut *cut, Py_ssize_t panels, back_type back,
                       char *scratch, Py_ssize_t scratch_bytes, int rank,
                       int team) noexcept nogil:
    cdef Py_ssize_t b0, n, panel0, panel1
    cdef int part = rank, parts = _parts(cut, team)
    cdef unsigned long long old = denormals_off()
    while part < parts:
        _part(cut, job.B, panels, part, parts, &b0, &n, &panel0, &panel1)
        if n > 0:
            back(job, b0, n, panel0, panel1, team if cut.shared else 1,
                 scratch + rank * scratch_bytes)
        part += team
    denormals_restore(old)
    if job.poll != NULL:
        poll_join(job.poll, rank, team)


cdef void _run_back(gru_back_job *job, const Cut *cut, Py_ssize_t panels, back_type back,
                    char *scratch, Py_ssize_t scratch_bytes) noexcept nogil:
    cdef int threads = _lease(cut.threads)
    job.counts, job.granted = _thread_counts(), threads
    if threads == 1:
        _back_worker(job, cut, panels, back, scratch, scratch_bytes, 0, 1)
    else:
        with parallel(num_threads=threads):
            _back_worker(job, cut, panels, back, scratch, scratch_bytes, team_rank(), team_size())
    _give_back(threads)


def backward(Fused packed, problem, workspace, states, dy, dstate, int threads):
    """Return (dx, dh0, dkernel, drecurrent_kernel, dbias as (2, 3H) or (3H,)).

    Parameters
    ----------
    packed : Fused
    problem : GRUProblem
    workspace, states
        What `forward(..., save=True)` of the same problem gave; the workspace is used up.
    dy : ndarray in y's shape, or None
    dstate : ndarray (B, H), or None
    threads : int
    """
    cdef gru_back_job job
    cdef Work work
    cdef Cut cut
    cdef interrupt_poll watch
    cdef team_barrier barrier
    cdef Py_buffer *view
    cdef _Views views = _Views.__new__(_Views)
    cdef Py_ssize_t size = packed.size, H, B, T, I, panels, scratch_bytes, d_bytes
    cdef Py_ssize_t product_bytes, total
    cdef back_type back
    cdef products_type products
    cdef char *scratch
    memset(&job, 0, sizeof(job))
    memset(&barrier, 0, sizeof(barrier))
    spec = packed.spec
    dtype = spec.dtype
    H = spec.units

    view = views.take(problem.x, PyBUF_STRIDES)
    if not _strided(view, size):
        view = views.take(np.array(problem.x, order="C"), PyBUF_STRIDES)
    B, T, I = view.shape[0], view.shape[1], view.shape[2]
    job.x, job.x_b, job.x_t = <const char *> view.buf, view.strides[0], view.strides[1]
    job.B, job.T, job.inputs, job.H = B, T, I, H
    job.rows = workspace.rows
    job.reset_after = spec.reset_after
    job.reverse = problem.reverse
    job.sequences = problem.return_sequences
    job.zero_masked = problem.zero_output_for_mask
    job.barrier = &barrier
    job.functions = packed.functions
    job.gates = views.packed(workspace.gates, size)
    if workspace.reset_state is not None:
        job.reset_state = views.packed(workspace.reset_state, size)
    job.states = views.packed(states, size)
    value = problem.h0
    if value is not None:
        job.h0 = views.packed(value, size)
    if dy is not None:
        view = views.take(dy, PyBUF_STRIDES)
        if not _strided(view, size):
            view = views.take(np.array(dy, order="C"), PyBUF_STRIDES)
        job.dy = <const char *> view.buf
        job.dy_b = view.strides[0]
        job.dy_s = view.strides[1] if job.sequences else 0
    _set_masks(views, problem, &job.lengths, &job.steps, &job.resets)
    if workspace.slots is not None:
        job.slots = <const Py_ssize_t *> views.packed(workspace.slots, sizeof(Py_ssize_t))
        job.taken = <const Py_ssize_t *> views.packed(workspace.taken, sizeof(Py_ssize_t))
    value = problem.recurrent_dropout
    if value is not None:
        job.recurrent_dropout = views.packed(value, size)
    value = problem.dropout
    if value is not None:
        job.dropout = views.packed(value, size)
        job.dropout_gates = 3 if value.ndim == 3 else 1
    ut, wt = packed.backward_panels(threads)
    job.ut, job.wt = views.packed(ut, size), views.packed(wt, size)

    carry = np.zeros((B, H), dtype) if dstate is None else np.array(dstate, dtype, order="C")
    job.carry = views.packed(carry, size)
    dx = (_empty if job.taken == NULL else np.zeros)((B, T, I), dtype)
    biases = 2 if spec.reset_after else 1
    dw = aligned((I + biases + H, 3 * H), dtype)
    if job.rows == 0:
        dx[...] = 0
        dw[...] = 0
    if B > 0 and T > 0:
        pending = _empty((B, H), dtype)
        job.dx = views.packed(dx, size)
        job.dw = views.packed(dw, size)
        job.pending = views.packed(pending, size)
        panels = (H + 2 * packed.lanes - 1) // (2 * packed.lanes)
        work.B, work.T, work.inputs, work.H = B, T, I, H
        work.panels, work.lanes, work.size = panels, 2 * packed.lanes, size
        work.products, work.meetings = T, 1 if spec.reset_after else 2
        cut = _cut(threads, &work, True)
        job.input_steps = max(min(INPUT_ROWS // cut.rows, T), <Py_ssize_t> 1)
        job.d_steps = job.input_steps + cut.shared
        d_bytes = _padded(job.d_steps * B * 4 * H * size)
        if size == 4:
            back, products = _kernels_f32().back, _kernels_f32().products
            scratch_bytes = _padded(_kernels_f32().back_scratch(&job, cut.rows))
            product_bytes = _kernels_f32().product_scratch(&job)
        else:
            back, products = _kernels_f64().back, _kernels_f64().products
            scratch_bytes = _padded(_kernels_f64().back_scratch(&job, cut.rows))
            product_bytes = _kernels_f64().product_scratch(&job)
        threads = _team_limit(threads, 6.0 * job.rows * H * (H + I))
        # The walk's scratch and the products' are one after the other in the same memory.
        total = max(d_bytes + cut.threads * scratch_bytes, product_bytes)
        scratch = <char *> allocate_aligned(total)
        if scratch == NULL:
            raise MemoryError(f"scratch of {total} bytes")
        job.d = job.factors = scratch
        if _is_long(2.0 * job.rows, I, H) and _watch(&watch, cut.shared):
            job.poll = &watch
        with nogil:
            _run_back(&job, &cut, panels, back, scratch + d_bytes, scratch_bytes)
            if job.poll == NULL or watch.end == PTRDIFF_MAX:
                watch.together, watch.finished = False, 0
                _run_products(&job, products, threads)
            _enter_brief()
        _leave_brief()
        free_aligned(scratch)
        if job.poll != NULL:
            _raise_if_stopped(job.poll)
    workspace.release()
    dbias = dw[I : I + 2] if spec.reset_after else dw[I]
    return dx, carry, dw[:I], dw[I + biases :], dbias
