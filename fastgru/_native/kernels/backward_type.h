/* The walk back through time for one ISA and one TYPE: the gradients of the gates, the state and x.
 * The gradients of the weights are made after it (products_type.h). Included by kernels_type.h
 * after forward_type.h.
 *
 * Per step, for the rows that took it, with dh the gradient of the new state h':
 *
 *   dn = dh (1 - z)          dz = dh (h - n)          da_g = dg act'(a_g)
 *   reset_after=True:        dr = da_h q              dq_h = da_h r
 *   reset_after=False:       g = da_h Uh^T            dr = g k
 *   carry = dh z + sum_g dropout_g (dq_g U_g^T)
 *
 * dq_z = da_z and dq_r = da_r. k is the state as gate h sees it, with dropout. With
 * reset_after=False there is no dq_h; the term of gate h in the carry is dropout_h g r.
 *
 * A row of d is [da_h, da_z, da_r, dq_h]. So [da_h, da_z, da_r], which multiplies W, and [da_z,
 * da_r, dq_h], which multiplies U, are both contiguous. d is kept twice: in panels, in place of the
 * gates, for the products after the walk; and as whole rows of the last steps, which the walk's
 * products find in cache.
 */

/* Row b's state before step s, which reads time t; NULL: zeros. */
static inline const TYPE *FN(state_before)(const gru_back_job *job, ptrdiff_t b, ptrdiff_t s,
                                           ptrdiff_t t) {
    if (IS_RESET(job, b, t))
        return NULL;
    if (s > 0)
        return (const TYPE *)job->states + (b * job->T + s - 1) * job->H;
    return job->h0 ? (const TYPE *)job->h0 + b * job->H : NULL;
}

/* What the epilogues of the walk need: which rows were multiplied, and where the sums go. */
typedef struct {
    const gru_back_job *job;
    ptrdiff_t gate;       /* whose dropout mask applies, where each gate has its own */
    int add;              /* to dX, instead of replacing it */
    const ptrdiff_t *b;   /* (rows): their numbers in the batch */
    TYPE *const *d;       /* rows of d; read with reset_after=False */
    TYPE *const *gates;   /* the same in panels, of the first panel; likewise */
    const TYPE *const *k; /* the state as gate h sees it; likewise */
    TYPE *const *dx;
} BACK_STEP;

#define BACK_LANES (2 * LANES)
#define GATE_VECTORS(job) ((job)->reset_after ? 4 : 3)
#define GATE_STRIDE(job) ((job)->rows * GATE_VECTORS(job) * LANES) /* from panel to panel */

