# What every path through the native code asks for, or tells.

from fastgru._native.gates cimport interrupt_poll, thread_counts

cdef int _team_limit(int threads, double flops) noexcept
cdef int _lease(int wanted) noexcept nogil
cdef void _give_back(int granted) noexcept nogil
cdef int _available(int threads) noexcept nogil
cdef const thread_counts *_thread_counts() noexcept nogil
cdef void _enter_brief() noexcept nogil
cdef void _leave_brief() noexcept
cdef bint _crowded() noexcept nogil
cdef bint _may_start_threads() noexcept
cdef bint _is_long(double rows, Py_ssize_t inputs, Py_ssize_t H) noexcept
cdef bint _watch(interrupt_poll *watch, bint together) except -1
cdef int _raise_if_stopped(const interrupt_poll *watch) except -1
cdef void _blas_enter() noexcept
cdef void _blas_exit() noexcept
