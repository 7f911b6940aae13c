# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""GRU backward: the walk back through time in the fused loop (loop.h), then a few large products.

After the walk there are, of every row and step that was taken, d = [da_h, da_z, da_r, dq_h] and the
factors f = [x, 1, 1, h], h the state before the step. Then

    [dW; db; dU] = f^T [da_z, da_r, da_h or dq_h]      dX = [da_z, da_r, da_h] W^T

in Keras' layout. BLAS is best at these, a few hundred rows at a time, so that they are in cache for
all of them. Where gate h sees other factors than z and r do (dropout
masks of its own; r * h instead of h with reset_after=False), there is a copy of f for it.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE
from cython.parallel cimport parallel
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, sgemm

from fastgru._native._blas cimport floating
from fastgru._native._cpu cimport (
    _blas_enter,
    _blas_exit,
    _give_back,
    _kernels_f32,
    _kernels_f64,
    _lease,
    _padded,
    _strided,
    _team_limit,
    _Views,
)
from fastgru._native._cut cimport Cut, Work, _cut, _part, _parts
from fastgru._native._fused cimport Fused, _set_masks
from fastgru._native.gates cimport (
    allocate_aligned,
    back_type,
    denormals_off,
    denormals_restore,
    free_aligned,
    gru_back_job,
    barrier_wait,
    team_barrier,
    team_rank,
    team_size,
)

import numpy as np

cdef object _empty = np.empty


cdef enum:
    ROWS = 384                # rows of a product; 1.15 times as fast as all 3,200 at once


cdef struct Products:
    Py_ssize_t rows, B, T, inputs, H
    bint reset_after, reverse
    const char *x
    Py_ssize_t x_b, x_t
    const char *states
    const char *h0
    const unsigned char *resets
    const Py_ssize_t *taken   # s * B + b of each row of d; NULL: its row is b * T + t
    const char *dropout
    Py_ssize_t dropout_gates
    const char *recurrent_dropout
    const char *d             # (rows, 4, H)
    const char *w             # (I, 3H)
    Py_ssize_t copies         # 1; 2: one for z and r, one for h; 3: one for each gate z, r, h
    char *f                   # (copies, ROWS, I + 2 + H) of the rows at hand
    char *dxs                 # (x_gates, ROWS, I); NULL: they go to dx, whose rows are d's
    char *dx                  # (B, T, I); zeros, if some steps were not taken
    char *dw                  # (I + 2 + H, 3H)
    team_barrier *barrier
    Py_ssize_t size


cdef void _gemm(bint a_transposed, bint b_transposed, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                const floating *A, Py_ssize_t lda, const floating *B, Py_ssize_t ldb, bint add,
                floating *C, Py_ssize_t ldc) noexcept nogil:
    # Row-major C (M, N) = A B, or C += A B; A is (M, K) or, transposed, (K, M), B as well.
    cdef char a = b"t" if a_transposed else b"n", b = b"t" if b_transposed else b"n"
    cdef int m = <int> M, n = <int> N, k = <int> K
    cdef int la = <int> lda, lb = <int> ldb, lc = <int> ldc
    cdef floating one = 1, beta = add
    if M == 0 or N == 0:
        return
    if floating is float:
        sgemm(&b, &a, &n, &m, &k, &one, <float *> B, &lb, <float *> A, &la, &beta, C, &lc)
    else:
        dgemm(&b, &a, &n, &m, &k, &one, <double *> B, &lb, <double *> A, &la, &beta, C, &lc)


cdef inline Py_ssize_t _place(const Products *p, Py_ssize_t row, Py_ssize_t *s) noexcept nogil:
    # The b and s of a row of d.
    cdef Py_ssize_t t
    if p.taken != NULL:
        s[0] = p.taken[row] // p.B
        return p.taken[row] % p.B
    t = row % p.T
    s[0] = p.T - 1 - t if p.reverse else t
    return row // p.T


