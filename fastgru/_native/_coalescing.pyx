# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Request coalescing: small calls of more threads than there are processors run as batches.

A call that finds every processor taken by its like waits asleep in a queue, where the system would
slice the time. A call that runs takes requests with the same weights out of the queue and runs them
with itself as one batch, which reads the weights once for all. It leads the batch, and wakes the
others when it is done.

Those threads have to come round to their next calls, or there is nothing for the next batch. So a
call also waits while threads that were woken have not got this processor since. Where threads are
matters: a wake-up on the same processor takes 2 us, one that rouses another 20 in a virtual
machine, and two leaders on one processor leave the other idle. (Four callers on two processors, 50
steps of 128 units: 20,000 calls a second; 15,000 without regard to that; 16,000 sliced by the
system.)

Nobody waits for the GIL while its request runs, nor for anything but C code that ends: whenever
requests wait, one runs or was woken, and lets the next one run.
"""

from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from libc.string cimport memcpy, memset

from fastgru._native._execute cimport Execution, allocate, begin, is_brief, run
from fastgru._native._headers cimport allocate_aligned, free_aligned, gru_job
from fastgru._native._job cimport item_of
from fastgru._native._partition cimport divide_job
from fastgru._native._threads cimport without_gil
from fastgru._native._weights cimport PackedWeights

import os

cdef extern from *:
    """
    #ifdef __linux__
    #    include <sched.h>
    static int processor_now(void) { return sched_getcpu(); }
    #else
    static int processor_now(void) { return 0; } /* as if there were one */
    #endif
    #if PY_VERSION_HEX < 0x030D0000
    #    define Py_IsFinalizing _Py_IsFinalizing
    #endif
    """
    int processor_now() nogil
    bint Py_IsFinalizing()

cdef extern from "pythread.h" nogil:
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag)

cdef enum:
    BATCH_ROWS = 8            # of one batch: more are no faster a row
    PATIENCE = 1000           # microseconds for those woken to come round; they may not call again
    PLACES = 256              # processors that are told apart

# A call that runs or waits; it lies on the stack of its thread.
cdef struct Request:
    Execution execution
    const void *packed        # only calls of the same packed weights run as one
    bint failed               # there was no memory to run it
    bint leads                # its thread runs it; else the leader of its batch does
    bint queued
    int processor             # where its thread is, or went to sleep
    PyThread_type_lock wake   # held until the thread is woken; NULL: the request never waits
    Request *next             # in the queue; in a batch, whose first is its leader

cdef PyThread_type_lock _queue_lock = NULL  # held for nanoseconds, to read or change what follows
cdef int _processors = 1 << 30
cdef int _running             # requests that run, each on a thread of its own
cdef int _batched             # ... and those that they run with themselves
cdef int _waking              # threads that ran, or were run, and do not have the GIL yet
cdef int _waking_at[PLACES]   # ... by processor
cdef int _waiting             # requests in the queue
cdef Request *_first
cdef Request *_last
cdef long _coalesced          # requests that others ran, ever


def _begin():
    # Also in a child of fork: the threads that ran, waited or held the lock are not there.
    global _queue_lock, _running, _batched, _waking, _waiting, _first, _last
    _queue_lock = PyThread_allocate_lock()
    if _queue_lock == NULL:
        raise MemoryError("a lock")
    _running = _batched = _waking = _waiting = 0
    memset(_waking_at, 0, sizeof(_waking_at))
    _first = _last = NULL


_begin()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)


cdef int execute_coalesced(gru_job *job, PackedWeights packed, int threads) except -1:
    # As `execute` of _execute.pyx, for a job that has nothing but x.
    cdef Request request
    request.packed = <void *> packed
    request.execution.memory, request.execution.capacity = NULL, 0
    begin(&request.execution, job, packed)
    request.execution.partition = divide_job(job, packed, 1)
    _enter(&request)
    # Who has to share the processors has no team. (Of one in the queue, others read the partition.)
    if request.wake == NULL and request.next == NULL:
        request.execution.partition = divide_job(job, packed, threads)
    without_gil(_serve, &request, is_brief(job))
    _end(&request)
    if request.failed:
        raise MemoryError(f"scratch of {job.B} rows of {job.T} steps")
    return 0


cdef void _serve(void *waiting) noexcept nogil:
    # Until the request has been run, here or by the leader of its batch.
    cdef Request *leader = <Request *> waiting
    cdef Request *request = leader
    if leader.wake != NULL:
        _wait(leader)
    if leader.leads:
        # Where there is no memory for a batch, one after the other.
        if leader.next == NULL or not _run_batch(leader):
            while request != NULL:
                request.failed = not _run_alone(&request.execution)
                request = request.next
        _leave(leader)


cdef bint _run_alone(Execution *execution) noexcept nogil:
    # False: no memory.
    cdef bint good = allocate(execution)
    if good:
        run(execution)
        free_aligned(execution.memory)
    return good


cdef bint _run_batch(Request *leader) noexcept nogil:
    # False: no memory. The copies are little beside the work: a value of x is used 3 H times.
    cdef Execution batch = leader.execution
    cdef gru_job job = leader.execution.job[0]
    cdef gru_job *one
    cdef Request *request = leader.next
    cdef Py_ssize_t item = item_of(&job, batch.size), state_b = job.H * item, b, t
    cdef char *memory
    cdef char *x
    cdef char *y
    cdef char *state
    cdef bint good
    while request != NULL:
        job.B += request.execution.job.B
        request = request.next
    batch.job, batch.partition.rows = &job, job.B
    job.x_t, job.y_s = job.inputs * item, state_b
    job.x_b, job.y_b = job.T * job.x_t, job.T * state_b if job.sequences else state_b
    memory = <char *> allocate_aligned(job.B * (job.x_b + job.y_b + state_b))
    if memory == NULL:
        return False
    x, y = memory, memory + job.B * job.x_b
    state = y + job.B * job.y_b
    job.x, job.y, job.state = x, y, state
    request = leader
    while request != NULL:
        one = request.execution.job
        for b in range(one.B):
            for t in range(job.T):
                memcpy(x, one.x + b * one.x_b + t * one.x_t, job.x_t)
                x += job.x_t
        request = request.next
    good = _run_alone(&batch)
    request = leader if good else NULL
    while request != NULL:
        one = request.execution.job
        memcpy(one.y, y, one.B * job.y_b)
        if one.state != NULL:
            memcpy(one.state, state, one.B * state_b)
        y += one.B * job.y_b
        state += one.B * state_b
        request = request.next
    free_aligned(memory)
    return good


cdef void _enter(Request *request) noexcept:
    # The request leads a batch now, if only of itself; or it is in the queue, has a `wake`, and
    # goes through `_wait`. A leader goes through `_leave`, and then every request through `_end`.
    global _running, _waiting, _first, _last
    request.failed = request.queued = False
    request.leads = True
    request.wake = NULL
    request.next = NULL
    request.processor = processor_now() & (PLACES - 1)
    PyThread_acquire_lock(_queue_lock, WAIT_LOCK)
    cdef bint taken = _running >= _processors or (
        _running + _waking >= _processors and _waking_at[request.processor] > 0
    )
    # Threads that the end of the interpreter has stopped never come round.
    if taken and not Py_IsFinalizing():
        request.wake = PyThread_allocate_lock()
    if request.wake == NULL:
        _running += 1
        _gather(request)
    else:
        PyThread_acquire_lock(request.wake, NOWAIT_LOCK)
        request.leads = False
        request.queued = True
        if _first == NULL:
            _first = request
        else:
            _last.next = request
        _last = request
        _waiting += 1
    PyThread_release_lock(_queue_lock)


cdef void _wait(Request *request) noexcept nogil:
    # Returns when the request leads a batch, or has been run.
    global _running
    cdef bint free
    if PyThread_acquire_lock_timed(request.wake, PATIENCE, 0) == 0:
        PyThread_acquire_lock(_queue_lock, WAIT_LOCK)
        free = request.queued and _running + _waking < _processors
        if free:
            _take_out(request)
            request.leads = True
            _running += 1
        PyThread_release_lock(_queue_lock)
        if not free:              # out of the queue, it is about to be woken, and stays
            PyThread_acquire_lock(request.wake, WAIT_LOCK)
    if request.leads:
        PyThread_acquire_lock(_queue_lock, WAIT_LOCK)
        _gather(request)
        PyThread_release_lock(_queue_lock)


cdef void _leave(Request *leader) noexcept nogil:
    # Ends the run of a batch: the next in the queue leads, and the others of the batch are woken.
    global _running, _batched, _waking
    cdef Request *others = leader.next
    cdef Request *request = others
    cdef Request *following
    leader.processor = processor_now() & (PLACES - 1)
    PyThread_acquire_lock(_queue_lock, WAIT_LOCK)
    _running -= 1
    _waking += 1
    _waking_at[leader.processor] += 1
    while request != NULL:
        _batched -= 1
        _waking += 1
        _waking_at[request.processor] += 1
        request = request.next
    following = _call_next(leader.processor)
    PyThread_release_lock(_queue_lock)  # before anybody is woken, who would be on its way to it
    while others != NULL:
        request = others
        others = others.next      # before its thread is woken, on whose stack it lies
        PyThread_release_lock(request.wake)
    if following != NULL:
        PyThread_release_lock(following.wake)


cdef void _end(Request *request) noexcept:
    # The thread is back, with the GIL. It may be the last that can let the next request lead.
    global _waking
    cdef Request *following = NULL
    PyThread_acquire_lock(_queue_lock, WAIT_LOCK)
    _waking -= 1
    _waking_at[request.processor] -= 1
    if _running + _waking == 0:
        following = _call_next(request.processor)
    PyThread_release_lock(_queue_lock)
    if following != NULL:
        PyThread_release_lock(following.wake)
    if request.wake != NULL:
        PyThread_free_lock(request.wake)


# What follows is called with the queue lock held.

cdef void _take_out(Request *wanted) noexcept nogil:
    # Out of the queue.
    global _waiting, _first, _last
    cdef Request *before = NULL
    cdef Request *request = _first
    while request != wanted:
        before = request
        request = request.next
    if before == NULL:
        _first = request.next
    else:
        before.next = request.next
    if _last == request:
        _last = before
    request.next = NULL
    request.queued = False
    _waiting -= 1


cdef Request *_call_next(int processor) noexcept nogil:
    # Lets the first lead that went to sleep here, or else the first; it is to be woken.
    global _running
    cdef Request *request = _first
    while request != NULL and request.processor != processor:
        request = request.next
    if request == NULL:
        request = _first
    if request != NULL:
        _take_out(request)
        request.leads = True
        _running += 1
    return request


cdef void _gather(Request *leader) noexcept nogil:
    # Takes a leader's batch out of the queue, those that went to sleep on its processor first.
    global _batched, _coalesced
    cdef gru_job *job = leader.execution.job
    cdef gru_job *other
    cdef Request *request
    cdef Request *following
    cdef Request *last = leader
    cdef Py_ssize_t rows = BATCH_ROWS - job.B
    cdef int processor = processor_now() & (PLACES - 1), elsewhere
    # All that is to be done, divided fairly: one that takes too many leaves others too few.
    cdef int share = (_running + _batched + _waiting + _processors - 1) // _processors - 1
    for elsewhere in range(2):
        following = _first
        while following != NULL and share > 0:
            request = following
            following = request.next
            other = request.execution.job
            if (
                (elsewhere or request.processor == processor)
                and request.packed == leader.packed
                and other.T == job.T and other.B <= rows
                and other.sequences == job.sequences and other.reverse == job.reverse
            ):
                _take_out(request)
                last.next = request
                last = request
                rows -= other.B
                share -= 1
                _batched += 1
                _coalesced += 1


def set_processors(int count):
    """Take the number of requests that may run at the same time."""
    global _processors
    _processors = count


def take_place():
    """Count a request that runs; for tests."""
    global _running
    _running += 1


def leave_place():
    """End a `take_place`; the next in the queue runs."""
    cdef Request request
    memset(&request, 0, sizeof(request))
    with nogil:
        _leave(&request)
    _end(&request)


def counts():
    """Return how many requests run and wait, and how many others have run, ever."""
    return _running, _waiting, _coalesced
