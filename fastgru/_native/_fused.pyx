# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""GRU forward through the fused loop (job.h): one parallel region a call, and no BLAS."""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE
from cython.parallel cimport parallel
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from fastgru._native._cpu cimport _functions, _kernels_f32, _kernels_f64, _padded, _strided, _Views
from fastgru._native._crowd cimport Request, _leave
from fastgru._native._cut cimport Cut, Work, _cut, _part, _parts, _work
from fastgru._native._threads cimport (
    _enter_brief,
    _give_back,
    _is_long,
    _lease,
    _leave_brief,
    _raise_if_stopped,
    _thread_counts,
    _watch,
)
from fastgru._native.gates cimport (
    ROW_GROUP,
    allocate_aligned,
    denormals_off,
    denormals_restore,
    free_aligned,
    gru_job,
    interrupt_poll,
    poll_join,
    run_scratch_type,
    run_type,
    team_barrier,
    team_rank,
    team_size,
)

import threading

import numpy as np

from fastgru._native import packing
from fastgru._native._packing import aligned

cdef object _empty = np.empty
# What the last backward of a thread has used up. Memory fresh from the system costs a training step
# up to a sixth of its time, and the allocator gives large blocks back too soon.
_spare = threading.local()

cdef enum:
    P_BYTES = 1 << 18         # x.W of one time chunk, per thread: stays in L2 beside the weights
    P_ROWS = 32               # ... but at least so many rows, or W is read too often
    GIL_FLOPS = 200000        # below ~5 us the GIL is not worth releasing
    BRIEF_FLOPS = 50000000    # half a millisecond, or 5 without vectors
    STEP_FLOPS = 1 << 30      # of a step of a long call, a thread: 15 ms to 0.2 s
    STEP_ROWS = 128           # ... but at least so many rows


cdef Py_ssize_t _lanes(Py_ssize_t itemsize) noexcept:
    return _kernels_f32().lanes if itemsize == 4 else _kernels_f64().lanes


def lanes(Py_ssize_t itemsize):
    """Return how many units a panel has; 0: this compiler made no fused loop."""
    return _lanes(itemsize)


cdef class Fused:
    """Packed weights; immutable, made once per weight version.

    Parameters
    ----------
    spec : GRUSpec
    weights : GRUWeights
    threads : int
        Upper bound, for the packing itself.
    """

    def __cinit__(self, spec, weights, int threads):
        self.spec = spec
        self.dtype = spec.dtype
        self.size = spec.dtype.itemsize
        self.inputs, self.units = spec.input_dim, spec.units
        self.lanes = _lanes(self.size)
        self.panels = (spec.units + self.lanes - 1) // self.lanes
        _functions(spec.activation, &self.functions.activation, self.functions.params)
        _functions(
            spec.recurrent_activation,
            &self.functions.recurrent_activation,
            self.functions.recurrent_params,
        )
        w, u, uh, bias = packing.forward_panels(spec, weights, self.lanes, threads)
        self.kept = (w, u, uh, bias)
        self.u_finite = bool(np.isfinite(weights.recurrent_kernel.sum()))
        # Only arrays, no cycle back to the set of weights on which this copy hangs.
        self.kernel, self.recurrent_kernel = weights.kernel, weights.recurrent_kernel
        self.w = <const char *> <uintptr_t> w.ctypes.data
        self.u = <const char *> <uintptr_t> u.ctypes.data
        if uh is not None:
            self.uh = <const char *> <uintptr_t> uh.ctypes.data
        self.bias = <const char *> <uintptr_t> bias.ctypes.data

    cdef object backward_panels(self, int threads):
        # U^T and W^T for the products of backward, made when it is first asked for.
        if self.transposed is None:
            self.transposed = packing.backward_panels(
                self.kernel, self.recurrent_kernel, self.lanes, threads
            )
        return self.transposed


cdef void _forward_worker(gru_job *job, const Cut *cut, Py_ssize_t panels, run_type run,
                          char *scratch, Py_ssize_t scratch_bytes, int rank,
                          int team) noexcept nogil:
    # Rank and team are told: without a region of ours they may be those of a caller's.
    cdef Py_ssize_t b0, n, panel0, panel1
    cdef int part = rank, parts = _parts(cut, team)
    cdef unsigned long long old = denormals_off()
    while part < parts:
        _part(cut, job.B, panels, part, parts, &b0, &n, &panel0, &panel1)
        if n > 0:
            run(job, b0, n, panel0, panel1, team if cut.shared else 1,
                scratch + rank * scratch_bytes)
        part += team
    denormals_restore(old)
    if job.poll != NULL:
        poll_join(job.poll, rank, team)


cdef void _run_forward(gru_job *job, const Cut *cut, Py_ssize_t panels, run_type run,
                       char *scratch, Py_ssize_t scratch_bytes) noexcept nogil:
    cdef int threads = _lease(cut.threads)
    job.counts, job.granted = _thread_counts(), threads
    if threads == 1:
        _forward_worker(job, cut, panels, run, scratch, scratch_bytes, 0, 1)
    else:
        with parallel(num_threads=threads):
            _forward_worker(job, cut, panels, run, scratch, scratch_bytes, team_rank(), team_size())
    _give_back(threads)


