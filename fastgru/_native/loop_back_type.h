/* The walk back through time for one ISA and one TYPE; included by gates_type.h after loop_type.h.
 *
 * Per step, for the rows that took it, with dh the gradient of h':
 *   dn = dh (1 - z)   dz = dh (h - n)   da_g = dg act'(a_g)
 *   after:   dr = da_h q                      dq_h = da_h r
 *   before:  g = da_h Uh^T   dr = g k         and k, the state as gate h sees it, gets g r
 *   carry = dh z + sum_g dropout_g * (dq_g U_g^T)
 * A row of d is [da_h, da_z, da_r, dq_h], so that both [da_h, da_z, da_r], which multiplies x and W,
 * and [da_z, da_r, dq_h], which multiplies h and U, are contiguous.
 */

static inline int FN(valid_at)(const gru_back_job *job, ptrdiff_t b, ptrdiff_t t) {
    if (job->lengths)
        return t < job->lengths[b];
    return !job->steps || job->steps[b * job->T + t];
}

typedef struct {
    const gru_back_job *job;
    const ptrdiff_t *rows;   /* b of each active row */
    ptrdiff_t gate;          /* whose dropout mask applies, with recurrent dropout */
    TYPE *const *d;          /* reset_after=False: rows of d */
    const TYPE *const *k;    /* reset_after=False: the state as gate h sees it */
} FN(back_step);

#define BACK_LANES (2 * LANES)

/* carry += sums (* dropout) */
static void FN(carry_piece)(const FN(back_step) *step, ptrdiff_t row, ptrdiff_t panel,
                             const TYPE *sums) {
    const gru_back_job *job = step->job;
    const ptrdiff_t b = step->rows[row], H = job->H, u = panel * BACK_LANES;
    const ptrdiff_t n = H - u < BACK_LANES ? H - u : BACK_LANES;
    TYPE *carry = (TYPE *)job->carry + b * H + u;
    if (job->recurrent_dropout) {
        const TYPE *mask = (const TYPE *)job->recurrent_dropout + (step->gate * job->B + b) * H + u;
        for (ptrdiff_t j = 0; j < n; j++)
            carry[j] += sums[j] * mask[j];
    } else {
        for (ptrdiff_t j = 0; j < n; j++)
            carry[j] += sums[j];
    }
}

/* reset_after=False: g = da_h Uh^T gives da_r, and its share of the carry; d's last quarter, r as it
 * was kept, becomes r k, the factor of dUh */
static void FN(reset_piece)(const FN(back_step) *step, ptrdiff_t row, ptrdiff_t panel,
                             const TYPE *sums) {
    const gru_back_job *job = step->job;
    const ptrdiff_t b = step->rows[row], H = job->H, u = panel * BACK_LANES;
    const ptrdiff_t n = H - u < BACK_LANES ? H - u : BACK_LANES;
    const gate_functions *f = &job->functions;
    TYPE *carry = (TYPE *)job->carry + b * H + u, *d = step->d[row] + u;
    const TYPE *k = step->k[row] + u;
    TYPE r[BACK_LANES], dr[BACK_LANES];
    memcpy(r, d + 3 * H, (size_t)n * sizeof(TYPE));
    FN(kernels).derivatives[f->recurrent_activation](n, f->recurrent_params, r, dr);
    for (ptrdiff_t j = 0; j < n; j++) {
        TYPE share = sums[j] * r[j];
        if (job->recurrent_dropout)
            share *= ((const TYPE *)job->recurrent_dropout)[(2 * job->B + b) * H + u + j];
        carry[j] += share;
        d[2 * H + j] = sums[j] * k[j] * dr[j];
        d[3 * H + j] = r[j] * k[j];
    }
}

