# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""GRU backward: the walk back through time in the fused loop (loop.h), then a few large products.

After the walk, with X and Hp the rows of x and of the state before each step that was taken, and
d = [da_h, da_z, da_r, dq_h] of the same rows:

    dW = X^T [da_z, da_r, da_h]   dU = Hp^T [da_z, da_r, dq_h]   dX = [da_h, da_z, da_r] W^T

BLAS is best at these. X and Hp end in a column of ones, whose products are the gradients of the
biases.
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
    KEEPS_VALUE,
    allocate_aligned,
    back_type,
    denormals_off,
    denormals_restore,
    free_aligned,
    gate_functions,
    gru_back_job,
    kernels_f32,
    kernels_f64,
    team_barrier,
    team_rank,
    team_size,
)

import numpy as np

cdef object _empty = np.empty


cdef struct Products:
    Py_ssize_t rows, B, T, inputs, H
    bint reset_after, reverse
    const char *x
    Py_ssize_t x_b, x_t
    const char *states
    const char *h0
    const unsigned char *resets
    const Py_ssize_t *slots
    const char *dropout
    Py_ssize_t dropout_gates
    const char *recurrent_dropout
    const char *gates
    const char *d
    const char *wt            # (3H, I), rows in the order h, z, r
    char *xs                  # (gates, rows, I + 1)
    char *hs                  # (gates, rows, H + 1)
    char *rk                  # reset_after=False: (rows, H + 1), what multiplies Uh
    char *dxs                 # (gates, rows, I)
    char *dx                  # (B, T, I)
    char *dw                  # (I + 1, 3H), columns in the order h, z, r
    char *du                  # (H + 1, 3H), columns in the order z, r, h
    gate_functions functions
    const kernels_f32 *k32
    const kernels_f64 *k64


cdef void _gemm(bint transposed, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const floating *A,
                Py_ssize_t lda, const floating *B, Py_ssize_t ldb, floating *C,
                Py_ssize_t ldc) noexcept nogil:
    # Row-major C (M, N) = A B, A (M, K) or, transposed, (K, M).
    cdef char no = b"n", a = b"t" if transposed else b"n"
    cdef int m = <int> M, n = <int> N, k = <int> K
    cdef int la = <int> lda, lb = <int> ldb, lc = <int> ldc
    cdef floating one = 1, zero = 0
    if M == 0 or N == 0:
        return
    if floating is float:
        sgemm(&no, &a, &n, &m, &k, &one, <float *> B, &lb, <float *> A, &la, &zero, C, &lc)
    else:
        dgemm(&no, &a, &n, &m, &k, &one, <double *> B, &lb, <double *> A, &la, &zero, C, &lc)


cdef void _gather_steps(
    const Products *p, Py_ssize_t s0, Py_ssize_t s1, floating *tag,
) noexcept nogil:
    # Fills xs, hs and rk of the rows of steps s0..s1.
    cdef Py_ssize_t s, t, b, g, j, slot, B = p.B, T = p.T, I = p.inputs, H = p.H
    cdef Py_ssize_t x_gates = p.dropout_gates if p.dropout != NULL else 1
    cdef Py_ssize_t h_gates = 3 if p.recurrent_dropout != NULL else 1
    cdef const floating *row
    cdef const floating *mask
    cdef floating *target
    for s in range(s0, s1):
        t = T - 1 - s if p.reverse else s
        for b in range(B):
            slot = p.slots[s * B + b] if p.slots != NULL else s * B + b
            if slot < 0:
                continue
            row = <const floating *> (p.x + b * p.x_b + t * p.x_t)
            for g in range(x_gates):
                target = <floating *> p.xs + (g * p.rows + slot) * (I + 1)
                if p.dropout == NULL:
                    memcpy(target, row, I * sizeof(floating))
                else:
                    mask = <const floating *> p.dropout + (g * B + b) * I
                    for j in range(I):
                        target[j] = row[j] * mask[j]
                target[I] = 1
            row = NULL
            if p.resets != NULL and p.resets[b * T + t]:
                pass
            elif s > 0:
                row = <const floating *> p.states + (b * T + s - 1) * H
            elif p.h0 != NULL:
                row = <const floating *> p.h0 + b * H
            for g in range(h_gates):
                target = <floating *> p.hs + (g * p.rows + slot) * (H + 1)
                if row == NULL:
                    memset(target, 0, H * sizeof(floating))
                elif p.recurrent_dropout == NULL:
                    memcpy(target, row, H * sizeof(floating))
                else:
                    mask = <const floating *> p.recurrent_dropout + (g * B + b) * H
                    for j in range(H):
                        target[j] = row[j] * mask[j]
                target[H] = 1
            if not p.reset_after:
                _reset_state(p, slot, target)


