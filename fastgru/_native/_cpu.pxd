# What the fused path shares with the BLAS path.

from fastgru._native.gates cimport kernels_f32, kernels_f64

cdef class _Views:
    cdef Py_buffer views[32]
    cdef int count
    cdef Py_buffer *take(self, array, int flags) except NULL
    cdef char *packed(self, array, Py_ssize_t size) except NULL

cdef bint _strided(Py_buffer *view, Py_ssize_t size) noexcept
cdef Py_ssize_t _padded(Py_ssize_t size) noexcept nogil
cdef int _functions(activation, int *which, double *params) except -1
cdef const kernels_f32 *_kernels_f32() noexcept
cdef const kernels_f64 *_kernels_f64() noexcept
