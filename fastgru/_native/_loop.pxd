# One call's work on one thread: the loop over time, float and double.
#
# Everything here is inline and part of _cpu.pyx, which decides how the work is cut and starts the
# threads. A thread runs whole blocks of rows through all steps (no synchronisation), or, where rows
# are few, all threads run the same rows and each owns a range of the units (a barrier a step).
# Pointers are C-contiguous unless strides are named; strides are in bytes (x_b, y_s, ...).

from libc.string cimport memcpy, memset

from cython cimport floating

from fastgru._native._blas cimport Matrix, matmul
from fastgru._native._headers cimport (
    barrier_wait,
    denormals_off,
    denormals_restore,
    gate_functions,
    interrupt_poll,
    kernels_f32,
    kernels_f64,
    poll_stops,
    team_barrier,
    thread_counts,
    yield_if_due,
)


ctypedef struct Job:
    Py_ssize_t B, T, inputs, H  # complex.h, which SciPy needs, makes I a macro
    bint reset_after, reverse, sequences, zero_masked, masked, shared
    # x (B, T, I), last axis contiguous; y (B, T, H) or (B, H); states (B, T, H) or NULL
    const char *x
    Py_ssize_t x_b, x_t
    char *y
    Py_ssize_t y_b, y_s
    char *states
    char *state               # (B, H), out
    const char *h0            # (B, H) or NULL
    # Masks in input order, (B, T); lengths (B). NULL: none.
    const unsigned char *steps
    const Py_ssize_t *lengths
    const unsigned char *resets
    const char *dropout       # (gates, B, I) or NULL
    Py_ssize_t dropout_gates
    const char *recurrent_dropout  # (3, B, H) or NULL
    Matrix w, u
    const char *bias          # (4, H), see kernels.h
    gate_functions functions
    const kernels_f32 *k32
    const kernels_f64 *k64
    # How the work is cut.
    Py_ssize_t blocks, block_rows, chunk_steps
    char *scratch             # per thread, then the part all share
    Py_ssize_t scratch_bytes, shared_bytes
    int threads
    team_barrier barrier
    interrupt_poll *watch     # of a long call; NULL: it runs to its end
    const thread_counts *counts  # of the process
    int granted               # threads of this call


# The table of the dtype. Everything below is per row: n units of it, pointers at the first of them.

cdef inline void _after(
    const Job *job, Py_ssize_t n, const floating *p, const floating *q, const floating *b,
    const floating *h, floating *h_new, floating *work,
) noexcept nogil:
    if floating is float:
        job.k32.after(n, job.H, p, q, b, h, h_new, work, &job.functions)
    else:
        job.k64.after(n, job.H, p, q, b, h, h_new, work, &job.functions)


cdef inline void _before_zr(
    const Job *job, Py_ssize_t n, const floating *p, const floating *q, const floating *b,
    const floating *k, floating *z, floating *rk, floating *work,
) noexcept nogil:
    if floating is float:
        job.k32.before_zr(n, job.H, p, q, b, k, z, rk, work, &job.functions)
    else:
        job.k64.before_zr(n, job.H, p, q, b, k, z, rk, work, &job.functions)


cdef inline void _before_h(
    const Job *job, Py_ssize_t n, const floating *p, const floating *q, const floating *b,
    const floating *z, const floating *h, floating *h_new, floating *work,
) noexcept nogil:
    if floating is float:
        job.k32.before_h(n, job.H, p, q, b, z, h, h_new, work, &job.functions)
    else:
        job.k64.before_h(n, job.H, p, q, b, z, h, h_new, work, &job.functions)


cdef inline void _multiply(
    const Job *job, Py_ssize_t n, const floating *a, const floating *b, floating *c,
) noexcept nogil:
    if floating is float:
        job.k32.multiply(n, a, b, c)
    else:
        job.k64.multiply(n, a, b, c)


cdef inline bint _valid(const Job *job, Py_ssize_t b, Py_ssize_t t) noexcept nogil:
    if job.lengths != NULL:
        return t < job.lengths[b]
    return job.steps == NULL or job.steps[b * job.T + t] != 0


cdef inline bint _reset(const Job *job, Py_ssize_t b, Py_ssize_t t) noexcept nogil:
    return job.resets != NULL and job.resets[b * job.T + t] != 0