cdef void _gather(
    const Products *p, Py_ssize_t first, Py_ssize_t r0, Py_ssize_t r1, floating *tag,
) noexcept nogil:
    # Fills f of the rows first + r0 .. first + r1 of d.
    cdef Py_ssize_t s = 0, t, b, c, g, r, B = p.B, T = p.T, I = p.inputs, H = p.H
    cdef const floating *x
    cdef const floating *h
    cdef floating *target
    for r in range(r0, r1):
        b = _place(p, first + r, &s)
        t = T - 1 - s if p.reverse else s
        x = <const floating *> (p.x + b * p.x_b + t * p.x_t)
        h = NULL
        if p.resets != NULL and p.resets[b * T + t]:
            pass
        elif s > 0:
            h = <const floating *> p.states + (b * T + s - 1) * H
        elif p.h0 != NULL:
            h = <const floating *> p.h0 + b * H
        for c in range(p.copies):
            g = c if p.copies == 3 else 2 * c     # the (last) gate that it serves
            target = <floating *> p.f + (c * ROWS + r) * (I + 2 + H)
            _masked(I, x, _mask(p.dropout, p.dropout_gates, g, b, B, I, tag), target)
            target[I] = target[I + 1] = 1
            target += I + 2
            if g == 2 and not p.reset_after:
                memcpy(target, <const floating *> p.d + ((first + r) * 4 + 3) * H,
                       H * sizeof(floating))
            elif h == NULL:
                memset(target, 0, H * sizeof(floating))
            else:
                _masked(H, h, _mask(p.recurrent_dropout, 3, g, b, B, H, tag), target)


cdef inline const floating *_mask(
    const char *masks, Py_ssize_t gates, Py_ssize_t g, Py_ssize_t b, Py_ssize_t B, Py_ssize_t n,
    floating *tag,
) noexcept nogil:
    # Row b of gate g's dropout mask, of (gates, B, n); NULL without one.
    if masks == NULL:
        return NULL
    return <const floating *> masks + ((g if gates == 3 else 0) * B + b) * n


cdef inline void _masked(
    Py_ssize_t n, const floating *values, const floating *mask, floating *target,
) noexcept nogil:
    cdef Py_ssize_t j
    if mask == NULL:
        memcpy(target, values, n * sizeof(floating))
    else:
        for j in range(n):
            target[j] = values[j] * mask[j]


cdef void _multiply_factors(
    const Products *p, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t n0, Py_ssize_t n1,
    floating *tag,
) noexcept nogil:
    # Columns n0..n1 of every gate's dW, db and dU: what these rows add.
    cdef Py_ssize_t I = p.inputs, H = p.H, ld = I + 2 + H, g, n = n1 - n0
    cdef const floating *d = <const floating *> p.d + first * 4 * H + n0
    cdef const floating *f = <const floating *> p.f
    cdef floating *dw = <floating *> p.dw + n0
    cdef bint add = first > 0
    if p.copies == 3:
        for g in range(2):        # z, r
            _gemm(True, False, ld, n, rows, f + g * ROWS * ld, ld, d + (g + 1) * H, 4 * H, add,
                  dw + g * H, 3 * H)
    else:                         # both at once: columns 2 n0 .. 2 n1 of the two
        _gemm(True, False, ld, 2 * n, rows, f, ld, d + H + n0, 4 * H, add, dw + n0, 3 * H)
    f += (p.copies - 1) * ROWS * ld
    dw += 2 * H
    if p.reset_after:
        _gemm(True, False, I + 1, n, rows, f, ld, d, 4 * H, add, dw, 3 * H)
        _gemm(True, False, 1 + H, n, rows, f + I + 1, ld, d + 3 * H, 4 * H, add,
              dw + (I + 1) * 3 * H, 3 * H)
    else:
        _gemm(True, False, ld, n, rows, f, ld, d, 4 * H, add, dw, 3 * H)


cdef void _multiply_inputs(
    const Products *p, Py_ssize_t first, Py_ssize_t r0, Py_ssize_t r1, floating *tag,
) noexcept nogil:
    # dX of the rows first + r0 .. first + r1.
    cdef Py_ssize_t I = p.inputs, H = p.H, n = r1 - r0, gates, s = 0, t, b, g, j, r
    cdef const floating *d = <const floating *> p.d + (first + r0) * 4 * H
    cdef const floating *w = <const floating *> p.w
    cdef const floating *mask
    cdef floating *dxs
    cdef floating *target
    if p.dxs == NULL:
        dxs = <floating *> p.dx + (first + r0) * I
    else:
        dxs = <floating *> p.dxs + r0 * I
    if p.dropout_gates == 3:
        for g in range(3):        # z, r, h
            _gemm(False, True, n, I, H, d + (g + 1) % 3 * H, 4 * H, w + g * H, 3 * H, False,
                  dxs + g * ROWS * I, I)
    else:
        _gemm(False, True, n, I, 2 * H, d + H, 4 * H, w, 3 * H, False, dxs, I)
        _gemm(False, True, n, I, H, d, 4 * H, w + 2 * H, 3 * H, True, dxs, I)
    if p.dxs == NULL:
        return
    gates = max(p.dropout_gates, 1)
    for r in range(n):
        b = _place(p, first + r0 + r, &s)
        t = p.T - 1 - s if p.reverse else s
        target = <floating *> p.dx + (b * p.T + t) * I
        for g in range(gates):
            mask = _mask(p.dropout, gates, g, b, p.B, I, tag)
            for j in range(I):
                target[j] = ((target[j] if g else 0)
                             + dxs[(g * ROWS + r) * I + j] * (mask[j] if mask != NULL else 1))


