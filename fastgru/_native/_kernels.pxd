# The kernels of the instruction set in use.

from cython cimport floating

from fastgru._native._headers cimport (
    back_scratch_type,
    back_type,
    gate_functions,
    product_scratch_type,
    products_type,
    run_scratch_type,
    run_type,
)

# Without those of single rows, whose types depend on the dtype.
cdef struct Kernels:
    Py_ssize_t lanes          # units of a panel; 0: the compiler has no vector types, so no kernels
    run_type run
    run_scratch_type run_scratch
    back_type back
    back_scratch_type back_scratch
    products_type products
    product_scratch_type product_scratch

cdef Kernels kernels_of(Py_ssize_t itemsize) noexcept
cdef int isa_in_use() noexcept
cdef void activate(int number, const double *params, Py_ssize_t n, floating *a) noexcept nogil
cdef void round_to_half(int half, Py_ssize_t n, floating *a) noexcept nogil
cdef int half_of(dtype) except -1
cdef int read_functions(spec, gate_functions *functions) except -1
