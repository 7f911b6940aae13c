# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Calls with nothing special to them, by the shortest road; small ones of many threads as one."""

from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset

from fastgru._native._arrays cimport (
    bytes_of,
    cnp,
    empty,
    float_type,
    is_native,
    is_plain,
    shape_of,
    strides_of,
)
from fastgru._native._crowd cimport Request, _end, _enter, _leave, _sleep
from fastgru._native._cut cimport Cut
from fastgru._native._fused cimport (
    Fused,
    _allocate,
    _flops,
    _is_brief,
    _kernel,
    _lanes,
    _run,
    _run_forward,
    _set_weights,
    _threads_for,
)
from fastgru._native._threads cimport _enter_brief, _is_long, _leave_brief
from fastgru._native.gates cimport allocate_aligned, free_aligned, gru_job, team_barrier

cnp.import_array()

cdef enum:
    CROWD_FLOPS = 3000000     # below ~50 us sleeping costs more than it gains, and ...
    CROWD_ROWS = 4            # ... more rows gain nothing from other calls' rows


def quick(Fused packed, x, bint sequences, bint with_state, bint reverse, get_num_threads):
    """Run a call that has nothing but x.

    Parameters
    ----------
    packed : Fused
    x : object
    sequences, with_state, reverse : bool
    get_num_threads : callable
        Asked only where the work is enough for two.

    Returns
    -------
    y, or (y, state) with ``with_state``; None unless x is an ndarray (B, T, I) of the spec's dtype
    and I that the loop can walk.
    """
    cdef gru_job job
    cdef team_barrier barrier
    cdef Py_ssize_t size = packed.size, H = packed.units, B, T
    cdef int type = float_type(size)
    cdef cnp.npy_intp shape[3]
    if packed.lanes != _lanes(size) or not is_native(x, type, 3):
        return None
    B, T = shape_of(x)[0], shape_of(x)[1]
    if B == 0 or shape_of(x)[2] != packed.inputs or not _walkable(x, size):
        return None
    memset(&job, 0, sizeof(job))
    shape[0], shape[1], shape[2] = B, T, H
    if sequences:
        y = empty(3, shape, type)
        job.y_b, job.y_s = T * H * size, H * size
    shape[1] = H
    if not sequences:
        y = empty(2, shape, type)
        job.y_b = H * size
    state = None
    if with_state:
        state = empty(2, shape, type)
        job.state = bytes_of(state)
    job.B, job.T, job.inputs, job.H = B, T, packed.inputs, H
    job.x, job.x_b, job.x_t = bytes_of(x), strides_of(x)[0], strides_of(x)[1]
    job.y = bytes_of(y)
    job.sequences, job.reverse = sequences, reverse
    _set_weights(&job, packed)
    job.barrier = &barrier
    cdef double flops = _flops(&job)
    cdef int threads = _threads_for(get_num_threads, flops)
    # Nobody is to wait for a long call, and who waits sees no interrupt.
    if flops < CROWD_FLOPS or B > CROWD_ROWS or _is_long(<double> B * T, packed.inputs, H):
        _run(&job, packed, threads, False, NULL)
    else:
        _run_among_others(&job, packed, threads)
    return (y, state) if with_state else y


def step(Fused packed, x, h0, get_num_threads):
    """Run one step from a state; return the new state, a new array.

    None unless x (B, I) and h0 (B, H) are ndarrays of the spec's dtype, I and H, C-contiguous and
    aligned.

    Parameters
    ----------
    packed : Fused
    x, h0 : object
    get_num_threads : callable
        Asked only where the work is enough for two.
    """
    cdef gru_job job
    cdef team_barrier barrier
    cdef Py_ssize_t size = packed.size, H = packed.units, I = packed.inputs, B
    cdef int type = float_type(size)
    if packed.lanes != _lanes(size) or not is_plain(x, type, 2) or not is_plain(h0, type, 2):
        return None
    B = shape_of(x)[0]
    if B == 0 or shape_of(x)[1] != I or shape_of(h0)[0] != B or shape_of(h0)[1] != H:
        return None
    memset(&job, 0, sizeof(job))
    y = empty(2, shape_of(h0), type)
    job.B, job.T, job.inputs, job.H = B, 1, I, H
    job.x, job.x_b, job.h0 = bytes_of(x), I * size, bytes_of(h0)
    job.y, job.y_b = bytes_of(y), H * size
    job.state = job.y  # where the last state is already
    job.sequences = True
    _set_weights(&job, packed)
    job.barrier = &barrier
    _run(&job, packed, _threads_for(get_num_threads, _flops(&job)), False, NULL)
    return y