cdef void _reset_state(const Products *p, Py_ssize_t slot, const floating *k) noexcept nogil:
    # rk = r * k of one row; r is kept as its argument where its derivative needs that.
    cdef Py_ssize_t j, H = p.H
    cdef floating *rk = <floating *> p.rk + slot * (H + 1)
    memcpy(rk, <const floating *> p.gates + (slot * 4 + 1) * H, H * sizeof(floating))
    if not KEEPS_VALUE(p.functions.recurrent_activation):
        if floating is float:
            p.k32.activations[p.functions.recurrent_activation](
                H, p.functions.recurrent_params, rk
            )
        else:
            p.k64.activations[p.functions.recurrent_activation](
                H, p.functions.recurrent_params, rk
            )
    for j in range(H):
        rk[j] = rk[j] * k[j]
    rk[H] = 1


cdef void _multiply_gates(
    const Products *p, Py_ssize_t n0, Py_ssize_t n1, floating *tag,
) noexcept nogil:
    # Columns n0..n1 of every gate's dW and dU: one product where the gates see the same rows.
    cdef Py_ssize_t I = p.inputs, H = p.H, rows = p.rows, g, n = n1 - n0
    cdef const floating *d = <const floating *> p.d
    cdef const floating *xs = <const floating *> p.xs
    cdef const floating *hs = <const floating *> p.hs
    cdef floating *dw = <floating *> p.dw
    cdef floating *du = <floating *> p.du
    cdef bint x_split = p.dropout != NULL and p.dropout_gates == 3
    for g in range(3):            # h, z, r: d's order; the masks are in the order z, r, h
        _gemm(True, I + 1, n, rows,
              xs + ((g + 2) % 3 * rows * (I + 1) if x_split else 0), I + 1,
              d + g * H + n0, 4 * H, dw + g * H + n0, 3 * H)
    for g in range(3):            # z, r, h
        if g == 2 and not p.reset_after:
            _gemm(True, H + 1, n, rows, <const floating *> p.rk, H + 1, d + n0, 4 * H,
                  du + 2 * H + n0, 3 * H)
        else:
            _gemm(True, H + 1, n, rows,
                  hs + (g * rows * (H + 1) if p.recurrent_dropout != NULL else 0), H + 1,
                  d + (g + 1) * H + n0, 4 * H, du + g * H + n0, 3 * H)


cdef void _multiply_inputs(
    const Products *p, Py_ssize_t r0, Py_ssize_t r1, floating *tag,
) noexcept nogil:
    # dX of the rows r0..r1, without dropout masks.
    cdef Py_ssize_t I = p.inputs, H = p.H, g
    cdef const floating *d = <const floating *> p.d + r0 * 4 * H
    cdef const floating *wt = <const floating *> p.wt
    cdef floating *dxs = <floating *> p.dxs
    if p.dropout != NULL and p.dropout_gates == 3:
        for g in range(3):        # h, z, r
            _gemm(False, r1 - r0, I, H, d + g * H, 4 * H, wt + g * H * I, I,
                  dxs + (g * p.rows + r0) * I, I)
    else:
        _gemm(False, r1 - r0, I, 3 * H, d, 4 * H, wt, I, dxs + r0 * I, I)


cdef void _scatter_steps(
    const Products *p, Py_ssize_t s0, Py_ssize_t s1, floating *tag,
) noexcept nogil:
    # dx of steps s0..s1 from the rows of dxs.
    cdef Py_ssize_t s, t, b, g, j, slot, B = p.B, T = p.T, I = p.inputs
    cdef Py_ssize_t gates = p.dropout_gates if p.dropout != NULL else 1
    cdef const floating *row
    cdef const floating *mask
    cdef floating *target
    for s in range(s0, s1):
        t = T - 1 - s if p.reverse else s
        for b in range(B):
            slot = p.slots[s * B + b] if p.slots != NULL else s * B + b
            target = <floating *> p.dx + (b * T + t) * I
            if slot >= 0 and p.dropout == NULL:
                memcpy(target, <const floating *> p.dxs + slot * I, I * sizeof(floating))
                continue
            memset(target, 0, I * sizeof(floating))
            if slot < 0:
                continue
            for g in range(gates):
                row = <const floating *> p.dxs + (g * p.rows + slot) * I
                mask = <const floating *> p.dropout + ((g + 2) % 3 * B + b if gates == 3 else b) * I
                for j in range(I):
                    target[j] += row[j] * mask[j]


