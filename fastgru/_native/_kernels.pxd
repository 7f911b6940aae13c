# The kernels of the instruction set in use.

from fastgru._native._headers cimport (
    back_scratch_type,
    back_type,
    gate_functions,
    kernels_f32,
    kernels_f64,
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

cdef const kernels_f32 *table_f32() noexcept
cdef const kernels_f64 *table_f64() noexcept
cdef Kernels kernels_of(Py_ssize_t itemsize) noexcept
cdef int isa_in_use() noexcept
cdef int read_functions(spec, gate_functions *functions) except -1
