# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""GRU forward on the CPU: BLAS for the two products, kernels.c for the rest, OpenMP around both.

One call is one parallel region at most; what a thread does in it is _loop.pxd. Here: packed
weights, how the work is cut, and the arrays' buffers. The GIL is released whenever that is worth
its price.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset

from fastgru._native._blas cimport Matrix
from fastgru._native._headers cimport (
    FASTGRU_TEAM_BARRIER,
    allocate_aligned,
    free_aligned,
    gate_functions,
    interrupt_poll,
)
from fastgru._native._job cimport padded
from fastgru._native._kernels cimport read_functions, table_f32, table_f64
from fastgru._native._loop cimport Job, _direct, _worker
from fastgru._native._threads cimport (
    counts_of_process,
    is_long,
    is_stopped,
    run_team,
    start_poll,
    team_limit,
    without_gil,
)

import numpy as np

cdef object _empty = np.empty

cdef enum:
    PANEL = 64                # units; 32 and 128 are slower at nearly every shape
    P_BYTES = 1 << 20         # x.W of one time chunk, per thread: stays in L2
    P_ROWS = 128              # ... but at least so many rows, or W is read too often
    BLOCK_BYTES = 1 << 19     # states, x.W and h.U of one block of rows and one step
    BLOCK_ROWS = 128          # ... but so many rows, if they are at most
    BLOCK_BYTES_MAX = 1 << 22  # ... this: a large U is read once for all of them
    GIL_FLOPS = 200000        # below ~5 us the GIL is not worth releasing
    STEP_FLOPS = 60000        # per step, pays for a barrier (~0.4 us)
    SPLIT_ROWS = 4            # rows a thread needs before h.U is about as fast as with all rows


cdef class Packed:
    """Weights as the loop wants them; immutable, made once per weight version.

    Parameters
    ----------
    spec : GRUSpec
    weights : GRUWeights
    panels : bool
        Cut the matrices into panels (see _blas.pxd): right for a BLAS with kernels for small
        products, wrong for others, where a panel costs a packing of its own.
    """

    cdef readonly object spec
    cdef Matrix w, u
    cdef char *memory
    cdef const char *bias
    cdef gate_functions functions
    cdef Py_ssize_t size
    cdef readonly bint panels

    def __cinit__(self, spec, weights, bint panels):
        cdef Py_ssize_t I = spec.input_dim, H = spec.units, size = spec.dtype.itemsize
        cdef Py_ssize_t width = PANEL if panels else 0
        self.spec = spec
        self.size = size
        self.panels = panels
        read_functions(spec, &self.functions)
        cdef Py_ssize_t w_bytes = padded(I * 3 * H * size), u_bytes = padded(H * 3 * H * size)
        self.memory = <char *> allocate_aligned(w_bytes + u_bytes + 4 * H * size)
        if self.memory == NULL:
            raise MemoryError(f"packed weights of {I} inputs and {H} units")
        self.w = Matrix(self.memory, I, H, width)
        self.u = Matrix(self.memory + w_bytes, H, H, width)
        self.bias = self.memory + w_bytes + u_bytes
        _pack(weights.kernel, &self.w, size)
        _pack(weights.recurrent_kernel, &self.u, size)
        bias = np.zeros((4, H), spec.dtype)
        if weights.bias is not None:
            rows = np.atleast_2d(weights.bias)
            bias[:3] = rows[0].reshape(3, H)
            if spec.reset_after:
                bias[:2] += rows[1, :2 * H].reshape(2, H)
                bias[3] = rows[1, 2 * H:]
        cdef Py_buffer view
        PyObject_GetBuffer(bias, &view, PyBUF_STRIDES)
        memcpy(<char *> self.bias, view.buf, 4 * H * size)
        PyBuffer_Release(&view)

    def __dealloc__(self):
        free_aligned(self.memory)


cdef int _pack(array, Matrix *m, Py_ssize_t size) except -1:
    cdef Py_buffer view
    cdef Py_ssize_t g, j, k, width, row = 3 * m.H * size
    cdef const char *source
    cdef char *target = <char *> m.data
    array = np.ascontiguousarray(array)
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    source = <const char *> view.buf
    with nogil:
        if m.width == 0:
            memcpy(target, source, m.K * row)
        else:
            for g in range(3):
                j = 0
                while j < m.H:
                    width = min(m.width, m.H - j)
                    for k in range(m.K):
                        memcpy(target, source + k * row + (g * m.H + j) * size, width * size)
                        target += width * size
                    j += width
    PyBuffer_Release(&view)
    return 0


cdef void _run(void *blas_job) noexcept nogil:
    cdef Job *job = <Job *> blas_job
    run_team(_run_part, job, job.threads, &job.granted, job.watch)


