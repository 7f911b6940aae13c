# What the fused path shares with the BLAS path.

from fastgru._native.gates cimport call_watch, kernels_f32, kernels_f64

cdef class _Views:
    cdef Py_buffer views[32]
    cdef int count
    cdef Py_buffer *take(self, array, int flags) except NULL
    cdef char *packed(self, array, Py_ssize_t size) except NULL

cdef bint _strided(Py_buffer *view, Py_ssize_t size) noexcept
cdef Py_ssize_t _padded(Py_ssize_t size) noexcept nogil
cdef int _functions(activation, int *which, double *params) except -1
cdef int _team_limit(int threads, double flops) noexcept
cdef const kernels_f32 *_kernels_f32() noexcept
cdef const kernels_f64 *_kernels_f64() noexcept
cdef int _lease(int wanted) noexcept nogil
cdef void _give_back(int granted) noexcept nogil
cdef int _available(int threads) noexcept nogil
cdef bint _may_start_threads() noexcept
cdef bint _is_long(double rows, Py_ssize_t inputs, Py_ssize_t H) noexcept
cdef bint _watch(call_watch *watch, bint together) except -1
cdef int _raise_if_stopped(const call_watch *watch) except -1