cdef bint _walkable(x, Py_ssize_t size) noexcept:
    # As _strided: last axis contiguous, everything aligned; x has three axes.
    cdef cnp.npy_intp *shape = shape_of(x)
    cdef cnp.npy_intp *strides = strides_of(x)
    return (
        <uintptr_t> bytes_of(x) % size == 0
        and (shape[0] < 2 or strides[0] % size == 0)
        and (shape[1] < 2 or strides[1] % size == 0)
        and (shape[2] < 2 or strides[2] == size)
    )


cdef int _run_among_others(gru_job *job, Fused packed, int threads) except -1:
    # A small call, which may have to wait for a processor, and run or be run with others.
    cdef Request request
    request.job, request.packed = job, <void *> packed
    _kernel(packed, &request.run, &request.run_scratch)
    cdef bint enters = _enter(&request), brief = _is_brief(job)
    try:
        if enters and request.next == NULL:
            _run(job, packed, threads, False, &request)
        else:
            with nogil:
                if brief:
                    _enter_brief()
                if not enters:
                    _sleep(&request)
                if request.leads:
                    _run_all(&request, packed)
                    _leave(&request)
                if not brief:
                    _enter_brief()
            _leave_brief()
    finally:
        _end(&request)
    if request.failed:
        raise MemoryError(f"scratch of {job.B} rows of {job.T} steps")
    return 0


cdef void _run_all(Request *leader, Fused packed) noexcept nogil:
    # The call and its mates': as one, or where there is no memory for that, one after the other.
    cdef Request *request = leader
    if leader.next == NULL or not _run_batch(leader, packed):
        while request != NULL:
            request.failed = not _run_here(request.job, packed, leader)
            request = request.next


cdef bint _run_here(gru_job *job, Fused packed, const Request *leader) noexcept nogil:
    # On this thread; False: no memory.
    cdef Cut cut
    cdef Py_ssize_t each
    memset(&cut, 0, sizeof(cut))
    cut.threads, cut.rows = 1, job.B
    cdef char *scratch = _allocate(job, &cut, packed, leader.run_scratch, False, &each)
    if scratch != NULL:
        _run_forward(job, &cut, packed.panels, leader.run, scratch, each)
        free_aligned(scratch)
    return scratch != NULL


cdef bint _run_batch(Request *leader, Fused packed) noexcept nogil:
    # False: no memory. The copies are little beside the work: a value of x is used 3 H times.
    cdef gru_job job = leader.job[0]
    cdef Request *request = leader.next
    cdef Py_ssize_t size = packed.size, state_b = job.H * size, b, t, n
    cdef char *memory
    cdef char *x
    cdef char *y
    cdef char *state
    cdef bint good
    while request != NULL:
        job.B += request.job.B
        request = request.next
    job.x_t, job.y_s = job.inputs * size, state_b
    job.x_b, job.y_b = job.T * job.x_t, job.T * state_b if job.sequences else state_b
    memory = <char *> allocate_aligned(job.B * (job.x_b + job.y_b + state_b))
    if memory == NULL:
        return False
    x, y = memory, memory + job.B * job.x_b
    state = y + job.B * job.y_b
    job.x, job.y, job.state = x, y, state
    request = leader
    while request != NULL:
        for b in range(request.job.B):
            for t in range(job.T):
                memcpy(x, request.job.x + b * request.job.x_b + t * request.job.x_t, job.x_t)
                x += job.x_t
        request = request.next
    good = _run_here(&job, packed, leader)
    request = leader if good else NULL
    while request != NULL:
        n = request.job.B
        memcpy(request.job.y, y, n * job.y_b)
        if request.job.state != NULL:
            memcpy(request.job.state, state, n * state_b)
        y += n * job.y_b
        state += n * state_b
        request = request.next
    free_aligned(memory)
    return good
