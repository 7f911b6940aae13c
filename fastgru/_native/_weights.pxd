# Weights as a kernel wants them, and the kernel that runs them.

from fastgru._native._headers cimport gate_functions, run_scratch_type, run_type

cdef class PackedWeights:
    # Of another kernel on the same gru_job: a subclass, whose __init__ sets what stands after
    # `functions`. Without kernels of its own for it, backward is not for that class.
    cdef readonly object spec
    cdef Py_ssize_t inputs, units
    # The kernel computes in numbers of `size` bytes, of the dtype `sums`. The arrays that it reads
    # and writes have numbers of `item` bytes, of `dtype`; `type` is NumPy's number of that. `half`
    # is that of gru_job.
    cdef Py_ssize_t size, item
    cdef int type, half
    cdef readonly object sums, dtype
    cdef bint reset_after
    cdef int isa                  # in use when it was packed
    cdef gate_functions functions
    # The kernel; `lanes` units are a panel. Threads may share rows by panels: where the kernel
    # cannot, there is one panel of all units.
    cdef run_type run
    cdef run_scratch_type run_scratch
    cdef readonly Py_ssize_t lanes, panels
    # Most rows of a part, of a kernel whose bits depend on how many there are; 0: they do not.
    cdef Py_ssize_t part_rows
    # Called with the GIL held, before and after every run; NULL: nothing is to be done.
    cdef void (*enter)() noexcept
    cdef void (*leave)() noexcept
    # What goes into a gru_job, in the kernel's own order; `kept` owns the memory.
    cdef const char *w
    cdef const char *u
    cdef const char *uh
    cdef const char *bias
    cdef bint u_finite            # by its sum: one that overflows counts as not
    cdef object kept
    cdef object kernel, recurrent_kernel, transposed  # for backward
    cdef int set_arrays(self, dtype) except -1
    cdef int pack(self, weights, Py_ssize_t lanes, int threads) except -1
    cdef object backward_panels(self, int threads)