cdef inline Py_ssize_t _direct(
    const Job *job, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t *p_k, Py_ssize_t *p_t,
) noexcept nogil:
    # The leading dimension of x if the n rows of `steps` steps are one matrix to BLAS, else 0:
    # then they are gathered. OUT p_k, p_t: how far apart rows and steps are in that matrix.
    cdef Py_ssize_t size = sizeof(float) if job.k32 != NULL else sizeof(double)
    cdef Py_ssize_t stride = 0
    if job.masked or job.dropout != NULL:
        return 0
    if n == 1 or (steps == job.T and job.x_b == job.T * job.x_t):
        stride = job.x_t
        p_k[0] = steps
        p_t[0] = 1
    elif steps == 1 or job.x_t == n * job.x_b:
        stride = job.x_b
        p_k[0] = 1
        p_t[0] = n
    return stride // size if job.inputs > 0 and stride >= job.inputs * size else 0


cdef inline Py_ssize_t _gather(
    const Job *job, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t s0, Py_ssize_t s1, Py_ssize_t gate,
    floating *target,                       # OUT (count, I)
) noexcept nogil:
    # Copies the x rows of valid steps, in the order in which they are processed; returns how many.
    cdef Py_ssize_t s, t, b, count = 0, I = job.inputs
    cdef const floating *row
    cdef const floating *factor
    for s in range(s0, s1):
        t = job.T - 1 - s if job.reverse else s
        for b in range(b0, b0 + n):
            if not _valid(job, b, t):
                continue
            row = <const floating *> (job.x + b * job.x_b + t * job.x_t)
            if job.dropout == NULL:
                memcpy(target + count * I, row, I * sizeof(floating))
            else:
                factor = <const floating *> job.dropout + (gate * job.B + b) * I
                _multiply(job, I, row, factor, target + count * I)
            count += 1
    return count