cdef void _product_worker(const Products *p, int phase, floating *tag) noexcept nogil:
    cdef int rank = team_rank(), team = team_size()
    cdef Py_ssize_t n
    if phase == 0:
        _gather_steps(p, p.T * rank // team, p.T * (rank + 1) // team, tag)
    elif phase == 1:
        _multiply_gates(p, p.H * rank // team, p.H * (rank + 1) // team, tag)
        n = p.rows
        _multiply_inputs(p, n * rank // team, n * (rank + 1) // team, tag)
    else:
        _scatter_steps(p, p.T * rank // team, p.T * (rank + 1) // team, tag)


cdef void _run_products(const Products *p, int threads) noexcept nogil:
    cdef int phase
    threads = _lease(threads)
    for phase in range(3):
        if threads == 1:
            if p.k32 != NULL:
                _product_worker(p, phase, <float *> NULL)
            else:
                _product_worker(p, phase, <double *> NULL)
        else:
            with parallel(num_threads=threads):
                if p.k32 != NULL:
                    _product_worker(p, phase, <float *> NULL)
                else:
                    _product_worker(p, phase, <double *> NULL)
    _give_back(threads)


cdef void _back_worker(gru_back_job *job, const Cut *cut, Py_ssize_t panels, back_type back,
                       char *scratch, Py_ssize_t scratch_bytes) noexcept nogil:
    cdef Py_ssize_t b0, n, panel0, panel1
    cdef int team = team_size(), part = team_rank(), parts = _parts(cut, team)
    cdef unsigned long long old = denormals_off()
    while part < parts:
        _part(cut, job.B, panels, part, parts, &b0, &n, &panel0, &panel1)
        if n > 0:
            back(job, b0, n, panel0, panel1, team if cut.shared else 1,
                 scratch + team_rank() * scratch_bytes)
        part += team
    denormals_restore(old)


cdef void _run_back(gru_back_job *job, const Cut *cut, Py_ssize_t panels, back_type back,
                    char *scratch, Py_ssize_t scratch_bytes) noexcept nogil:
    cdef int threads = _lease(cut.threads)
    if threads == 1:
        _back_worker(job, cut, panels, back, scratch, scratch_bytes)
    else:
        with parallel(num_threads=threads):
            _back_worker(job, cut, panels, back, scratch, scratch_bytes)
    _give_back(threads)


def backward(Fused packed, problem, workspace, states, dy, dstate, int threads):
    """Return (dx, dh0, dkernel, drecurrent_kernel, dbias as (2, 3H) or (3H,)).

    Parameters
    ----------
    packed : Fused
    problem : GRUProblem
    workspace, states
        What `forward(..., save=True)` of the same problem gave.
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
    ut, wt = packed.backward_panels()

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
    job.barrier = &barrier
    p.functions = job.functions = packed.functions
    p.gates = views.packed(workspace.gates, size)
    p.states = views.packed(states, size)
    job.gates, job.states = p.gates, p.states
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
        p.slots = job.slots = <const Py_ssize_t *> views.packed(
            workspace.slots, sizeof(Py_ssize_t)
        )
    value = problem.recurrent_dropout
    if value is not None:
        p.recurrent_dropout = job.recurrent_dropout = views.packed(value, size)
    value = problem.dropout
    if value is not None:
        p.dropout = views.packed(value, size)
        p.dropout_gates = 3 if value.ndim == 3 else 1
    job.ut = views.packed(ut, size)
    p.wt = views.packed(wt, size)

    carry = np.zeros((B, H), dtype) if dstate is None else np.array(dstate, dtype, order="C")
    view = views.take(carry, PyBUF_STRIDES | PyBUF_WRITABLE)
    job.carry = <char *> view.buf
    dx = _empty((B, T, I), dtype)
    dw = np.zeros((I + 1, 3, H), dtype)
    du = np.zeros((H + 1, 3, H), dtype)
    if B > 0 and T > 0:
        x_gates = p.dropout_gates if p.dropout != NULL else 1
        h_gates = 3 if p.recurrent_dropout != NULL else 1
        d = _empty((rows, 4, H), dtype)
        xs = _empty((x_gates, rows, I + 1), dtype)
        hs = _empty((h_gates, rows, H + 1), dtype)
        rk = None if spec.reset_after else _empty((rows, H + 1), dtype)
        dxs = _empty((x_gates, rows, I), dtype)
        pending = _empty((B, H), dtype)
        p.d = job.d = views.packed(d, size)
        p.xs, p.hs = views.packed(xs, size), views.packed(hs, size)
        if rk is not None:
            p.rk = views.packed(rk, size)
        p.dxs, p.dx = views.packed(dxs, size), views.packed(dx, size)
        p.dw, p.du = views.packed(dw, size), views.packed(du, size)
        job.pending = views.packed(pending, size)
        panels = (H + 2 * packed.lanes - 1) // (2 * packed.lanes)
        flops = 12.0 * rows * H * (H + I)
        work.B, work.T, work.inputs, work.H = B, T, 0, H
        work.panels, work.lanes, work.size = panels, 2 * packed.lanes, size
        work.products, work.meetings = T, 1 if spec.reset_after else 2
        cut = _cut(threads, &work)
        if size == 4:
            p.k32 = _kernels_f32()
            back = p.k32.back
            scratch_bytes = _padded(p.k32.back_scratch(&job, cut.rows))
        else:
            p.k64 = _kernels_f64()
            back = p.k64.back
            scratch_bytes = _padded(p.k64.back_scratch(&job, cut.rows))
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
    dkernel = np.empty((I, 3, H), dtype)
    dkernel[:, 2], dkernel[:, :2] = dw[:I, 0], dw[:I, 1:]
    dbias = np.concatenate([dw[I, 1], dw[I, 2], dw[I, 0]])
    if spec.reset_after:
        dbias = np.stack([dbias, du[H].reshape(-1)])
    drecurrent = np.ascontiguousarray(du[:H]).reshape(H, 3 * H)
    return dx, carry, dkernel.reshape(I, 3 * H), drecurrent, dbias
