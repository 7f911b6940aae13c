# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The BLAS kernel: the loop over time with the products of scipy.linalg.cython_blas.

It serves where the compiler has no vector types, and where FASTGRU_KERNEL=blas asks for it. Only
then is this module imported, which brings SciPy's BLAS with it. It runs a `gru_job` as the kernels
in C do, but for what backward needs; each thread runs rows of its own. Arrays of 16 bits come to it
as floats, and it rounds the states.
"""

from cython cimport floating
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

from fastgru._native._headers cimport gru_job, poll_stops, yield_if_due
from fastgru._native._job cimport padded
from fastgru._native._kernels cimport activate, round_to_half
from fastgru._native._weights cimport PackedWeights

import ctypes

from scipy.linalg import cython_blas

cdef enum:
    PANEL = 64                # units, at most; panels of 32 and 128 are slower at nearly all shapes
    K_BLOCK = 512             # of a panel; this slice stays in L2 while rows pass
    # OpenBLAS multiplies without copying its operands when M N K is at most this (AVX-512 builds).
    SMALL_GEMM = 1000000
    GEMV_ROWS = 3             # so few are multiplied one by one, but in panels
    P_BYTES = 1 << 20         # x.W of one time chunk: stays in L2
    P_ROWS = 128              # ... but at least so many rows, or W is read too often
    PART_BYTES = 1 << 22      # states, x.W and h.U of one part's rows and one step
    PART_ROWS = 128           # ... of so many at most


# BLAS threads: ours are around the calls, its own would fight them (OpenBLAS#3187: 10 times
# slower). The setting is global in OpenBLAS, so callers are counted: the first lowers it, the last
# restores it. Both hold the GIL.

# SciPy's own wheels, any other OpenBLAS, MKL, BLIS: (get, set) as `int get(void)`, `void set(int)`.
_THREAD_FUNCTIONS = (
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
)
# Cores for which OpenBLAS has kernels that multiply small matrices where they lie; Zen 4 and 5
# count as Cooperlake there.
_SMALL_GEMM_CORES = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})

NAME, CORE, THREADS = "unknown", "", "its own setting"
cdef int (*_get_threads)() noexcept nogil  # both NULL: there is no such setting
cdef void (*_set_threads)(int) noexcept nogil
cdef int _callers = 0, _saved = 0


def _find_blas():
    # A look-up through the handle of SciPy's module searches the libraries it depends on. A BLAS
    # that has no such setting (the reference BLAS, Accelerate) keeps its own.
    global NAME, CORE, THREADS, _get_threads, _set_threads
    library = ctypes.CDLL(cython_blas.__file__)
    for names in _THREAD_FUNCTIONS:
        if not all(hasattr(library, name) for name in names):
            continue
        get, set_ = (ctypes.cast(library[name], ctypes.c_void_p).value for name in names)
        _get_threads = <int (*)() noexcept nogil> <uintptr_t> get
        _set_threads = <void (*)(int) noexcept nogil> <uintptr_t> set_
        NAME, THREADS = names[0].rpartition("_get")[0], "1 inside our calls"
        core = getattr(library, names[0].replace("get_num_threads", "get_corename"), None)
        if core is not None:
            core.restype = ctypes.c_char_p
            CORE = core().decode()
        return


_find_blas()


cdef void _enter() noexcept:
    global _callers, _saved
    if _callers == 0:
        _saved = _get_threads()
        if _saved != 1:
            _set_threads(1)
    _callers += 1


cdef void _leave() noexcept:
    global _callers
    _callers -= 1
    if _callers == 0 and _saved != 1:
        _set_threads(_saved)


# Weights, packed in panels as for the kernels in C (kernels/job.h). With panels of at most PANEL
# units each product is small enough for OpenBLAS's kernels that read the operands where they lie;
# its ordinary path copies the matrix anew in every call. Where BLAS has no such kernels a panel
# would cost a copy of its own: then one panel has all units, and the matrices are Keras' own.
# GFLOP/s of one core (AMD EPYC, AVX-512), panels of 64 | all 512 units: K=512 M=8 110 | 37,
# M=32 109 | 74, M=128 101 | 95.

cdef bint _small_gemm = CORE in _SMALL_GEMM_CORES


def use_panels(bint wanted):
    """Pack weights in panels from now on, or do not; return what was done before. For tests."""
    global _small_gemm
    before, _small_gemm = _small_gemm, wanted
    return before


cdef class BLASWeights(PackedWeights):
    """Packed weights and the BLAS kernel, which has no backward; made as `PackedWeights` are."""

    def __init__(self, spec, weights, int threads):
        self.set_arrays(self.sums)
        if self.size == 4:
            self.run, self.run_scratch = _run_f32, _scratch_f32
        else:
            self.run, self.run_scratch = _run_f64, _scratch_f64
        if _set_threads != NULL:
            self.enter, self.leave = _enter, _leave
        self.panels = (self.units + PANEL - 1) // PANEL if _small_gemm else 1
        self.pack(weights, (self.units + self.panels - 1) // self.panels, threads)
        self.lanes = self.units   # to the partition there is one panel: threads share no rows
        self.part_rows = max(min(PART_BYTES // (8 * self.units * self.size), PART_ROWS), 1)


# Weights of some gates: (panels, K, gates, lanes).
ctypedef struct Matrix:
    const char *data
    Py_ssize_t K
    Py_ssize_t first, gates   # of the three gates z, r, h it has so many, from this one on


# What a part's rows are computed in. Sums are kept as the biases are: (panels, 3, lanes) each.
ctypedef struct Scratch:
    Py_ssize_t panels, lanes
    Py_ssize_t chunk_rows     # rows and steps of which x.W is made at a time
    Py_ssize_t *index         # (n) the rows that take the step
    char *state               # (n, H) of every row
    char *h                   # (n, H) ... of those that take the step, if not all do
    char *k                   # (n, H) the same with recurrent dropout; reset_after=False: r * k
    char *x                   # (chunk_rows, I)
    char *p                   # (chunk_rows, panels, 3, lanes) x.W, in the order of processing
    char *q                   # (n, panels, 3, lanes) h.U, then the gates


cdef Py_ssize_t _carve(
    const gru_job *job, Py_ssize_t n, Py_ssize_t panels, Py_ssize_t size, char *base, Scratch *s,
) noexcept nogil:
    # Lays the scratch of n rows out from `base`, which may be NULL; returns its bytes.
    cdef Py_ssize_t H = job.H, row
    cdef uintptr_t end = <uintptr_t> base
    s.panels, s.lanes = panels, (H + panels - 1) // panels
    row = 3 * panels * s.lanes * size
    s.chunk_rows = max(min(max(P_BYTES // row, <Py_ssize_t> P_ROWS), n * job.T), n)
    s.index = <Py_ssize_t *> _take(&end, n * sizeof(Py_ssize_t))
    s.state = _take(&end, n * H * size)
    s.h = _take(&end, n * H * size)
    s.k = _take(&end, n * H * size)
    s.x = _take(&end, s.chunk_rows * job.inputs * size)
    s.p = _take(&end, s.chunk_rows * row)
    s.q = _take(&end, n * row)
    return end - <uintptr_t> base


cdef char *_take(uintptr_t *end, Py_ssize_t size) noexcept nogil:
    cdef uintptr_t place = end[0]
    end[0] += padded(size)
    return <char *> place


# Products. BLAS is column-major; a row-major matrix is its own transpose there, so C = A B is
# computed as C' = B' A' with the operands swapped.

cdef void _gemm(
    int M, int N, int K,
    const floating *A, int lda,             # IN  (M, K)
    const floating *B, int ldb,             # IN  (K, N)
    floating beta,                          # 0: C is written, 1: added to
    floating *C, int ldc,                   # OUT (M, N)
) noexcept nogil:
    cdef char no = b"n"
    cdef floating one = 1
    if floating is float:
        sgemm(&no, &no, &N, &M, &K, &one, <float *> B, &ldb, <float *> A, &lda, &beta, C, &ldc)
    else:
        dgemm(&no, &no, &N, &M, &K, &one, <double *> B, &ldb, <double *> A, &lda, &beta, C, &ldc)


cdef void _gemv(
    int N, int K,
    const floating *a,                      # IN  (K)
    const floating *B, int ldb,             # IN  (K, N)
    floating *c,                            # OUT (N)
) noexcept nogil:
    cdef char no = b"n"
    cdef int step = 1
    cdef floating one = 1, zero = 0
    if floating is float:
        sgemv(&no, &N, &K, &one, <float *> B, &ldb, <float *> a, &step, &zero, c, &step)
    else:
        dgemv(&no, &N, &K, &one, <double *> B, &ldb, <double *> a, &step, &zero, c, &step)


cdef void _product(
    const Scratch *s, const Matrix *B, Py_ssize_t gate0, Py_ssize_t gate1,
    Py_ssize_t M, const floating *A,        # IN  (M, K)
    floating *C,                            # OUT (M, panels, 3, lanes); only gates gate0..gate1
) noexcept nogil:
    cdef Py_ssize_t panel, i, k, rows, depth, K = B.K
    cdef Py_ssize_t ldb = B.gates * s.lanes, ldc = 3 * s.panels * s.lanes
    cdef Py_ssize_t N = (gate1 - gate0) * s.lanes
    cdef const floating *b
    cdef floating *c
    for panel in range(s.panels):
        b = <const floating *> B.data + panel * K * ldb + (gate0 - B.first) * s.lanes
        c = C + (panel * 3 + gate0) * s.lanes
        if K == 0:
            for i in range(M):
                memset(c + i * ldc, 0, N * sizeof(floating))
        elif _small_gemm and s.lanes <= PANEL:
            k = 0
            while k < K:
                depth = min(K - k, <Py_ssize_t> K_BLOCK)
                rows = SMALL_GEMM // (N * depth)
                i = 0
                while i < M:
                    _gemm(
                        <int> min(rows, M - i), <int> N, <int> depth, A + i * K + k, <int> K,
                        b + k * ldb, <int> ldb, <floating> (k > 0), c + i * ldc, <int> ldc,
                    )
                    i += rows
                k += depth
        elif M <= GEMV_ROWS:
            for i in range(M):
                _gemv(<int> N, <int> K, A + i * K, b, <int> ldb, c + i * ldc)
        else:
            _gemm(<int> M, <int> N, <int> K, A, <int> K, b, <int> ldb, <floating> 0, c, <int> ldc)


# Gates, in place of the sums.

cdef void _gate_zr(
    const gru_job *job, Py_ssize_t n, const floating *p, const floating *b, floating *q,
) noexcept nogil:
    # q (2, n): z and r.
    cdef Py_ssize_t i
    for i in range(2 * n):
        q[i] += p[i] + b[i]
    activate(job.functions.recurrent_activation, job.functions.recurrent_params, 2 * n, q)


cdef void _new_state(
    const gru_job *job, Py_ssize_t n, Py_ssize_t units, const floating *z, floating *c, floating *h,
) noexcept nogil:
    # c (n): the argument of the candidate; h: the first units of it.
    cdef Py_ssize_t i
    activate(job.functions.activation, job.functions.params, n, c)
    for i in range(units):
        h[i] = z[i] * h[i] + (1 - z[i]) * c[i]


cdef void _gates_after(
    const gru_job *job, const Scratch *s, Py_ssize_t active, const floating *p,
) noexcept nogil:
    # reset_after=True: from h.U to the new states.
    cdef Py_ssize_t n = s.lanes, a, panel, i
    cdef const floating *b
    cdef floating *q = <floating *> s.q
    cdef floating *h
    for a in range(active):
        h = <floating *> s.state + s.index[a] * job.H
        b = <const floating *> job.bias
        for panel in range(s.panels):
            _gate_zr(job, n, p, b, q)
            for i in range(2 * n, 3 * n):
                q[i] = p[i] + b[i] + q[i - n] * (q[i] + b[i + n])
            _new_state(job, n, min(n, job.H - panel * n), q, q + 2 * n, h + panel * n)
            p, q, b = p + 3 * n, q + 3 * n, b + 4 * n


cdef void _gates_before(
    const gru_job *job, const Scratch *s, Py_ssize_t active, const floating *p, const floating *k,
) noexcept nogil:
    # reset_after=False: from h.U of z and r to the new states. k: what r multiplies.
    cdef Py_ssize_t n = s.lanes, H = job.H, a, panel, i, u
    cdef Matrix uh = Matrix(job.uh, H, 2, 1)
    cdef const floating *p_row = p
    cdef const floating *b
    cdef floating *q = <floating *> s.q
    cdef floating *rk = <floating *> s.k
    cdef floating *h
    for a in range(active):
        b = <const floating *> job.bias
        for panel in range(s.panels):
            _gate_zr(job, n, p_row, b, q)
            u = a * H + panel * n
            for i in range(min(n, H - panel * n)):
                rk[u + i] = q[n + i] * k[u + i]
            p_row, q, b = p_row + 3 * n, q + 3 * n, b + 4 * n
    q = <floating *> s.q
    _product(s, &uh, 2, 3, active, <const floating *> rk, q)
    for a in range(active):
        h = <floating *> s.state + s.index[a] * H
        b = <const floating *> job.bias
        for panel in range(s.panels):
            for i in range(2 * n, 3 * n):
                q[i] += p[i] + b[i]
            _new_state(job, n, min(n, H - panel * n), q, q + 2 * n, h + panel * n)
            p, q, b = p + 3 * n, q + 3 * n, b + 4 * n


# The loop over time.

cdef bint _valid(const gru_job *job, Py_ssize_t b, Py_ssize_t t) noexcept nogil:
    if job.lengths != NULL:
        return t < job.lengths[b]
    return job.steps == NULL or job.steps[b * job.T + t] != 0


cdef void _multiply(Py_ssize_t n, const floating *a, const floating *b, floating *c) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        c[i] = a[i] * b[i]


cdef void _project(
    const gru_job *job, const Scratch *s, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t s0, Py_ssize_t s1,
    floating *x,
) noexcept nogil:
    # x.W of the valid rows of steps s0..s1, in the order in which they are processed.
    cdef Py_ssize_t I = job.inputs, g, step, t, b, count
    cdef Py_ssize_t passes = job.dropout_gates if job.dropout != NULL else 1
    cdef Matrix w = Matrix(job.w, I, 0, 3)
    cdef const floating *row
    for g in range(passes):
        count = 0
        for step in range(s0, s1):
            t = job.T - 1 - step if job.reverse else step
            for b in range(b0, b0 + n):
                if not _valid(job, b, t):
                    continue
                row = <const floating *> (job.x + b * job.x_b + t * job.x_t)
                if job.dropout == NULL:
                    memcpy(x + count * I, row, I * sizeof(floating))
                else:
                    _multiply(I, row, <const floating *> job.dropout + (g * job.B + b) * I,
                              x + count * I)
                count += 1
        _product(s, &w, g, g + 1 if passes == 3 else 3, count, <const floating *> x,
                 <floating *> s.p)


cdef Py_ssize_t _take_rows(
    const gru_job *job, const Scratch *s, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t t, floating *h,
) noexcept nogil:
    # Which rows take step t, and their states without gaps in h; returns how many. Resets states.
    cdef Py_ssize_t H = job.H, k, active = 0
    cdef floating *state = <floating *> s.state
    for k in range(n):
        if job.resets != NULL and job.resets[(b0 + k) * job.T + t]:
            memset(state + k * H, 0, H * sizeof(floating))
        if _valid(job, b0 + k, t):
            s.index[active] = k
            active += 1
    if active < n:
        for k in range(active):
            memcpy(h + k * H, state + s.index[k] * H, H * sizeof(floating))
    return active


cdef void _step(
    const gru_job *job, const Scratch *s, Py_ssize_t b0, Py_ssize_t active, const floating *p,
    const floating *h,
) noexcept nogil:
    # One step of the active rows, whose states are h, into s.state.
    cdef Py_ssize_t H = job.H, a, g, gates = 3 if job.reset_after else 2
    cdef Matrix u = Matrix(job.u, H, 0, gates)
    cdef floating *q = <floating *> s.q
    cdef floating *k = <floating *> s.k
    if job.recurrent_dropout == NULL:
        _product(s, &u, 0, gates, active, h, q)
    else:
        for g in range(3):        # what gate h sees stays in k
            for a in range(active):
                _multiply(
                    H, h + a * H, <const floating *> job.recurrent_dropout
                    + (g * job.B + b0 + s.index[a]) * H, k + a * H,
                )
            if g < gates:
                _product(s, &u, g, g + 1, active, <const floating *> k, q)
        h = k
    if job.reset_after:
        _gates_after(job, s, active, p)
    else:
        _gates_before(job, s, active, p, h)
    if job.half:
        for a in range(active):
            round_to_half(job.half, job.H, <floating *> s.state + s.index[a] * job.H)


cdef void _write(
    const gru_job *job, const Scratch *s, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t step,
    Py_ssize_t size,
) noexcept nogil:
    # The outputs of a step, and the states for backward.
    cdef Py_ssize_t T = job.T, row = job.H * size, b, t = T - 1 - step if job.reverse else step
    cdef bint masked = job.lengths != NULL or job.steps != NULL
    cdef const char *state = s.state
    cdef char *y
    for b in range(b0, b0 + n):
        y = job.y + b * job.y_b + step * job.y_s
        if _valid(job, b, t):
            if job.sequences or masked or step == T - 1:
                memcpy(y, state, row)
        elif job.zero_masked or (job.sequences and step == 0):
            memset(y, 0, row)
        elif job.sequences:
            memcpy(y, y - job.y_s, row)
        if job.states != NULL:
            memcpy(job.states + (b * T + step) * row, state, row)
        state += row


cdef void _run(
    const gru_job *job, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t panels, char *scratch,
    floating *tag,
) noexcept nogil:
    # All steps of rows b0..b0+n. A call that is stopped leaves y and states half made.
    cdef Py_ssize_t T = job.T, row = job.H * sizeof(floating), b, k, t, step, s0 = 0, s1, active
    cdef Py_ssize_t chunk
    cdef Scratch scratch_of_rows
    cdef const Scratch *s = &scratch_of_rows
    cdef const floating *p
    cdef double yielded = 0
    if job.poll != NULL and poll_stops(job.poll, 0, 0):  # before fresh memory is touched
        return
    _carve(job, n, panels, sizeof(floating), scratch, &scratch_of_rows)
    chunk = max(s.chunk_rows // n, 1)
    for k in range(n):
        b = b0 + k if job.rows == NULL else job.rows[b0 + k]
        if job.h0 == NULL:
            memset(s.state + k * row, 0, row)
        else:
            memcpy(s.state + k * row, job.h0 + b * row, row)
        if not job.sequences:     # of a row that takes no step
            memset(job.y + (b0 + k) * job.y_b, 0, row)
    while s0 < T:
        s1 = min(s0 + chunk, T)
        if job.poll != NULL and poll_stops(job.poll, s0, s1):
            return
        _project(job, s, b0, n, s0, s1, <floating *> s.x)
        p = <const floating *> s.p
        for step in range(s0, s1):
            yield_if_due(job.counts, job.granted, &yielded)
            t = T - 1 - step if job.reverse else step
            active = _take_rows(job, s, b0, n, t, <floating *> s.h)
            _step(job, s, b0, active, p, <const floating *> (s.state if active == n else s.h))
            p += active * 3 * s.panels * s.lanes
            _write(job, s, b0, n, step, sizeof(floating))
        s0 = s1
    for k in range(n):
        b = b0 + k if job.rows == NULL else job.rows[b0 + k]
        memcpy(job.state + b * row, s.state + k * row, row)


# What a call runs; see run_type.

cdef void _run_f32(
    const gru_job *job, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t panel0, Py_ssize_t panel1,
    int team, char *scratch,
) noexcept nogil:
    _run(job, b0, n, panel1, scratch, <float *> NULL)


cdef void _run_f64(
    const gru_job *job, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t panel0, Py_ssize_t panel1,
    int team, char *scratch,
) noexcept nogil:
    _run(job, b0, n, panel1, scratch, <double *> NULL)


cdef Py_ssize_t _scratch_f32(const gru_job *job, Py_ssize_t n, Py_ssize_t panels) noexcept nogil:
    cdef Scratch s
    return _carve(job, n, panels, sizeof(float), NULL, &s)


cdef Py_ssize_t _scratch_f64(const gru_job *job, Py_ssize_t n, Py_ssize_t panels) noexcept nogil:
    cdef Scratch s
    return _carve(job, n, panels, sizeof(double), NULL, &s)
