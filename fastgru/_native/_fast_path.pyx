# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The fast path: calls with nothing special to them, from plain arrays straight to the kernel."""

from libc.string cimport memset

from fastgru._native._arrays cimport (
    bytes_of,
    cnp,
    empty,
    is_native,
    is_plain,
    is_walkable,
    shape_of,
)
from fastgru._native._coalescing cimport execute_coalesced, is_worth_waiting
from fastgru._native._execute cimport GIL_FLOPS, execute, threads_for
from fastgru._native._headers cimport gru_job
from fastgru._native._held cimport hold
from fastgru._native._job cimport set_step, set_weights, set_x, set_y
from fastgru._native._kernels cimport isa_in_use
from fastgru._native._weights cimport PackedWeights

cnp.import_array()


cdef inline bint needs_hold(PackedWeights packed, double rows) noexcept:
    # Whether other threads may run before so many rows and steps are done. If not, nothing happens
    # to the arrays either.
    return 6.0 * rows * packed.units * (packed.units + packed.inputs) >= GIL_FLOPS


def call(
    PackedWeights packed, x, bint sequences, bint with_state, bint reverse, get_num_threads,
):
    """Run a call that has nothing but x.

    Parameters
    ----------
    packed : PackedWeights
    x : object
    sequences, with_state, reverse : bool
    get_num_threads : callable
        Asked only where the work is enough for two.

    Returns
    -------
    y, or (y, state) with ``with_state``; None unless x is an ndarray (B, T, I) of the spec's dtype
    and I that the kernels can walk.
    """
    cdef gru_job job
    cdef int type = packed.type, threads
    cdef cnp.npy_intp shape[3]
    held = None
    if is_native(x, type, 3) and needs_hold(packed, <double> shape_of(x)[0] * shape_of(x)[1]):
        held = hold(x)            # before it is checked, as other threads may run in there
    if packed.isa != isa_in_use() or not is_native(x, type, 3):
        return None
    if (
        shape_of(x)[0] == 0 or shape_of(x)[2] != packed.inputs
        or not is_walkable(x, packed.item)
    ):
        return None
    memset(&job, 0, sizeof(job))
    set_weights(&job, packed)
    set_x(&job, x)
    job.sequences, job.reverse = sequences, reverse
    shape[0], shape[1], shape[2] = job.B, job.T, job.H
    if sequences:
        y = empty(3, shape, type)
    shape[1] = job.H
    if not sequences:
        y = empty(2, shape, type)
    set_y(&job, y)
    state = None
    if with_state:
        state = empty(2, shape, type)
        job.state = bytes_of(state)
    threads = threads_for(get_num_threads, &job)
    if is_worth_waiting(&job):
        execute_coalesced(&job, packed, threads)
    else:
        execute(&job, packed, threads)
    return (y, state) if with_state else y


def step(PackedWeights packed, x, h0, get_num_threads):
    """Run one step from a state; return the new state, a new array.

    None unless x (B, I) and h0 (B, H) are ndarrays of the spec's dtype, I and H, C-contiguous and
    aligned.

    Parameters
    ----------
    packed : PackedWeights
    x, h0 : object
    get_num_threads : callable
        Asked only where the work is enough for two.
    """
    cdef gru_job job
    cdef Py_ssize_t B
    cdef int type = packed.type
    held = None
    if is_plain(x, type, 2) and is_plain(h0, type, 2) and needs_hold(packed, shape_of(x)[0]):
        held = (hold(x), hold(h0))
    if packed.isa != isa_in_use() or not is_plain(x, type, 2) or not is_plain(h0, type, 2):
        return None
    B = shape_of(x)[0]
    if (
        B == 0 or shape_of(x)[1] != packed.inputs
        or shape_of(h0)[0] != B or shape_of(h0)[1] != packed.units
    ):
        return None
    memset(&job, 0, sizeof(job))
    set_weights(&job, packed)
    set_step(&job, B, packed.inputs, packed.units, packed.item)
    y = empty(2, shape_of(h0), type)
    job.x, job.h0 = bytes_of(x), bytes_of(h0)
    job.y = job.state = bytes_of(y)  # where the last state is already
    execute(&job, packed, threads_for(get_num_threads, &job))
    return y
