# Small calls of many threads: who runs, who waits, and who is run by another.

from cpython.pythread cimport PyThread_type_lock

from fastgru._native.gates cimport gru_job, run_scratch_type, run_type

# A call that runs or waits; it lies on the stack of its thread.
cdef struct Request:
    gru_job *job
    const void *packed        # only calls of the same packed weights run as one
    run_type run
    run_scratch_type run_scratch
    bint failed               # there was no memory to run it
    bint leads                # it runs; else its leader runs it
    bint queued
    int processor             # where its thread is, or went to sleep
    PyThread_type_lock bed    # held until the thread is woken; NULL: it need not sleep
    Request *next             # in the queue; of a leader and its mates, the next mate

cdef bint _enter(Request *request) noexcept
cdef void _sleep(Request *request) noexcept nogil
cdef void _leave(Request *leader) noexcept nogil
cdef void _end(Request *request) noexcept