cdef void _product_worker(const Products *p, int rank, int team, floating *tag) noexcept nogil:
    cdef Py_ssize_t first = 0, n
    while first < p.rows:
        n = min(<Py_ssize_t> ROWS, p.rows - first)
        _gather(p, first, n * rank // team, n * (rank + 1) // team, tag)
        barrier_wait(p.barrier, team)
        _multiply_factors(p, first, n, p.H * rank // team, p.H * (rank + 1) // team, tag)
        _multiply_inputs(p, first, n * rank // team, n * (rank + 1) // team, tag)
        barrier_wait(p.barrier, team)
        first += ROWS


cdef void _run_products(const Products *p, int threads) noexcept nogil:
    threads = _lease(threads)
    if threads == 1:
        if p.size == 4:
            _product_worker(p, 0, 1, <float *> NULL)
        else:
            _product_worker(p, 0, 1, <double *> NULL)
    else:
        with parallel(num_threads=threads):
            if p.size == 4:
                _product_worker(p, team_rank(), team_size(), <float *> NULL)
            else:
                _product_worker(p, team_rank(), team_size(), <double *> NULL)
    _give_back(threads)


cdef void _back_worker(gru_back_job *job, const Cut *cut, Py_ssize_t panels, back_type back,
                       char *scratch, Py_ssize_t scratch_bytes, int rank,
                       int team) noexcept nogil:
    cdef Py_ssize_t b0, n, panel0, panel1
    cdef int part = rank, parts = _parts(cut, team)
    cdef unsigned long long old = denormals_off()
    while part < parts:
        _part(cut, job.B, panels, part, parts, &b0, &n, &panel0, &panel1)
        if n > 0:
            back(job, b0, n, panel0, panel1, team if cut.shared else 1,
                 scratch + rank * scratch_bytes)
        part += team
    denormals_restore(old)


cdef void _run_back(gru_back_job *job, const Cut *cut, Py_ssize_t panels, back_type back,
                    char *scratch, Py_ssize_t scratch_bytes) noexcept nogil:
    cdef int threads = _lease(cut.threads)
    if threads == 1:
        _back_worker(job, cut, panels, back, scratch, scratch_bytes, 0, 1)
    else:
        with parallel(num_threads=threads):
            _back_worker(job, cut, panels, back, scratch, scratch_bytes, team_rank(), team_size())
    _give_back(threads)


def backward(Fused packed, problem, workspace, states, dy, dstate, int threads):
    """Return (dx, dh0, dkernel, drecurrent_kernel, dbias as (2, 3H) or (3H,)).

    Parameters
    ----------
    packed : Fused
    problem : GRUProblem
    workspace, states
        What `forward(..., save=True)` of the same problem gave; the workspace is used up.
    dy : ndarray in y's shape, or None
    dstate : ndarray (B, H), or None
    threads : int
    """
    cdef gru_back_job job
    cdef Products p
    cdef Work work
    cdef Cut cut
    cdef team_barrier barrier
    cdef Py_buffer *view
    cdef _Views views = _Views.__new__(_Views)
    cdef Py_ssize_t size = packed.size, H, B, T, I, panels, scratch_bytes, rows
    cdef double flops
    cdef back_type back
    cdef char *scratch
    memset(&job, 0, sizeof(job))
    memset(&p, 0, sizeof(p))
    memset(&barrier, 0, sizeof(barrier))
    spec = packed.spec
    dtype = spec.dtype
    H = spec.units

    view = views.take(problem.x, PyBUF_STRIDES)
    if not _strided(view, size):
        view = views.take(np.array(problem.x, order="C"), PyBUF_STRIDES)
    B, T, I = view.shape[0], view.shape[1], view.shape[2]
    p.x, p.x_b, p.x_t = <const char *> view.buf, view.strides[0], view.strides[1]
    p.B, p.T, p.inputs, p.H = B, T, I, H
    rows = p.rows = workspace.rows
    job.B, job.T, job.H = B, T, H
    p.reset_after = job.reset_after = spec.reset_after
    p.reverse = job.reverse = problem.reverse
    job.sequences = problem.return_sequences
    job.zero_masked = problem.zero_output_for_mask
    p.barrier = job.barrier = &barrier
    job.functions = packed.functions
    p.size = size
    p.d = job.d = views.packed(workspace.gates, size)
    p.states = views.packed(states, size)
    job.states = p.states
    value = problem.h0
    if value is not None:
        p.h0 = job.h0 = views.packed(value, size)
    if dy is not None:
        view = views.take(dy, PyBUF_STRIDES)
        if not _strided(view, size):
            view = views.take(np.array(dy, order="C"), PyBUF_STRIDES)
        job.dy = <const char *> view.buf
        job.dy_b = view.strides[0]
        job.dy_s = view.strides[1] if job.sequences else 0
    _set_masks(views, problem, &job.lengths, &job.steps, &job.resets)
    p.resets = job.resets
    if workspace.slots is not None:
        job.slots = <const Py_ssize_t *> views.packed(workspace.slots, sizeof(Py_ssize_t))
        p.taken = <const Py_ssize_t *> views.packed(workspace.taken, sizeof(Py_ssize_t))
    value = problem.recurrent_dropout
    if value is not None:
        p.recurrent_dropout = job.recurrent_dropout = views.packed(value, size)
    value = problem.dropout
    if value is not None:
        p.dropout = views.packed(value, size)
        p.dropout_gates = 3 if value.ndim == 3 else 1
    job.ut = views.packed(packed.backward_panels(), size)
    p.w = views.packed(packed.kernel, size)

    carry = np.zeros((B, H), dtype) if dstate is None else np.array(dstate, dtype, order="C")
    view = views.take(carry, PyBUF_STRIDES | PyBUF_WRITABLE)
    job.carry = <char *> view.buf
    dx = (_empty if p.taken == NULL else np.zeros)((B, T, I), dtype)
    dw = np.zeros((I + 2 + H, 3 * H), dtype)
    if B > 0 and T > 0:
        if p.recurrent_dropout != NULL or p.dropout_gates == 3:
            p.copies = 3
        else:
            p.copies = 1 if p.reset_after else 2
        f = _empty((p.copies, ROWS, I + 2 + H), dtype)
        if p.taken != NULL or p.dropout != NULL:
            dxs = _empty((max(p.dropout_gates, 1), ROWS, I), dtype)
            p.dxs = views.packed(dxs, size)
        pending = _empty((B, H), dtype)
        p.f = views.packed(f, size)
        p.dx = views.packed(dx, size)
        p.dw = views.packed(dw, size)
        job.pending = views.packed(pending, size)
        panels = (H + 2 * packed.lanes - 1) // (2 * packed.lanes)
        flops = 12.0 * rows * H * (H + I)
        work.B, work.T, work.inputs, work.H = B, T, 0, H
        work.panels, work.lanes, work.size = panels, 2 * packed.lanes, size
        work.products, work.meetings = T, 1 if spec.reset_after else 2
        cut = _cut(threads, &work)
        if size == 4:
            back = _kernels_f32().back
            scratch_bytes = _padded(_kernels_f32().back_scratch(&job, cut.rows))
        else:
            back = _kernels_f64().back
            scratch_bytes = _padded(_kernels_f64().back_scratch(&job, cut.rows))
        threads = _team_limit(threads, flops)
        scratch = <char *> allocate_aligned(cut.threads * scratch_bytes)
        if scratch == NULL:
            raise MemoryError(f"scratch of {cut.threads * scratch_bytes} bytes")
        _blas_enter()
        with nogil:
            _run_back(&job, &cut, panels, back, scratch, scratch_bytes)
            _run_products(&p, threads)
        _blas_exit()
        free_aligned(scratch)
    else:
        dx[...] = 0
    dbias = dw[I : I + 2] if spec.reset_after else dw[I]
    return dx, carry, dw[:I], dw[I + 2 :], dbias