cdef int _set_masks(_Views views, problem, const Py_ssize_t **lengths, const unsigned char **steps,
                    const unsigned char **resets) except -1:
    mask = problem.mask
    value = mask.lengths
    if value is not None:
        lengths[0] = <const Py_ssize_t *> views.packed(value, sizeof(Py_ssize_t))
    value = mask.steps
    if value is not None:
        steps[0] = <const unsigned char *> views.packed(value, 1)
    value = problem.resets
    if value is not None:
        resets[0] = <const unsigned char *> views.packed(value, 1)
    return 0


cdef double _flops(const gru_job *job) noexcept nogil:
    return 6.0 * job.B * job.T * job.H * (job.H + job.inputs)


cdef bint _is_brief(const gru_job *job) noexcept nogil:
    return _flops(job) < BRIEF_FLOPS


cdef int _threads_for(get_num_threads, double flops) except -1:
    # Asking costs 0.1 us, a tenth of a small call; and one below ~2 us is never shared.
    return 1 if flops < GIL_FLOPS else get_num_threads()


cdef void _set_weights(gru_job *job, Fused packed) noexcept:
    job.w, job.u, job.uh, job.bias = packed.w, packed.u, packed.uh, packed.bias
    job.u_finite = packed.u_finite
    job.functions = packed.functions
    job.reset_after = packed.uh == NULL


cdef Cut _cut_job(gru_job *job, Fused packed, int threads) noexcept:
    cdef Work work
    _work(
        &work, job.B, job.T, job.inputs, job.H, packed.lanes, packed.size,
        job.h0 != NULL or not job.u_finite, job.reset_after,
    )
    return _cut(threads, &work, True)


cdef void _kernel(Fused packed, run_type *run, run_scratch_type *run_scratch) noexcept:
    if packed.size == 4:
        run[0], run_scratch[0] = _kernels_f32().run, _kernels_f32().run_scratch
    else:
        run[0], run_scratch[0] = _kernels_f64().run, _kernels_f64().run_scratch


