# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Small calls of more threads than there are processors: they wait in line, and run together.

A call that finds every processor taken by its like sleeps, where the system would slice the time.
A call that runs takes along those in line that have the same weights: as one batch, which reads
the weights once for all. These are its mates; it wakes them when they are done.

The mates' threads have to come round to their next calls, or there is nothing to take along. So a
call also sleeps, and lets them, while threads that were woken have not got this processor since.
Where threads are matters: a wake-up on the same processor takes 2 us, one that rouses another 20 in
a virtual machine, and two leaders on one processor leave the other idle. (Four callers on two
processors, 50 steps of 128 units: 20,000 calls a second; 15,000 without regard to that; 16,000
sliced by the system.)

Nobody waits for the GIL with a place taken, nor for anything but C code that ends: whenever calls
are in line, one runs or was woken, and hands its place on.
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
from libc.string cimport memset

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
    ROWS = 8                  # of one batch: more are no faster a row
    PATIENCE = 1000           # microseconds for those woken to come round; they may not call again
    PLACES = 256              # processors that are told apart

cdef PyThread_type_lock _door = NULL  # held for nanoseconds, to read or change what follows
cdef int _processors = 1 << 30
cdef int _running             # calls that run, each on a thread of its own
cdef int _carried             # their mates
cdef int _waking              # threads that ran, or were run, and do not have the GIL yet
cdef int _waking_at[PLACES]   # ... by processor
cdef int _waiting             # calls in line
cdef Request *_first
cdef Request *_last
cdef long _mates              # calls that others ran, ever


def _begin():
    # Also in a child of fork: the threads that ran, waited or held the door are not there.
    global _door, _running, _carried, _waking, _waiting, _first, _last
    _door = PyThread_allocate_lock()
    if _door == NULL:
        raise MemoryError("a lock")
    _running = _carried = _waking = _waiting = 0
    memset(_waking_at, 0, sizeof(_waking_at))
    _first = _last = NULL


_begin()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)


cdef bint _enter(Request *request) noexcept:
    # Whether the call runs now, with its mates, if any; otherwise it is in line: `_sleep`. Either
    # way it ends with `_end`; one that runs goes through `_leave` before.
    global _running, _waiting, _first, _last
    request.failed = request.queued = False
    request.leads = True
    request.bed = NULL
    request.next = NULL
    request.processor = processor_now() & (PLACES - 1)
    PyThread_acquire_lock(_door, WAIT_LOCK)
    cdef bint taken = _running >= _processors or (
        _running + _waking >= _processors and _waking_at[request.processor] > 0
    )
    # Threads that the end of the interpreter has stopped never come round.
    if taken and not Py_IsFinalizing():
        request.bed = PyThread_allocate_lock()
    if request.bed == NULL:
        _running += 1
        _gather(request)
    else:
        PyThread_acquire_lock(request.bed, NOWAIT_LOCK)
        request.leads = False
        request.queued = True
        if _first == NULL:
            _first = request
        else:
            _last.next = request
        _last = request
        _waiting += 1
    PyThread_release_lock(_door)
    return request.bed == NULL    # the rest may have changed


cdef void _sleep(Request *request) noexcept nogil:
    # Returns when the call leads, its mates beside it, or has been run.
    global _running
    cdef bint free
    if PyThread_acquire_lock_timed(request.bed, PATIENCE, 0) == 0:
        PyThread_acquire_lock(_door, WAIT_LOCK)
        free = request.queued and _running + _waking < _processors
        if free:
            _take_out(request)
            request.leads = True
            _running += 1
        PyThread_release_lock(_door)
        if not free:              # out of the line, it is about to be woken: not to go before that
            PyThread_acquire_lock(request.bed, WAIT_LOCK)
    if request.leads:
        PyThread_acquire_lock(_door, WAIT_LOCK)
        _gather(request)
        PyThread_release_lock(_door)


cdef void _leave(Request *leader) noexcept nogil:
    # Ends the run of a call: its place goes to the next in line, and its mates are woken.
    global _running, _carried, _waking
    cdef Request *mate = leader.next
    cdef Request *mates = mate
    cdef Request *following
    leader.processor = processor_now() & (PLACES - 1)
    PyThread_acquire_lock(_door, WAIT_LOCK)
    _running -= 1
    _waking += 1
    _waking_at[leader.processor] += 1
    while mate != NULL:
        _carried -= 1
        _waking += 1
        _waking_at[mate.processor] += 1
        mate = mate.next
    following = _call_next(leader.processor)
    PyThread_release_lock(_door)  # before anybody is woken, who would be on its way to it
    while mates != NULL:
        mate = mates.next         # before its thread is woken, on whose stack it lies
        PyThread_release_lock(mates.bed)
        mates = mate
    if following != NULL:
        PyThread_release_lock(following.bed)


cdef void _end(Request *request) noexcept:
    # The thread is back, with the GIL. Who ran nothing for it may be the last to hand the place on.
    global _waking
    cdef Request *following = NULL
    PyThread_acquire_lock(_door, WAIT_LOCK)
    _waking -= 1
    _waking_at[request.processor] -= 1
    if _running + _waking == 0:
        following = _call_next(request.processor)
    PyThread_release_lock(_door)
    if following != NULL:
        PyThread_release_lock(following.bed)
    if request.bed != NULL:
        PyThread_free_lock(request.bed)


# What follows is called with the door held.

cdef void _take_out(Request *wanted) noexcept nogil:
    # Out of the line.
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
    # Lets the first in line lead that went to sleep here, or else the first; it is to be woken.
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
    # Takes a leader's mates out of the line, those that went to sleep on its processor first.
    global _carried, _mates
    cdef Request *request
    cdef Request *mate
    cdef Request *last = leader
    cdef Py_ssize_t rows = ROWS - leader.job.B
    cdef int processor = processor_now() & (PLACES - 1), elsewhere
    # All that is to be done, divided fairly: one that takes too many leaves others too few.
    cdef int share = (_running + _carried + _waiting + _processors - 1) // _processors - 1
    for elsewhere in range(2):
        request = _first
        while request != NULL and share > 0:
            mate = request
            request = request.next
            if (
                (elsewhere or mate.processor == processor)
                and mate.packed == leader.packed and mate.run == leader.run
                and mate.job.T == leader.job.T and mate.job.B <= rows
                and mate.job.sequences == leader.job.sequences
                and mate.job.reverse == leader.job.reverse
            ):
                _take_out(mate)
                last.next = mate
                last = mate
                rows -= mate.job.B
                share -= 1
                _carried += 1
                _mates += 1


def set_processors(int count):
    """Take the number of calls that may run at the same time."""
    global _processors
    _processors = count


def take_place():
    """Take a place as a call that runs; for tests."""
    global _running
    _running += 1


def leave_place():
    """End a `take_place`; the next in line runs."""
    cdef Request request
    memset(&request, 0, sizeof(request))
    with nogil:
        _leave(&request)
    _end(&request)


def counts():
    """Return how many calls run and wait, and how many others have run, ever."""
    return _running, _waiting, _mates
