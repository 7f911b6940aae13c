# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""GRU backward: the walk back through time, then the gradients of the weights (kernels/job.h)."""

from libc.string cimport memset

from fastgru._native._arrays cimport (
    bytes_of,
    cnp,
    float_type,
    plain_bytes,
    require,
    strides_of,
    walkable,
)
from fastgru._native._headers cimport allocate_aligned, free_aligned, gru_back_job, interrupt_poll
from fastgru._native._headers cimport team_barrier
from fastgru._native._job cimport padded, set_problem
from fastgru._native._kernels cimport Kernels, kernels_of
from fastgru._native._partition cimport Part, Partition, Work, divide, next_part
from fastgru._native._threads cimport (
    counts_of_process,
    is_long,
    is_stopped,
    run_team,
    start_poll,
    team_limit,
    without_gil,
)
from fastgru._native._weights cimport PackedWeights

import numpy as np

from fastgru._native._weights import aligned

cnp.import_array()

cdef object _empty = np.empty


cdef enum:
    INPUT_ROWS = 32           # of d that W^T is read for at once, if there are so many


# The walk and then the products, on one scratch: the products overwrite the walk's.
cdef struct Backward:
    gru_back_job *job
    Kernels kernels
    Partition partition
    Py_ssize_t panels, size
    int product_threads
    char *scratch             # of the walk, each thread's
    Py_ssize_t thread_bytes


cdef void _run(void *backward) noexcept nogil:
    cdef Backward *b = <Backward *> backward
    run_team(_walk, backward, b.partition.threads, &b.job.granted, b.job.poll)
    if not is_stopped(b.job.poll):
        if b.job.poll != NULL:
            b.job.poll.together, b.job.poll.finished = False, 0
        run_team(_multiply, backward, b.product_threads, &b.job.granted, b.job.poll)


cdef void _walk(void *backward, int rank, int team) noexcept nogil:
    cdef Backward *b = <Backward *> backward
    cdef char *scratch = b.scratch + rank * b.thread_bytes
    cdef Part part
    part.number = rank
    while next_part(&b.partition, b.job.B, b.panels, team, &part):
        b.kernels.back(b.job, part.b0, part.n, part.panel0, part.panel1, part.team, scratch)


cdef void _multiply(void *backward, int rank, int team) noexcept nogil:
    cdef Backward *b = <Backward *> backward
    b.kernels.products(b.job, rank, team)


cdef Py_ssize_t _carve(Backward *b, char *memory) noexcept:
    # Divides the scratch; returns its bytes. NULL: only that.
    cdef gru_back_job *job = b.job
    cdef Py_ssize_t used = padded(job.d_steps * job.B * 4 * job.H * b.size)
    b.thread_bytes = padded(b.kernels.back_scratch(job, b.partition.rows))
    if memory != NULL:
        job.d = job.factors = memory
        b.scratch = memory + used
    used += b.partition.threads * b.thread_bytes
    return max(used, b.kernels.product_scratch(job))


cdef int _execute(gru_back_job *job, PackedWeights packed, int threads) except -1:
    # As `execute` of _execute.pyx, for a walk that is never brief.
    cdef Backward backward
    cdef Work work
    cdef interrupt_poll poll
    cdef team_barrier barrier
    cdef Py_ssize_t lanes = 2 * packed.lanes, total
    cdef char *memory
    memset(&barrier, 0, sizeof(barrier))
    job.barrier, job.counts = &barrier, counts_of_process()
    work.B, work.T, work.inputs, work.H = job.B, job.T, job.inputs, job.H
    work.panels, work.lanes, work.size = (job.H + lanes - 1) // lanes, lanes, packed.size
    work.products, work.meetings = job.T, 1 if job.reset_after else 2
    backward.job, backward.size, backward.panels = job, packed.size, work.panels
    backward.kernels = kernels_of(packed.size)
    backward.partition = divide(threads, &work, True)
    backward.product_threads = team_limit(threads, 6.0 * job.rows * job.H * (job.H + job.inputs))
    job.input_steps = max(min(INPUT_ROWS // backward.partition.rows, job.T), <Py_ssize_t> 1)
    job.d_steps = job.input_steps + backward.partition.shared
    total = _carve(&backward, NULL)
    memory = <char *> allocate_aligned(total)
    if memory == NULL:
        raise MemoryError(f"scratch of {total} bytes")
    _carve(&backward, memory)
    if is_long(2.0 * job.rows, job.inputs, job.H) and start_poll(&poll, backward.partition.shared):
        job.poll = &poll
    without_gil(_run, &backward, False)
    free_aligned(memory)
    return -1 if is_stopped(job.poll) else 0


def backward(PackedWeights packed, problem, workspace, states, dy, dstate, int threads):
    """Return (dx, dh0, dkernel, drecurrent_kernel, dbias as (2, 3H) or (3H,)).

    Parameters
    ----------
    packed : PackedWeights
    problem : GRUProblem
    workspace, states
        What `forward(..., save=True)` of the same problem gave; the workspace is used up.
        Of 16 bits, here and in what is returned all arrays have the dtype of sums instead.
    dy : ndarray in y's shape, or None
    dstate : ndarray (B, H), or None
    threads : int
    """
    cdef gru_back_job job
    cdef list kept = []
    cdef Py_ssize_t B, T, I, H = packed.units
    cdef int type = float_type(packed.size)
    memset(&job, 0, sizeof(job))
    set_problem(&job, problem, packed, kept)
    B, T, I = job.B, job.T, job.inputs
    job.H, job.reset_after, job.functions = H, packed.reset_after, packed.functions
    job.rows = workspace.rows
    job.gates = bytes_of(workspace.gates)
    if workspace.reset_state is not None:
        job.reset_state = bytes_of(workspace.reset_state)
    if workspace.slots is not None:
        job.slots = <const Py_ssize_t *> bytes_of(workspace.slots)
        job.taken = <const Py_ssize_t *> bytes_of(workspace.taken)
    require(states, "states", type, 3, B, T, H)
    job.states = plain_bytes(states, kept)
    if dy is not None:
        if job.sequences:
            require(dy, "output_gradients", type, 3, B, T, H)
        else:
            require(dy, "output_gradients", type, 2, B, H)
        dy = walkable(dy, packed.size)
        job.dy, job.dy_b = bytes_of(dy), strides_of(dy)[0]
        job.dy_s = strides_of(dy)[1] if job.sequences else 0
    ut, wt = packed.backward_panels(threads)
    job.ut, job.wt = bytes_of(ut), bytes_of(wt)

    dtype = packed.sums
    carry = np.zeros((B, H), dtype) if dstate is None else np.array(dstate, dtype, order="C")
    require(carry, "state_gradients", type, 2, B, H)
    dx = (_empty if job.taken == NULL else np.zeros)((B, T, I), dtype)
    biases = 2 if packed.reset_after else 1
    dw = aligned((I + biases + H, 3 * H), dtype)
    if job.rows == 0:
        dx[...] = 0
        dw[...] = 0
    if B > 0 and T > 0:
        pending = _empty((B, H), dtype)
        job.carry, job.pending = bytes_of(carry), bytes_of(pending)
        job.dx, job.dw = bytes_of(dx), bytes_of(dw)
        _execute(&job, packed, threads)
    workspace.release()
    dbias = dw[I : I + 2] if packed.reset_after else dw[I]
    return dx, carry, dw[:I], dw[I + biases :], dbias