cdef char *_allocate(gru_job *job, const Cut *cut, Fused packed, run_scratch_type run_scratch,
                     bint save, Py_ssize_t *each) noexcept nogil:
    # The scratch of a call, `each` bytes a thread and what all share; NULL: no memory.
    cdef Py_ssize_t B = job.B, H = job.H, size = packed.size, columns, extra = 0
    cdef char *scratch
    cdef char *rest
    columns = (packed.panels + cut.threads - 1) // cut.threads if cut.shared else packed.panels
    job.chunk_rows = max(P_BYTES // (3 * packed.lanes * columns * size), <Py_ssize_t> P_ROWS)
    job.chunk_rows = max(min(job.chunk_rows, cut.rows * job.T), cut.rows)
    each[0] = _padded(run_scratch(job, cut.rows, packed.panels))
    if not job.sequences and not save:
        extra += 2 * B * H * size
    if not job.reset_after and job.reset_state == NULL:
        extra += B * H * size
    if job.state == NULL:
        extra += B * H * size
    scratch = <char *> allocate_aligned(cut.threads * each[0] + extra)
    if scratch == NULL:
        return NULL
    job.alternate = scratch + cut.threads * each[0]
    rest = job.alternate + extra
    if job.state == NULL:
        rest -= B * H * size
        job.state = rest
    if not job.reset_after and job.reset_state == NULL:
        job.reset_state = rest - B * H * size
    return scratch


cdef int _run(gru_job *job, Fused packed, int threads, bint save,
              Request *entered) except -1:
    # Cuts the call, allocates its scratch, and runs it. No state: its user does not want it.
    # Entered: it holds a place (_crowd.pyx), which it leaves; else NULL.
    cdef Cut cut = _cut_job(job, packed, threads)
    cdef interrupt_poll watch
    cdef Py_ssize_t each
    cdef bint brief = _is_brief(job)
    if _is_long(<double> job.B * job.T, job.inputs, job.H) and _watch(&watch, cut.shared):
        job.poll = &watch
        _cut_rows(job, &cut)
    cdef run_type run
    cdef run_scratch_type run_scratch
    _kernel(packed, &run, &run_scratch)
    cdef char *scratch = _allocate(job, &cut, packed, run_scratch, save, &each)
    if scratch == NULL:
        if entered != NULL:
            _leave(entered)
        raise MemoryError(f"scratch of {job.B} rows of {job.T} steps")
    if cut.threads > 1:
        memset(job.barrier, 0, sizeof(team_barrier))
    if entered == NULL and cut.threads == 1 and _flops(job) < GIL_FLOPS:
        _run_forward(job, &cut, packed.panels, run, scratch, each)
    else:
        with nogil:
            if brief:
                _enter_brief()
            _run_forward(job, &cut, packed.panels, run, scratch, each)
            if entered != NULL:
                _leave(entered)
            if not brief:
                _enter_brief()
        _leave_brief()
    free_aligned(scratch)
    return _raise_if_stopped(&watch) if job.poll != NULL else 0


cdef void _cut_rows(const gru_job *job, Cut *cut) noexcept:
    # Into pieces of which a step is short: a call stops between steps. No piece is so small that
    # reading the weights for each costs a hundredth of its time.
    cdef double step = 6.0 * job.H * (job.H + job.inputs)
    cdef Py_ssize_t most = max(<Py_ssize_t> (STEP_FLOPS / step), STEP_ROWS)
    if not cut.shared and cut.rows > most:
        cut.parts = <int> ((job.B + most - 1) // most)
        cut.rows = most


class Workspace:
    """What forward keeps for backward, of every row and step that was taken.

    ``gates`` (panels, rows, 4 or 3, lanes) and, with reset_after=False, ``reset_state`` (rows, H)
    are described in job.h. ``slots`` (B * T,) says which row each place of its order has, and
    ``taken`` (rows,) which place each row has; None: all were taken, and both are the same.
    """

    __slots__ = ("gates", "reset_state", "rows", "slots", "taken")

    def __init__(self, problem, Fused packed):
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
        self.gates = aligned(shape, spec.dtype, memory)
        if self.gates.base is not memory:
            # Freed and taken again: of that glibc learns to keep as much for the other arrays of a
            # training step too, rather than return it to the system and fetch it page by page.
            self.gates = None
            self.gates = aligned(shape, spec.dtype)
        if not spec.reset_after:
            self.reset_state = _empty((self.rows, spec.units), spec.dtype)

    def release(self):
        """Leave the largest part of the memory to the next forward call of this thread."""
        _spare.memory = self.gates.base
        self.gates = None


def forward(Fused packed, problem, int threads, bint save, bint keep_gates):
    """Run a `GRUProblem` that `CPUBackend.supports`; return (y, state, states, workspace).

    Parameters
    ----------
    packed : Fused
        Of the problem's spec and weights.
    problem : GRUProblem
    threads : int
        Upper bound, at least 1.
    save : bool
        Also return what `backward` needs, else None twice; the states may be y itself.
    keep_gates : bool
        With ``save``: without the workspace, backward runs forward again.
    """
    cdef gru_job job
    cdef team_barrier barrier
    cdef Py_buffer *view
    cdef _Views views = _Views.__new__(_Views)
    cdef Py_ssize_t size = packed.size, B, T, H, I
    memset(&job, 0, sizeof(job))
    spec = packed.spec
    dtype = spec.dtype
    H = spec.units

    view = views.take(problem.x, PyBUF_STRIDES)
    if not _strided(view, size):
        view = views.take(np.array(problem.x, order="C"), PyBUF_STRIDES)
    job.x = <const char *> view.buf
    B, T, I = view.shape[0], view.shape[1], view.shape[2]
    job.B, job.T, job.inputs, job.H = B, T, I, H
    job.x_b, job.x_t = view.strides[0], view.strides[1]
    _set_weights(&job, packed)
    job.reverse = problem.reverse
    job.sequences = problem.return_sequences
    job.zero_masked = problem.zero_output_for_mask
    job.barrier = &barrier
    value = problem.h0
    if value is not None:
        job.h0 = views.packed(value, size)
    _set_masks(views, problem, &job.lengths, &job.steps, &job.resets)
    value = problem.dropout
    if value is not None:
        job.dropout = views.packed(value, size)
        job.dropout_gates = 3 if value.ndim == 3 else 1
    value = problem.recurrent_dropout
    if value is not None:
        job.recurrent_dropout = views.packed(value, size)

    state = _empty((B, H), dtype)
    view = views.take(state, PyBUF_STRIDES | PyBUF_WRITABLE)
    job.state = <char *> view.buf
    out = problem.out
    y = out
    if y is None:
        y = _empty((B, T, H), dtype) if job.sequences else _empty((B, H), dtype)
    view = views.take(y, PyBUF_STRIDES | PyBUF_WRITABLE)
    if out is not None and not _strided(view, size):
        y = _empty(out.shape, dtype)
        view = views.take(y, PyBUF_STRIDES | PyBUF_WRITABLE)
    job.y = <char *> view.buf
    job.y_b = view.strides[0]
    job.y_s = view.strides[1] if job.sequences else 0
    states = workspace = None
    if save:
        if job.sequences and job.steps == NULL and job.lengths == NULL and out is None:
            states = y
        else:
            states = _empty((B, T, H), dtype)
            view = views.take(states, PyBUF_STRIDES | PyBUF_WRITABLE)
            job.states = <char *> view.buf
    if save and keep_gates:
        workspace = Workspace(problem, packed)
        job.gates = views.packed(workspace.gates, size)
        job.rows_kept = workspace.rows
        if workspace.reset_state is not None:
            job.reset_state = views.packed(workspace.reset_state, size)
        if workspace.slots is not None:
            job.slots = <const Py_ssize_t *> views.packed(workspace.slots, sizeof(Py_ssize_t))

    if B > 0:
        _run(&job, packed, threads, save, NULL)
    if out is not None and y is not out:
        out[...] = y
        y = out
    return y, state, states, workspace