/* carry += sums, times the dropout mask */
static void FN(carry_piece)(const BACK_STEP *step, ptrdiff_t row, ptrdiff_t panel,
                            const TYPE *sums) {
    const gru_back_job *job = step->job;
    const ptrdiff_t b = step->b[row], H = job->H, u = panel * BACK_LANES;
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

/* reset_after=False: from g = da_h Uh^T, the sums, da_r and a share of the carry. da_r replaces
 * what was kept of r. */
static void FN(reset_piece)(const BACK_STEP *step, ptrdiff_t row, ptrdiff_t panel,
                            const TYPE *sums) {
    const gru_back_job *job = step->job;
    const ptrdiff_t b = step->b[row], H = job->H, u = panel * BACK_LANES;
    const gate_functions *f = &job->functions;
    TYPE *carry = (TYPE *)job->carry + b * H, *d = step->d[row] + 2 * H;
    TYPE *gates = step->gates[row] + 2 * panel * GATE_STRIDE(job) + 2 * LANES;
    const TYPE *mask = (const TYPE *)job->recurrent_dropout;
    const ptrdiff_t end = H - u < BACK_LANES ? H : u + BACK_LANES;
    if (mask)
        mask += (2 * job->B + b) * H;
    for (ptrdiff_t first = u, n; first < end; first += n, sums += n, gates += GATE_STRIDE(job)) {
        TYPE r[LANES], dr[LANES];
        n = end - first < LANES ? end - first : LANES;
        memcpy(r, gates, (size_t)n * sizeof(TYPE));
        FN(kernels).derivatives[f->recurrent_activation](n, f->recurrent_params, r, dr);
        for (ptrdiff_t j = 0; j < n; j++) {
            const TYPE share = sums[j] * r[j];
            carry[first + j] += mask ? share * mask[first + j] : share;
            d[first + j] = gates[j] = sums[j] * step->k[row][first + j] * dr[j];
        }
    }
}

/* dX = sums, or dX += sums where each gate has a mask; times the dropout mask */
static void FN(inputs_piece)(const BACK_STEP *step, ptrdiff_t row, ptrdiff_t panel,
                             const TYPE *sums) {
    const gru_back_job *job = step->job;
    const ptrdiff_t I = job->inputs, i = panel * BACK_LANES;
    const ptrdiff_t n = I - i < BACK_LANES ? I - i : BACK_LANES;
    TYPE *dx = step->dx[row] + i;
    if (!job->dropout) {
        memcpy(dx, sums, (size_t)n * sizeof(TYPE));
        return;
    }
    const TYPE *mask = (const TYPE *)job->dropout + (step->gate * job->B + step->b[row]) * I + i;
    for (ptrdiff_t j = 0; j < n; j++)
        dx[j] = (step->add ? dx[j] : C(0.0)) + sums[j] * mask[j];
}

#define EPILOGUE(NAME)                                                                             \
    static void FN(epilogue_##NAME)(const void *step, ptrdiff_t row, int R, ptrdiff_t panel,       \
                                    int P, TYPE *sums) {                                           \
        for (int r = 0; r < R; r++)                                                                \
            for (int j = 0; j < P; j++)                                                            \
                FN(NAME##_piece)(step, row + r, panel + j, sums + (r * P + j) * BACK_LANES);       \
    }
EPILOGUE(carry)
EPILOGUE(reset)
EPILOGUE(inputs)

/* d of n units of one row, from its gates, the state h before the step, and the gradient of the new
 * state, dout + carry. d goes to the row d, and to the place of the gates, whose panels lie
 * `stride` apart; carry becomes dh z. reset_after=False: r stays as it was kept, for
 * epilogue_reset. */
static void FN(back_gates)(const gru_back_job *job, ptrdiff_t n, const TYPE *RESTRICT h,
                           const TYPE *RESTRICT dout, TYPE *RESTRICT carry, TYPE *RESTRICT gates,
                           ptrdiff_t stride, TYPE *RESTRICT d) {
    const gate_functions *f = &job->functions;
    const ptrdiff_t H = job->H;
    const TYPE one = C(1.0);
    const int fused = job->reset_after && FUSED_GATES(f);
    for (ptrdiff_t u = 0, m; u < n; u += LANES, gates += stride) {
        m = n - u < LANES ? n - u : LANES;
        if (fused && m == LANES) {
            const VEC z = CONST_VECTOR(gates), r = CONST_VECTOR(gates + LANES);
            const VEC c = CONST_VECTOR(gates + 2 * LANES);
            const VEC q = CONST_VECTOR(gates + 3 * LANES);
            const VEC dh = CONST_VECTOR(carry + u) + CONST_VECTOR(dout + u);
            const VEC da = dh * (one - z) * (one - c * c), dq = da * r;
            const VEC dz = dh * (CONST_VECTOR(h + u) - c) * z * (one - z);
            const VEC dr = da * q * r * (one - r);
            UNROLL for (int g = 0; g < 4; g++)
                __builtin_prefetch(gates - (ROW_GROUP * 4 - g) * LANES, 1);
            VECTOR(gates) = VECTOR(d + u) = da;
            VECTOR(gates + LANES) = VECTOR(d + H + u) = dz;
            VECTOR(gates + 2 * LANES) = VECTOR(d + 2 * H + u) = dr;
            VECTOR(gates + 3 * LANES) = VECTOR(d + 3 * H + u) = dq;
            VECTOR(carry + u) = dh * z;
            continue;
        }
        const size_t bytes = (size_t)m * sizeof(TYPE);
        TYPE a[4][LANES] = {{0}}, kept[LANES] = {0}, dz[LANES], dr[LANES], dc[LANES];
        TYPE *z = a[1], *r = a[2], *c = a[0], *q = a[3]; /* each where its d will be */
        memcpy(z, gates, bytes);
        memcpy(r, gates + LANES, bytes);
        memcpy(c, gates + 2 * LANES, bytes);
        memcpy(kept, r, bytes);
        if (job->reset_after)
            memcpy(q, gates + 3 * LANES, bytes);
        FN(kernels).derivatives[f->recurrent_activation](m, f->recurrent_params, z, dz);
        FN(kernels).derivatives[f->recurrent_activation](m, f->recurrent_params, r, dr);
        FN(kernels).derivatives[f->activation](m, f->params, c, dc);
        for (ptrdiff_t j = 0; j < m; j++) {
            const TYPE dh = carry[u + j] + dout[u + j];
            carry[u + j] = dh * z[j];
            dc[j] *= dh * (one - z[j]);
            z[j] = dz[j] * (dh * (h[u + j] - c[j]));
            c[j] = dc[j];
            dr[j] *= dc[j] * q[j];
            q[j] = dc[j] * r[j];
            r[j] = dr[j];
        }
        if (!job->reset_after)
            r = kept;
        for (int g = 0; g < GATE_VECTORS(job); g++) {
            const TYPE *values = g == 2 ? r : a[g];
            memcpy(gates + g * LANES, values, sizeof kept);
            memcpy(d + g * H + u, values, bytes);
        }
    }
}

/* dX of n rows of d: the panels panel0..panel1 of the features. */
static void FN(back_inputs)(BACK_STEP *step, ptrdiff_t n, const TYPE **d, ptrdiff_t panel0,
                            ptrdiff_t panel1) {
    const gru_back_job *job = step->job;
    const ptrdiff_t H = job->H, stride = 3 * H * BACK_LANES;
    OPERANDS o = {.K = 3 * H, .rows = d, .w = (const TYPE *)job->wt, .stride = stride};
    step->gate = step->add = 0;
    if (job->dropout_gates != 3) {
        FN(multiply_panels)(FN(tiles_2), 2, &o, n, panel0, panel1, FN(epilogue_inputs), step);
        return;
    }
    o.K = H;
    for (int g = 0; g < 3; g++) { /* h, z, r, as they lie in d */
        step->gate = (g + 2) % 3;
        FN(multiply_panels)(FN(tiles_2), 2, &o, n, panel0, panel1, FN(epilogue_inputs), step);
        for (ptrdiff_t a = 0; a < n; a++)
            d[a] += H;
        o.w += H * BACK_LANES;
        step->add = 1;
    }
}

/* A thread's part of the walk, and its scratch. */
typedef struct {
    const gru_back_job *job;
    ptrdiff_t b0, n;          /* its rows */
    ptrdiff_t panel0, panel1; /* its panels of 2 * lanes units, */
    ptrdiff_t u0, units;      /* and their units */
    int team;                 /* threads that make panels of the same rows */
    TYPE *zeros;              /* (H) */
    TYPE *dropped;            /* (n, H): the state as gate h sees it, with dropout */
    TYPE **gates;             /* (n) */
    const TYPE **k_rows;      /* (n) */
    const TYPE **rows;        /* (n) */
    /* (input_steps, n): rows of the steps whose dX is still to be made */
    TYPE **d_rows, **dx_rows;
    ptrdiff_t *index;
} BACK_PART;

/* Returns the bytes of a part's scratch, and carves it unless base is NULL. */
static ptrdiff_t FN(carve_back)(BACK_PART *part, char *base) {
    const gru_back_job *job = part->job;
    const ptrdiff_t n = part->n, waiting = job->input_steps * n;
    size_t size = 0;
    CARVE(part->zeros, job->H);
    CARVE(part->dropped, job->recurrent_dropout ? n * job->H : 0);
    CARVE(part->gates, n);
    CARVE(part->k_rows, n);
    CARVE(part->rows, n);
    CARVE(part->d_rows, waiting);
    CARVE(part->dx_rows, waiting);
    CARVE(part->index, waiting);
    return (ptrdiff_t)size;
}

static ptrdiff_t FN(back_scratch)(const gru_back_job *job, ptrdiff_t n) {
    BACK_PART part = {.job = job, .n = n};
    return FN(carve_back)(&part, NULL);
}

/* Begins `pending`: zeros, but where only the last output is wanted, its gradient. That output
 * repeats the one of the row's last valid step, unless masked outputs are zeros. */
static void FN(begin_pending)(const BACK_PART *part) {
    const gru_back_job *job = part->job;
    const size_t own = (size_t)part->units * sizeof(TYPE);
    for (ptrdiff_t b = part->b0; b < part->b0 + part->n; b++) {
        TYPE *pending = (TYPE *)job->pending + b * job->H + part->u0;
        if (job->dy && !job->sequences && job->T > 0 &&
            !(job->zero_masked && !IS_VALID(job, b, TIME_OF(job, job->T - 1))))
            memcpy(pending, (const TYPE *)(job->dy + b * job->dy_b) + part->u0, own);
        else
            memset(pending, 0, own);
    }
}

/* Computes d of the rows that took step s, and adds these rows to the lists from `waiting` on.
 * Returns their number. */
static inline ptrdiff_t FN(back_rows)(const BACK_PART *part, ptrdiff_t s, ptrdiff_t waiting) {
    const gru_back_job *job = part->job;
    const ptrdiff_t t = TIME_OF(job, s), T = job->T, H = job->H, u0 = part->u0, nu = part->units;
    const int masked = job->steps || job->lengths;
    ptrdiff_t active = 0;
    for (ptrdiff_t b = part->b0; b < part->b0 + part->n; b++) {
        TYPE *pending = (TYPE *)job->pending + b * H + u0;
        const TYPE *dout = pending;
        const int valid = !masked || IS_VALID(job, b, t);
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
        const ptrdiff_t place = kept_place(job->B, T, s, b);
        const ptrdiff_t slot = job->slots ? job->slots[place] : place;
        const TYPE *before = FN(state_before)(job, b, s, t), *h = before ? before : part->zeros;
        TYPE *gates = (TYPE *)job->gates + slot * GATE_VECTORS(job) * LANES;
        TYPE *d = (TYPE *)job->d + (b * job->d_steps + s % job->d_steps) * 4 * H;
        FN(back_gates)(job, nu, h + u0, dout, (TYPE *)job->carry + b * H + u0,
                       gates + 2 * part->panel0 * GATE_STRIDE(job), GATE_STRIDE(job), d + u0);
        if (dout == pending)
            memset(pending, 0, (size_t)nu * sizeof(TYPE));
        part->index[waiting + active] = b;
        part->dx_rows[waiting + active] = (TYPE *)job->dx + (b * T + t) * job->inputs;
        part->d_rows[waiting + active] = d;
        part->gates[active] = gates;
        part->k_rows[active] = h;
        if (job->recurrent_dropout && !job->reset_after) {
            TYPE *copy = part->dropped + active * H;
            FN(multiply)(nu, h + u0,
                         (const TYPE *)job->recurrent_dropout + (2 * job->B + b) * H + u0,
                         copy + u0);
            part->k_rows[active] = copy;
        }
        active++;
    }
    return active;
}

/* Adds to the carry what the products of the `active` rows listed last give; with reset_after=False
 * da_r first. */
static inline void FN(back_carry)(const BACK_PART *part, BACK_STEP *step, ptrdiff_t active) {
    const gru_back_job *job = part->job;
    const ptrdiff_t H = job->H, panel0 = part->panel0, panel1 = part->panel1;
    const int gates = job->reset_after ? 3 : 2;
    const TYPE *ut = (const TYPE *)job->ut;
    OPERANDS o = {.K = H,
                  .rows = (const TYPE *const *)step->d,
                  .w = ut + 2 * H * BACK_LANES,
                  .stride = 3 * H * BACK_LANES};
    if (!job->reset_after) {
        if (active)
            FN(multiply_panels)(FN(tiles_2), 2, &o, active, panel0, panel1, FN(epilogue_reset),
                                step);
        barrier_wait(job->barrier, part->team);
    }
    for (ptrdiff_t a = 0; a < active; a++)
        part->rows[a] = step->d[a] + H;
    o.rows = part->rows;
    o.w = ut;
    if (active && job->recurrent_dropout) {
        for (step->gate = 0; step->gate < gates; step->gate++) {
            FN(multiply_panels)(FN(tiles_2), 2, &o, active, panel0, panel1, FN(epilogue_carry),
                                step);
            for (ptrdiff_t a = 0; a < active; a++)
                part->rows[a] += H;
            o.w += H * BACK_LANES;
        }
    } else if (active) {
        o.K = gates * H;
        FN(multiply_panels)(FN(tiles_2), 2, &o, active, panel0, panel1, FN(epilogue_carry), step);
    }
}

/* The kernel `back` (kernels.h). A call that is stopped leaves its outputs incomplete. */
static void FN(run_back)(const gru_back_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,
                         ptrdiff_t panel1, int team, char *scratch) {
    const ptrdiff_t T = job->T, H = job->H;
    const ptrdiff_t panels = (H + BACK_LANES - 1) / BACK_LANES;
    /* Panels of features are divided among the threads as those of units are. */
    const ptrdiff_t inputs = (job->inputs + BACK_LANES - 1) / BACK_LANES;
    const ptrdiff_t u0 = panel0 * BACK_LANES < H ? panel0 * BACK_LANES : H;
    const ptrdiff_t u1 = panel1 * BACK_LANES < H ? panel1 * BACK_LANES : H;
    BACK_PART part = {.job = job,
                      .b0 = b0,
                      .n = n,
                      .panel0 = panel0,
                      .panel1 = panel1,
                      .u0 = u0,
                      .units = u1 - u0,
                      .team = team};
    FN(carve_back)(&part, scratch);
    BACK_STEP step = {.job = job, .gates = part.gates, .k = part.k_rows, .dx = part.dx_rows};
    ptrdiff_t waiting = 0; /* rows whose dX is still to be made */
    double yielded = 0;

    memset(part.zeros, 0, (size_t)H * sizeof(TYPE));
    FN(begin_pending)(&part);
    for (ptrdiff_t s = T - 1; s >= 0; s--) {
        if (job->poll && poll_stops(job->poll, T - 1 - s, T - s))
            return;
        if (team == 1)
            yield_if_due(job->counts, job->granted, &yielded);
        const ptrdiff_t active = FN(back_rows)(&part, s, waiting);
        barrier_wait(job->barrier, team);
        step.b = part.index + waiting;
        step.d = part.d_rows + waiting;
        FN(back_carry)(&part, &step, active);
        waiting += active;
        if (waiting && s % job->input_steps == 0) {
            step.b = part.index;
            FN(back_inputs)(&step, waiting, (const TYPE **)part.d_rows, inputs * panel0 / panels,
                            inputs * panel1 / panels);
            waiting = 0;
        }
        if (job->resets)
            for (ptrdiff_t b = b0; b < b0 + n; b++)
                if (IS_RESET(job, b, TIME_OF(job, s)))
                    memset((TYPE *)job->carry + b * H + u0, 0, (size_t)(u1 - u0) * sizeof(TYPE));
    }
}

#undef EPILOGUE
#undef BACK_LANES