cdef inline void _run_block(
    Job *job, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t u0, Py_ssize_t u1, int team,
    floating *scratch, floating *shared,
) noexcept nogil:
    # All steps of rows b0..b0+n. This thread makes the units u0..u1; with team > 1 the others make
    # theirs of the same rows meanwhile, and meet at the barriers.
    cdef Py_ssize_t T = job.T, I = job.inputs, H = job.H, row = 3 * H, nu = u1 - u0
    cdef Py_ssize_t size = sizeof(floating), bytes_u = (u1 - u0) * sizeof(floating)
    cdef Py_ssize_t s, s0, s1, t, t_first, k, g, b, active, used, ldx, p_k = 0, p_t = 0, chunk
    cdef bint plain, last
    cdef floating *p = scratch                              # (chunk, 3H)
    cdef floating *q = p + n * job.chunk_steps * row        # (n, 3H)
    cdef floating *work = q + n * row                       # (3H)
    cdef floating *gathered = work + row                    # (n, H) states of the active rows
    cdef floating *dropped = gathered + n * H               # (3, n, H) with recurrent dropout
    cdef floating *z = dropped + (3 * n * H if job.recurrent_dropout != NULL else 0)
    cdef floating *xs = z + (0 if job.reset_after else n * H)
    cdef Py_ssize_t *index = <Py_ssize_t *> (<char *> scratch + job.scratch_bytes) - n
    cdef floating *other = shared                           # (n, H) every second state
    cdef floating *rk = other + n * H                       # (n, H) reset_after=False
    cdef floating *final = <floating *> job.state + b0 * H
    cdef floating *now
    cdef floating *new
    cdef const floating *h
    cdef const floating *a
    cdef const floating *p_row
    cdef const floating *bias = <const floating *> job.bias + u0
    cdef char *y
    cdef double turn = 0

    now = other if T % 2 else final                         # the last step then writes `final`
    for k in range(n):
        if job.h0 == NULL:
            memset(now + k * H + u0, 0, bytes_u)
        else:
            memcpy(now + k * H + u0, <const floating *> job.h0 + (b0 + k) * H + u0, bytes_u)
        if not job.sequences and (job.masked or T == 0):
            memset(job.y + (b0 + k) * job.y_b + u0 * size, 0, bytes_u)
    barrier_wait(&job.barrier, team)

    s0 = 0
    while s0 < T:
        s1 = min(s0 + job.chunk_steps, T)
        chunk = s1 - s0
        if job.watch != NULL and poll_stops(job.watch, s0, s1):
            return
        t_first = T - s1 if job.reverse else s0
        ldx = _direct(job, n, chunk, &p_k, &p_t)
        if ldx != 0:
            matmul(
                &job.w, 0, 3, u0, u1, n * chunk,
                <const floating *> (job.x + b0 * job.x_b + t_first * job.x_t),
                ldx, p,
            )
        elif job.dropout_gates == 3:
            for g in range(3):
                k = _gather(job, b0, n, s0, s1, g, xs)
                matmul(&job.w, g, g + 1, u0, u1, k, <const floating *> xs, I, p)
        else:
            k = _gather(job, b0, n, s0, s1, 0, xs)
            matmul(&job.w, 0, 3, u0, u1, k, <const floating *> xs, I, p)
        used = 0

        for s in range(s0, s1):
            if team == 1:
                yield_if_due(job.counts, job.granted, &turn)
            t = T - 1 - s if job.reverse else s
            last = s == T - 1
            new = final if now == other else other

            # Which rows take this step, and their states without gaps.
            active, plain = 0, True
            for k in range(n):
                if _valid(job, b0 + k, t):
                    index[active] = k
                    active += 1
                    plain = plain and not _reset(job, b0 + k, t)
            plain = plain and active == n
            h = now
            if not plain:
                h = gathered
                for k in range(active):
                    if _reset(job, b0 + index[k], t):
                        memset(gathered + k * H, 0, H * size)
                    else:
                        memcpy(gathered + k * H, now + index[k] * H, H * size)

            # h.U. k is what the gate of the candidate sees: h, or h with dropout.
            a = h
            if job.recurrent_dropout != NULL:
                for g in range(3):
                    for k in range(active):
                        b = b0 + index[k]
                        _multiply(
                            job, H, h + k * H,
                            <const floating *> job.recurrent_dropout + (g * job.B + b) * H,
                            dropped + (g * n + k) * H,
                        )
                    if g < 2 or job.reset_after:
                        matmul(&job.u, g, g + 1, u0, u1, active,
                               <const floating *> dropped + g * n * H, H, q)
                a = dropped + 2 * n * H
            else:
                matmul(&job.u, 0, 3 if job.reset_after else 2, u0, u1, active, h, H, q)

            # The gates.
            for k in range(active):
                if ldx != 0:
                    p_row = p + (index[k] * p_k + (t - t_first) * p_t) * row + u0
                else:
                    p_row = p + (used + k) * row + u0
                if job.reset_after:
                    _after(job, nu, p_row, <const floating *> q + k * row + u0, bias,
                           h + k * H + u0, new + index[k] * H + u0, work)
                else:
                    _before_zr(job, nu, p_row, <const floating *> q + k * row + u0, bias,
                               a + k * H + u0, z + k * H + u0, rk + k * H + u0, work)
            if not job.reset_after:
                barrier_wait(&job.barrier, team)
                matmul(&job.u, 2, 3, u0, u1, active, <const floating *> rk, H, q)
                for k in range(active):
                    if ldx != 0:
                        p_row = p + (index[k] * p_k + (t - t_first) * p_t) * row + u0
                    else:
                        p_row = p + (used + k) * row + u0
                    _before_h(job, nu, p_row, <const floating *> q + k * row + u0, bias,
                              <const floating *> z + k * H + u0, h + k * H + u0,
                              new + index[k] * H + u0, work)
            used += active

            # States of the other rows, and outputs.
            for k in range(n):
                b = b0 + k
                if active < n and not _valid(job, b, t):
                    if _reset(job, b, t):
                        memset(new + k * H + u0, 0, bytes_u)
                    else:
                        memcpy(new + k * H + u0, now + k * H + u0, bytes_u)
                    y = job.y + b * job.y_b + s * job.y_s + u0 * size
                    if job.zero_masked or (job.sequences and s == 0):
                        memset(y, 0, bytes_u)
                    elif job.sequences:
                        memcpy(y, y - job.y_s, bytes_u)
                elif job.sequences or job.masked or last:
                    y = job.y + b * job.y_b + s * job.y_s + u0 * size
                    memcpy(y, new + k * H + u0, bytes_u)
                if job.states != NULL:
                    memcpy(job.states + ((b * T + s) * H + u0) * size, new + k * H + u0, bytes_u)
            now = new
            barrier_wait(&job.barrier, team)
        s0 = s1


cdef inline void _worker(Job *job, int rank, int team, floating *tag) noexcept nogil:
    # One thread of the team; the team may be smaller than was asked for.
    cdef Py_ssize_t block = 0, step = 1, u0 = 0, u1 = job.H, n
    cdef char *mine = job.scratch + rank * job.scratch_bytes
    cdef char *shared = mine
    cdef unsigned long long old = denormals_off()
    if job.shared:
        # Whole vectors to each: the panels of two threads may meet inside a panel of the matrix.
        n = ((job.H + team - 1) // team + 15) // 16 * 16
        u0, u1 = min(rank * n, job.H), min(rank * n + n, job.H)
        shared = job.scratch + job.threads * job.scratch_bytes
    else:
        block, step = rank, team
        shared = job.scratch + job.threads * job.scratch_bytes + rank * job.shared_bytes
        team = 1
    while block < job.blocks:
        n = min(job.block_rows, job.B - block * job.block_rows)
        if n > 0:
            _run_block(job, block * job.block_rows, n, u0, u1, team,
                       <floating *> mine, <floating *> shared)
        block += step
    denormals_restore(old)
