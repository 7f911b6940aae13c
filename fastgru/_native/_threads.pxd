# Threads, the GIL and interrupts: the rules that every call of a kernel keeps.

from fastgru._native._headers cimport interrupt_poll, thread_counts

ctypedef void (*work_type)(void *context) noexcept nogil
ctypedef void (*part_type)(void *context, int rank, int team) noexcept nogil

cdef void without_gil(work_type work, void *context, bint brief) noexcept
cdef void run_team(
    part_type part, void *context, int threads, int *granted, interrupt_poll *poll,
) noexcept nogil
cdef const thread_counts *counts_of_process() noexcept nogil
cdef int team_limit(int threads, double flops) noexcept
cdef int available_threads(int threads) noexcept nogil
cdef bint processors_taken() noexcept nogil
cdef bint may_start_threads() noexcept
cdef bint is_long(double rows, Py_ssize_t inputs, Py_ssize_t H) noexcept
cdef bint start_poll(interrupt_poll *poll, bint together) except -1
cdef bint is_stopped(const interrupt_poll *poll) noexcept nogil
