# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The threads of all calls of the process: how many there are, what a fork does to them, signals.

Leases of OpenMP's threads, the threads of BLAS, and the watch by which a long call is interrupted.
"""

from libc.stdint cimport uintptr_t

from fastgru._native.gates cimport (
    FASTGRU_OPENMP,
    PTRDIFF_MAX,
    atomic_add,
    end_idle_threads,
    give_back,
    interrupt_poll,
    lease,
    leased_threads,
    microseconds,
    oversubscribed,
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

cdef bint _is_long(double rows, Py_ssize_t inputs, Py_ssize_t H) noexcept:
    # Whether a call may take so long, its rows counted at every step. 16: of few units, the rest of
    # a step counts.
    return 6.0 * rows * (H + 16.0) * (H + inputs + 16.0) > LONG_FLOPS


cdef bint _watch(interrupt_poll *watch, bint together) except -1:
    # Prepares a watch; False: this thread runs no handlers.
    if threading.get_ident() != threading.main_thread().ident:
        return False
    watch.ask, watch.asked, watch.end = _ask, microseconds(), PTRDIFF_MAX
    watch.together, watch.finished = together, 0
    return True


cdef int _ask() noexcept nogil:
    with gil:
        return run_signal_handlers() != 0


cdef int _raise_if_stopped(const interrupt_poll *watch) except -1:
    # The exception is a handler's, and set already.
    return 0 if watch.end == PTRDIFF_MAX else -1


# Leases: each caller brings a thread of its own; the others are shared by all callers of the
# process, so that N calls of 4 threads do not start 4 N. A call that gets fewer than it hoped for
# takes longer and is otherwise the same.

cdef int _lease(int wanted) noexcept nogil:
    # How many threads the caller may run on, itself included; to be given back.
    return lease(&_counts, wanted, max(_limit, wanted))


cdef void _give_back(int granted) noexcept nogil:
    give_back(&_counts, granted)


cdef int _available(int threads) noexcept nogil:
    # How many of so many a lease would give now: by this a call is cut.
    return max(min(threads, max(_limit, threads) - leased_threads(&_counts)), 1)


cdef const thread_counts *_thread_counts() noexcept nogil:
    # Of the process, for `yield_if_due`.
    return &_counts


cdef void _enter_brief() noexcept nogil:
    # The caller will ask for the GIL soon: its call is short, or done. Long ones give way.
    atomic_add(&_counts.brief_calls, 1)


cdef void _leave_brief() noexcept:
    # It has the GIL.
    atomic_add(&_counts.brief_calls, -1)


cdef bint _crowded() noexcept nogil:
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
    _give_back(granted)


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


cdef bint _may_start_threads() noexcept:
    return FASTGRU_OPENMP and not _pool_lost


cdef int _team_limit(int threads, double flops) noexcept:
    # How many threads a call of so much work may start.
    if threads == 1 or flops < REGION_FLOPS or not _may_start_threads():
        return 1
    return _available(threads)


# BLAS threads: ours are around the calls, its own would fight them (OpenBLAS#3187: 10 times
# slower). The setting is global in OpenBLAS, so callers are counted: the first lowers it, the last
# restores it. Both hold the GIL.

ctypedef int (*get_threads_type)() noexcept nogil
ctypedef void (*set_threads_type)(int) noexcept nogil
cdef get_threads_type _blas_get = NULL
cdef set_threads_type _blas_set = NULL
cdef int _blas_callers = 0, _blas_saved = 0


def set_blas_functions(uintptr_t get_threads, uintptr_t set_threads):
    """Take the addresses of ``int get()`` and ``void set(int)`` of the BLAS in use."""
    global _blas_get, _blas_set
    _blas_get = <get_threads_type> get_threads
    _blas_set = <set_threads_type> set_threads


cdef void _blas_enter() noexcept:
    global _blas_callers, _blas_saved
    if _blas_set != NULL:
        if _blas_callers == 0:
            _blas_saved = _blas_get()
            if _blas_saved != 1:
                _blas_set(1)
        _blas_callers += 1


cdef void _blas_exit() noexcept:
    global _blas_callers
    if _blas_set != NULL:
        _blas_callers -= 1
        if _blas_callers == 0 and _blas_saved != 1:
            _blas_set(_blas_saved)
