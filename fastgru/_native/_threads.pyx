# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The threads of all calls of the process: how many there are, what a fork does to them, the GIL.

Leases of OpenMP's threads, the count of brief calls, and the poll that interrupts a long call.
"""

from cython.parallel cimport parallel

from fastgru._native._headers cimport (
    FASTGRU_OPENMP,
    PTRDIFF_MAX,
    atomic_add,
    denormals_off,
    denormals_restore,
    end_idle_threads,
    give_back,
    interrupt_poll,
    lease,
    leased_threads,
    microseconds,
    oversubscribed,
    poll_join,
    team_rank,
    team_size,
    thread_counts,
)

import os
import threading

cdef extern from *:
    # Runs the handlers of signals that have come; nonzero: one raised, and the exception is set.
    int run_signal_handlers "PyErr_CheckSignals"() noexcept

cdef enum:
    REGION_FLOPS = 1500000    # pays for a parallel region (1 to 2 us)
    LONG_FLOPS = 2000000000   # 30 ms of a core with AVX-512, 0.4 s of one without vectors

cdef bint _pool_lost = False  # OpenMP waits for threads of the process that forked this one
cdef thread_counts _counts
_counts.processors = 1 << 30
cdef int _limit = 1           # threads that may run calls, but for callers' own


# Interrupts: Python's signal handlers wait until its main thread asks for them, which one that
# computes without the GIL does not. So the calls of that thread that may take long ask (runtime.h).

cdef bint is_long(double rows, Py_ssize_t inputs, Py_ssize_t H) noexcept:
    # Whether a call may take so long, its rows counted at every step. 16: of few units, the rest of
    # a step counts.
    return 6.0 * rows * (H + 16.0) * (H + inputs + 16.0) > LONG_FLOPS


cdef bint start_poll(interrupt_poll *poll, bint together) except -1:
    # Prepares a poll; False: this thread runs no handlers.
    if threading.get_ident() != threading.main_thread().ident:
        return False
    poll.ask, poll.asked, poll.end = _ask, microseconds(), PTRDIFF_MAX
    poll.together, poll.finished = together, 0
    return True


cdef int _ask() noexcept nogil:
    with gil:
        return run_signal_handlers() != 0


cdef bint is_stopped(const interrupt_poll *poll) noexcept nogil:
    # The exception is a handler's, and set already. NULL: the call was not long.
    return poll != NULL and poll.end != PTRDIFF_MAX


# Leases: each caller brings a thread of its own; the others are shared by all callers of the
# process, so that N calls of 4 threads do not start 4 N. A call that gets fewer than it hoped for
# takes longer and is otherwise the same.

cdef int _lease(int wanted) noexcept nogil:
    # How many threads the caller may run on, itself included; to be given back.
    return lease(&_counts, wanted, max(_limit, wanted))


cdef int available_threads(int threads) noexcept nogil:
    # How many of so many a lease would give now: by this a call is divided.
    return max(min(threads, max(_limit, threads) - leased_threads(&_counts)), 1)


cdef const thread_counts *counts_of_process() noexcept nogil:
    # For `yield_if_due`.
    return &_counts


cdef void run_team(
    part_type part, void *context, int threads, int *granted, interrupt_poll *poll,
) noexcept nogil:
    # Runs `part` on so many threads, or fewer; OUT granted: how many. The poll may be NULL.
    threads = _lease(threads)
    granted[0] = threads
    if threads == 1:
        _run_part(part, context, poll, 0, 1)
    else:
        with parallel(num_threads=threads):
            _run_part(part, context, poll, team_rank(), team_size())
    give_back(&_counts, threads)


cdef void _run_part(
    part_type part, void *context, interrupt_poll *poll, int rank, int team,
) noexcept nogil:
    # Rank and team are told: without a region of ours they may be those of a caller's.
    cdef unsigned long long old = denormals_off()
    part(context, rank, team)
    denormals_restore(old)
    if poll != NULL:
        poll_join(poll, rank, team)


cdef void without_gil(work_type work, void *context, bint brief) noexcept:
    # Runs it so. Long calls yield to the callers that will ask for the GIL soon: those whose work
    # is brief, and those that are done with theirs.
    with nogil:
        if brief:
            atomic_add(&_counts.brief_calls, 1)
        work(context)
        if not brief:
            atomic_add(&_counts.brief_calls, 1)
    atomic_add(&_counts.brief_calls, -1)


cdef bint processors_taken() noexcept nogil:
    # Whether a team would share its processors with other calls now: so it was of late.
    return oversubscribed(&_counts)


def set_thread_limit(int limit):
    """Take the number of threads that all calls of the process may use together."""
    global _limit
    _limit = limit


def set_processors(int count):
    """Take the number of threads that can run at the same time."""
    _counts.processors = count


def lease_threads(int wanted):
    """Take as many threads as a call that wants so many would get; for tests."""
    return _lease(wanted)


def give_back_threads(int granted):
    """End a `lease_threads`."""
    give_back(&_counts, granted)


def add_brief(int change):
    """Count that many more calls that want the GIL back soon; return how many there are now."""
    atomic_add(&_counts.brief_calls, change)
    return _counts.brief_calls


def threads_in_use():
    """Return how many threads run calls now, the callers' own among them."""
    return leased_threads(&_counts)


# The child of a fork has the forking thread and none of those that libgomp keeps for it, be they
# from our calls or from another library's; a region would wait for them for ever. So they are ended
# before; the next region starts others, in the parent as in the child. That cannot be done inside a
# region: then the child's calls run on one thread.

cdef bint _pool_kept = False


def _before_fork():
    global _pool_kept
    _pool_kept = _pool_lost or not end_idle_threads()


def _after_fork():
    # In the child no call runs.
    global _pool_lost
    _counts.leased = _counts.brief_calls = 0
    _pool_lost = _pool_kept


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


cdef bint may_start_threads() noexcept:
    return FASTGRU_OPENMP and not _pool_lost


cdef int team_limit(int threads, double flops) noexcept:
    # How many threads a call of so much work may start.
    if threads == 1 or flops < REGION_FLOPS or not may_start_threads():
        return 1
    return available_threads(threads)
