# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""One time step of one cell on rows of state that stay where they are."""

from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memset

from fastgru._native._cpu cimport _kernels_f32, _kernels_f64, _padded
from fastgru._native._cut cimport Cut
from fastgru._native._fused cimport Fused, _cut_job, _run_forward, _set_weights
from fastgru._native.gates cimport (
    allocate_aligned,
    free_aligned,
    gru_job,
    run_type,
    team_barrier,
)

cdef enum:
    GIL_FLOPS = 200000        # below ~5 us the GIL is not worth releasing


cdef class Stepper:
    """The state of some rows, and the step that advances it in place.

    Parameters
    ----------
    state : ndarray, shape (n, H)
        C-contiguous and writeable; read and written by every step.
    output : ndarray, shape (n, H)
        C-contiguous and writeable; its first rows are written by every step.
    """

    cdef readonly object state, output
    cdef char *scratch
    cdef Py_ssize_t capacity

    def __cinit__(self, state, output):
        self.state, self.output = state, output
        self.scratch = NULL
        self.capacity = 0

    def __dealloc__(self):
        free_aligned(self.scratch)

    def step(self, Fused packed, x, rows, int threads):
        """Advance ``rows`` (None: the first, as many as x has) by x; write the output's first rows.

        Parameters
        ----------
        packed : Fused
        x : ndarray, shape (m, I), the layer's dtype, aligned, last axis contiguous
        rows : ndarray of intp, shape (m,), C-contiguous, distinct and in range; or None
        threads : int
        """
        cdef gru_job job
        cdef Cut cut
        cdef team_barrier barrier
        cdef Py_buffer xs, states, outputs, indices
        cdef Py_ssize_t size = packed.size, H, m, need, per_thread
        cdef double flops
        cdef run_type run
        memset(&job, 0, sizeof(job))
        memset(&barrier, 0, sizeof(barrier))
        PyObject_GetBuffer(self.state, &states, PyBUF_STRIDES)
        PyObject_GetBuffer(self.output, &outputs, PyBUF_STRIDES)
        PyObject_GetBuffer(x, &xs, PyBUF_STRIDES)
        if rows is not None:
            PyObject_GetBuffer(rows, &indices, PyBUF_STRIDES)
            job.rows = <const Py_ssize_t *> indices.buf
        try:
            H, m = states.shape[1], xs.shape[0]
            job.B, job.T, job.inputs, job.H = m, 1, xs.shape[1], H
            job.x, job.x_b = <const char *> xs.buf, xs.strides[0]
            job.y, job.y_b = <char *> outputs.buf, H * size
            job.h0 = job.state = <char *> states.buf
            job.sequences = True
            _set_weights(&job, packed)
            job.barrier = &barrier
            job.chunk_rows = max(m, 1)
            flops = 6.0 * m * H * (H + job.inputs)
            cut = _cut_job(&job, packed, threads)
            if size == 4:
                run = _kernels_f32().run
                per_thread = _padded(_kernels_f32().run_scratch(&job, cut.rows, packed.panels))
            else:
                run = _kernels_f64().run
                per_thread = _padded(_kernels_f64().run_scratch(&job, cut.rows, packed.panels))
            need = cut.threads * per_thread + (0 if job.reset_after else m * H * size)
            if need > self.capacity:
                free_aligned(self.scratch)
                self.capacity = 0
                self.scratch = <char *> allocate_aligned(need)
                if self.scratch == NULL:
                    raise MemoryError(f"scratch of {need} bytes")
                self.capacity = need
            job.reset_state = self.scratch + cut.threads * per_thread
            if cut.threads == 1 and flops < GIL_FLOPS:
                _run_forward(&job, &cut, packed.panels, run, self.scratch, per_thread)
            else:
                with nogil:
                    _run_forward(&job, &cut, packed.panels, run, self.scratch, per_thread)
        finally:
            PyBuffer_Release(&states)
            PyBuffer_Release(&outputs)
            PyBuffer_Release(&xs)
            if rows is not None:
                PyBuffer_Release(&indices)