cdef void _run_part(void *blas_job, int rank, int team) noexcept nogil:
    cdef Job *job = <Job *> blas_job
    if job.k32 != NULL:
        _worker(job, rank, team, <float *> NULL)
    else:
        _worker(job, rank, team, <double *> NULL)


cdef int _cut(Job *job, Py_ssize_t size, int threads) except -1:
    # Decides on threads, blocks and chunks, and allocates the scratch.
    cdef Py_ssize_t B = job.B, T = job.T, H = job.H, I = job.inputs, per_thread, n, p_k, p_t
    cdef double step_flops = 6.0 * B * H * H, flops = 6.0 * B * H * (H + I) * T
    job.shared = False
    threads = team_limit(threads, flops)
    if threads > 1 and B < SPLIT_ROWS * threads:
        if FASTGRU_TEAM_BARRIER and step_flops >= STEP_FLOPS:
            job.shared = True
            threads = <int> min(threads, (H + 31) // 32)
        else:
            threads = <int> min(threads, B)
    if threads == 1:
        job.shared = False
    job.threads = threads
    if job.shared:
        job.blocks = 1
    else:
        n = BLOCK_BYTES // (8 * H * size)
        n = max(n, min(<Py_ssize_t> BLOCK_ROWS, BLOCK_BYTES_MAX // (8 * H * size)), 1)
        job.blocks = max((B + n - 1) // n, 1)
        job.blocks = (job.blocks + threads - 1) // threads * threads
    n = max((B + job.blocks - 1) // job.blocks, 1)
    job.block_rows = n
    job.chunk_steps = max(P_BYTES // (3 * H * size), P_ROWS) // n
    job.chunk_steps = max(min(job.chunk_steps, T), 1)
    per_thread = n * job.chunk_steps * 3 * H + n * 3 * H + 3 * H + n * H
    if job.recurrent_dropout != NULL:
        per_thread += 3 * n * H
    if not job.reset_after:
        per_thread += n * H
    if (
        _direct(job, n, job.chunk_steps, &p_k, &p_t) == 0
        or n * job.blocks != B or T % job.chunk_steps
    ):
        per_thread += n * job.chunk_steps * I
    job.scratch_bytes = padded(per_thread * size + n * <Py_ssize_t> sizeof(Py_ssize_t))
    job.shared_bytes = padded(2 * n * H * size)
    job.scratch = <char *> allocate_aligned(
        threads * job.scratch_bytes + (1 if job.shared else threads) * job.shared_bytes
    )
    if job.scratch == NULL:
        raise MemoryError(f"scratch of {threads * job.scratch_bytes} bytes")
    return 0


cdef int _raise_if_stopped(const interrupt_poll *poll) except -1:
    return -1 if is_stopped(poll) else 0


# BLAS threads: ours are around the calls, its own would fight them (OpenBLAS#3187: 10 times
# slower). The setting is global in OpenBLAS, so callers are counted: the first lowers it, the last
# restores it. Both hold the GIL.

ctypedef int (*get_threads_type)() noexcept nogil
ctypedef void (*set_threads_type)(int) noexcept nogil
cdef get_threads_type _blas_get = NULL
cdef set_threads_type _blas_set = NULL
cdef int _blas_callers = 0, _blas_saved = 0


def set_blas_functions(uintptr_t get_threads, uintptr_t set_threads):
    """Take the addresses of ``int get()`` and ``void set(int)`` of the BLAS in use."""
    global _blas_get, _blas_set
    _blas_get = <get_threads_type> get_threads
    _blas_set = <set_threads_type> set_threads


cdef void _blas_enter() noexcept:
    global _blas_callers, _blas_saved
    if _blas_set != NULL:
        if _blas_callers == 0:
            _blas_saved = _blas_get()
            if _blas_saved != 1:
                _blas_set(1)
        _blas_callers += 1


cdef void _blas_exit() noexcept:
    global _blas_callers
    if _blas_set != NULL:
        _blas_callers -= 1
        if _blas_callers == 0 and _blas_saved != 1:
            _blas_set(_blas_saved)


cdef class _Views:
    cdef Py_buffer views[32]
    cdef int count
    # The buffers of one call; released together.

    def __dealloc__(self):
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])

    cdef Py_buffer *take(self, array, int flags) except NULL:
        cdef Py_buffer *view = &self.views[self.count]
        PyObject_GetBuffer(array, view, flags)
        self.count += 1
        return view

    cdef char *packed(self, array, Py_ssize_t size) except NULL:
        # A C-contiguous aligned copy, or the array itself.
        cdef Py_buffer *view = self.take(array, PyBUF_STRIDES)
        cdef Py_ssize_t expected = view.itemsize
        cdef int i
        cdef bint good = <uintptr_t> view.buf % size == 0
        for i in reversed(range(view.ndim)):
            good = good and (view.shape[i] < 2 or view.strides[i] == expected)
            expected *= view.shape[i]
        if not good:
            view = self.take(np.array(array, order="C"), PyBUF_STRIDES)
        return <char *> view.buf


cdef bint _strided(Py_buffer *view, Py_ssize_t size) noexcept:
    # Whether the loop can walk it: last axis contiguous, everything aligned.
    cdef int i, last = view.ndim - 1
    if <uintptr_t> view.buf % size or (view.shape[last] > 1 and view.strides[last] != size):
        return False
    for i in range(last):
        if view.shape[i] > 1 and view.strides[i] % size:
            return False
    return True


def forward(Packed packed, problem, int threads, bint save):
    """Run a `GRUProblem` that `CPUBackend.supports`; return (y, state, states or None).

    Parameters
    ----------
    packed : Packed
        Of the problem's spec and weights.
    problem : GRUProblem
    threads : int
        Upper bound, at least 1.
    save : bool
        Also return the states after every step; they may be y itself.
    """
    cdef Job job
    cdef interrupt_poll watch
    cdef Py_buffer *view
    cdef _Views views = _Views.__new__(_Views)
    cdef Py_ssize_t size = packed.size
    cdef Py_ssize_t H = packed.u.H
    memset(&job, 0, sizeof(Job))
    spec = packed.spec
    dtype = spec.dtype
    if size == 4:
        job.k32 = table_f32()
    else:
        job.k64 = table_f64()

    view = views.take(problem.x, PyBUF_STRIDES)
    if not _strided(view, size):
        view = views.take(np.array(problem.x, order="C"), PyBUF_STRIDES)
    job.x = <const char *> view.buf
    job.B, job.T, job.inputs, job.H = view.shape[0], view.shape[1], view.shape[2], H
    job.x_b, job.x_t = view.strides[0], view.strides[1]
    job.w, job.u, job.bias, job.functions = packed.w, packed.u, packed.bias, packed.functions
    job.reset_after = spec.reset_after
    job.reverse = problem.reverse
    job.sequences = problem.return_sequences
    job.zero_masked = problem.zero_output_for_mask

    value = problem.h0
    if value is not None:
        job.h0 = views.packed(value, size)
    mask = problem.mask
    value = mask.lengths
    if value is not None:
        job.lengths = <const Py_ssize_t *> views.packed(value, sizeof(Py_ssize_t))
    value = mask.steps
    if value is not None:
        job.steps = <const unsigned char *> views.packed(value, 1)
    job.masked = job.lengths != NULL or job.steps != NULL
    value = problem.resets
    if value is not None:
        job.resets = <const unsigned char *> views.packed(value, 1)
    value = problem.dropout
    if value is not None:
        job.dropout = views.packed(value, size)
        job.dropout_gates = 3 if value.ndim == 3 else 1
    value = problem.recurrent_dropout
    if value is not None:
        job.recurrent_dropout = views.packed(value, size)

    state = _empty((job.B, H), dtype)
    view = views.take(state, PyBUF_STRIDES | PyBUF_WRITABLE)
    job.state = <char *> view.buf
    out = problem.out
    y = out
    if y is None:
        y = _empty((job.B, job.T, H), dtype) if job.sequences else _empty((job.B, H), dtype)
    view = views.take(y, PyBUF_STRIDES | PyBUF_WRITABLE)
    if out is not None and not _strided(view, size):
        y = _empty(out.shape, dtype)
        view = views.take(y, PyBUF_STRIDES | PyBUF_WRITABLE)
    job.y = <char *> view.buf
    job.y_b = view.strides[0]
    job.y_s = view.strides[1] if job.sequences else 0
    states = None
    if save:
        if job.sequences and not job.masked and out is None:
            states = y
        else:
            states = _empty((job.B, job.T, H), dtype)
            view = views.take(states, PyBUF_STRIDES | PyBUF_WRITABLE)
            job.states = <char *> view.buf

    if job.B > 0:
        _cut(&job, size, threads)
        if is_long(<double> job.B * job.T, job.inputs, H) and start_poll(&watch, job.shared):
            job.watch = &watch
        job.counts = counts_of_process()
        _blas_enter()
        if job.threads == 1 and 6.0 * job.B * job.T * H * (H + job.inputs) < GIL_FLOPS:
            _run(&job)
        else:
            without_gil(_run, &job, False)
        _blas_exit()
        free_aligned(job.scratch)
        _raise_if_stopped(job.watch)
    if out is not None and y is not out:
        out[...] = y
        y = out
    return y, state, states
