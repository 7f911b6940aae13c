# What the roads through the fused loop share.

from fastgru._native._cpu cimport _Views
from fastgru._native._crowd cimport Request
from fastgru._native._cut cimport Cut
from fastgru._native.gates cimport gate_functions, gru_job, run_scratch_type, run_type

cdef class Fused:
    cdef readonly object spec
    cdef object kernel, recurrent_kernel, kept, transposed, dtype
    cdef const char *w
    cdef const char *u
    cdef const char *uh
    cdef const char *bias
    cdef gate_functions functions
    cdef readonly Py_ssize_t lanes
    cdef Py_ssize_t size, panels, inputs, units
    cdef bint u_finite            # by its sum: one that overflows counts as not
    cdef object backward_panels(self, int threads)

cdef Py_ssize_t _lanes(Py_ssize_t itemsize) noexcept
cdef double _flops(const gru_job *job) noexcept nogil
cdef bint _is_brief(const gru_job *job) noexcept nogil
cdef void _kernel(Fused packed, run_type *run, run_scratch_type *run_scratch) noexcept
cdef char *_allocate(
    gru_job *job, const Cut *cut, Fused packed, run_scratch_type run_scratch, bint save,
    Py_ssize_t *each,
) noexcept nogil
cdef int _run(
    gru_job *job, Fused packed, int threads, bint save, Request *entered,
) except -1
cdef void _set_weights(gru_job *job, Fused packed) noexcept
cdef Cut _cut_job(gru_job *job, Fused packed, int threads) noexcept
cdef int _threads_for(get_num_threads, double flops) except -1
cdef void _run_forward(
    gru_job *job, const Cut *cut, Py_ssize_t panels, run_type run, char *scratch,
    Py_ssize_t scratch_bytes,
) noexcept nogil
cdef int _set_masks(
    _Views views, problem, const Py_ssize_t **lengths, const unsigned char **steps,
    const unsigned char **resets,
) except -1