#define EPILOGUE(NAME)                                                                             \
    static void FN(epilogue_##NAME)(const void *step, ptrdiff_t row, int R, ptrdiff_t panel,       \
                                    int P, TYPE *sums) {                                     \
        for (int r = 0; r < R; r++)                                                                \
            for (int j = 0; j < P; j++)                                                            \
                FN(NAME##_piece)(step, row + r, panel + j, sums + (r * P + j) * BACK_LANES);       \
    }
EPILOGUE(carry)
EPILOGUE(reset)

/* n units of one row: d in place of the gates, from them and the gradient of h'; carry becomes dh z.
 * reset_after=False: d's last quarter gets what was kept of r, for epilogue_reset. */
static void FN(back_gates)(const gru_back_job *job, ptrdiff_t n, const TYPE *RESTRICT h,
                           const TYPE *RESTRICT dout, TYPE *RESTRICT carry, TYPE *gates) {
    const gate_functions *f = &job->functions;
    const ptrdiff_t H = job->H;
    const TYPE one = C(1.0);
    const int fused =
        job->reset_after && f->activation == ACT_TANH && f->recurrent_activation == ACT_SIGMOID;
    for (ptrdiff_t u = 0, m; u < n; u += BACK_LANES) {
        TYPE z[BACK_LANES], r[BACK_LANES], c[BACK_LANES], q[BACK_LANES], kept[BACK_LANES];
        TYPE dz[BACK_LANES], dr[BACK_LANES], dc[BACK_LANES], da[BACK_LANES];
        m = n - u < BACK_LANES ? n - u : BACK_LANES;
        if (fused && m == BACK_LANES) {
            for (ptrdiff_t j = 0; j < BACK_LANES; j++) {
                z[j] = gates[u + j];
                r[j] = gates[H + u + j];
                c[j] = gates[2 * H + u + j];
                q[j] = gates[3 * H + u + j];
            }
            for (ptrdiff_t j = 0; j < BACK_LANES; j++) {
                const TYPE dh = carry[u + j] + dout[u + j];
                da[j] = dh * (one - z[j]) * (one - c[j] * c[j]);
                dz[j] = dh * (h[u + j] - c[j]) * z[j] * (one - z[j]);
                dr[j] = da[j] * q[j] * r[j] * (one - r[j]);
                q[j] = da[j] * r[j];
                carry[u + j] = dh * z[j];
            }
            memcpy(gates + u, da, sizeof da);
            memcpy(gates + H + u, dz, sizeof dz);
            memcpy(gates + 2 * H + u, dr, sizeof dr);
            memcpy(gates + 3 * H + u, q, sizeof q);
            continue;
        }
        const size_t bytes = (size_t)m * sizeof(TYPE);
        memcpy(z, gates + u, bytes);
        memcpy(r, gates + H + u, bytes);
        memcpy(c, gates + 2 * H + u, bytes);
        memcpy(q, gates + 3 * H + u, bytes);
        memcpy(kept, r, bytes);
        FN(kernels).derivatives[f->recurrent_activation](m, f->recurrent_params, z, dz);
        FN(kernels).derivatives[f->recurrent_activation](m, f->recurrent_params, r, dr);
        FN(kernels).derivatives[f->activation](m, f->params, c, dc);
        for (ptrdiff_t j = 0; j < m; j++) {
            const TYPE dh = carry[u + j] + dout[u + j];
            da[j] = dh * (one - z[j]) * dc[j];
            dz[j] *= dh * (h[u + j] - c[j]);
            dr[j] *= da[j] * q[j];
            q[j] = da[j] * r[j];
            carry[u + j] = dh * z[j];
        }
        memcpy(gates + u, da, bytes);
        memcpy(gates + H + u, dz, bytes);
        if (job->reset_after)
            memcpy(gates + 2 * H + u, dr, bytes);
        memcpy(gates + 3 * H + u, job->reset_after ? q : kept, bytes);
    }
}

static ptrdiff_t FN(back_scratch_bytes)(const gru_back_job *job, ptrdiff_t n) {
    return (job->H + (job->recurrent_dropout ? n * job->H : 0)) * (ptrdiff_t)sizeof(TYPE) +
           5 * n * (ptrdiff_t)sizeof(void *) + 64 * 12;
}

/* All steps of rows b0..b0+n, units of the panels panel0..panel1 of 2 * lanes units; with team > 1
 * the other threads make the other panels of the same rows. scratch: 64-byte aligned. */
static void FN(run_back)(const gru_back_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,
                         ptrdiff_t panel1, int team, char *scratch) {
    const ptrdiff_t T = job->T, H = job->H, stride = 3 * H * BACK_LANES;
    const ptrdiff_t u0 = panel0 * BACK_LANES < H ? panel0 * BACK_LANES : H;
    const ptrdiff_t u1 = panel1 * BACK_LANES < H ? panel1 * BACK_LANES : H, nu = u1 - u0;
    const size_t own = (size_t)nu * sizeof(TYPE);
    const int masked = job->steps || job->lengths;
    const TYPE *ut = (const TYPE *)job->ut;
    CARVE(TYPE, zeros, H);
    CARVE(TYPE, dropped, job->recurrent_dropout ? n * H : 0);
    CARVE(TYPE *, d, n);
    CARVE(const TYPE *, k_rows, n);
    CARVE(const TYPE *, rows, n);
    CARVE(ptrdiff_t, index, n);
    FN(back_step) step = {NULL, index, 0, d, k_rows};
    step.job = job;

    memset(zeros, 0, (size_t)H * sizeof(TYPE));
    for (ptrdiff_t b = b0; b < b0 + n; b++) {
        /* The last output repeats that of the row's last valid step. */
        TYPE *pending = (TYPE *)job->pending + b * H + u0;
        const ptrdiff_t last = job->reverse ? 0 : T - 1;
        if (job->dy && !job->sequences && T > 0 &&
            !(job->zero_masked && masked && !FN(valid_at)(job, b, last)))
            memcpy(pending, (const TYPE *)(job->dy + b * job->dy_b) + u0, own);
        else
            memset(pending, 0, own);
    }
    for (ptrdiff_t s = T - 1; s >= 0; s--) {
        const ptrdiff_t t = job->reverse ? T - 1 - s : s;
        ptrdiff_t active = 0;
        for (ptrdiff_t b = b0; b < b0 + n; b++) {
            TYPE *pending = (TYPE *)job->pending + b * H + u0;
            const TYPE *dout = pending;
            const int valid = !masked || FN(valid_at)(job, b, t);
            if (job->dy && job->sequences && (valid || !job->zero_masked)) {
                const TYPE *dy = (const TYPE *)(job->dy + b * job->dy_b + s * job->dy_s) + u0;
                if (!masked)
                    dout = dy;
                else
                    for (ptrdiff_t j = 0; j < nu; j++)
                        pending[j] += dy[j];
            }
            if (!valid)
                continue;
            const ptrdiff_t slot = job->slots ? job->slots[s * job->B + b] : b * T + t;
            const TYPE *h;
            if (job->resets && job->resets[b * T + t])
                h = zeros;
            else if (s > 0)
                h = (const TYPE *)job->states + (b * T + s - 1) * H;
            else
                h = job->h0 ? (const TYPE *)job->h0 + b * H : zeros;
            index[active] = b;
            d[active] = (TYPE *)job->d + slot * 4 * H;
            FN(back_gates)(job, nu, h + u0, dout, (TYPE *)job->carry + b * H + u0, d[active] + u0);
            if (dout == pending)
                memset(pending, 0, own);
            k_rows[active] = h;
            if (job->recurrent_dropout && !job->reset_after) {
                TYPE *copy = dropped + active * H;
                FN(multiply)(nu, h + u0,
                             (const TYPE *)job->recurrent_dropout + (2 * job->B + b) * H + u0,
                             copy + u0);
                k_rows[active] = copy;
            }
            active++;
        }
        barrier_wait(job->barrier, team);
        FN(operands) o = {.K = H, .rows = (const TYPE *const *)d, .w = ut + 2 * H * BACK_LANES,
                          .stride = stride};
        if (!job->reset_after) {
            if (active)
                FN(multiply_panels)(FN(tiles_2), 2, &o, active, panel0, panel1, FN(epilogue_reset),
                                    &step);
            barrier_wait(job->barrier, team);
        }
        for (ptrdiff_t a = 0; a < active; a++)
            rows[a] = d[a] + H;
        o.rows = rows;
        o.w = ut;
        if (active && job->recurrent_dropout) {
            for (step.gate = 0; step.gate < (job->reset_after ? 3 : 2); step.gate++) {
                FN(multiply_panels)(FN(tiles_2), 2, &o, active, panel0, panel1, FN(epilogue_carry),
                                    &step);
                for (ptrdiff_t a = 0; a < active; a++)
                    rows[a] += H;
                o.w += H * BACK_LANES;
            }
        } else if (active) {
            o.K = (job->reset_after ? 3 : 2) * H;
            FN(multiply_panels)(FN(tiles_2), 2, &o, active, panel0, panel1, FN(epilogue_carry), &step);
        }
        if (job->resets)
            for (ptrdiff_t b = b0; b < b0 + n; b++)
                if (job->resets[b * T + t])
                    memset((TYPE *)job->carry + b * H + u0, 0, own);
    }
}

#undef TILE
#undef TILES
#undef WIDE_TILES
#undef TILE_TABLE
#undef MAX_ROWS
#undef CARVE
#undef PARTIAL
#undef TILE_UNITS
#undef WHOLE
#undef VECTOR
#undef CONST_VECTOR
#undef EACH_PIECE
#undef FUSED_GATES
#undef EPILOGUE
#undef MAX_PANELS
#undef LANES
#undef BACK_LANES
