/* The fused loop for one ISA and one TYPE; included by gates_type.h, whose macros it uses.
 *
 * Each tile's gates are made right after its sums, while they are in L1. Rows come by pointer: a
 * masked or finished row is simply not listed, and h(t-1) is read where step t-1 wrote it, in the
 * output.
 */
#include "tile_type.h"

/* What is done with the sums of a tile. */
typedef struct {
    const gru_job *job;
    ptrdiff_t panel0;       /* where the thread's panels begin: p and z rows begin there */
    const TYPE *const *p;   /* x.W and the bias of each row */
    const TYPE *const *h;   /* state before the step */
    const TYPE *const *k;   /* the same with recurrent dropout of gate h */
    TYPE *const *h_new;     /* state after the step */
    TYPE *const *rk;        /* reset_after=False: r * k */
    TYPE *const *z;         /* reset_after=False */
    TYPE *const *gates;     /* where to keep them, in the first panel; NULL: nowhere */
    ptrdiff_t gates_stride; /* ... from panel to panel */
} FN(step);

/* The units of a tile, gathered row after row without gaps: so that a vector is full of units where
 * a layer has fewer of them than lanes, and a partial panel neither reads nor writes beyond H.
 * Units are stored in ascending order, a whole vector each: what it writes too much, the next one
 * overwrites. */
#define TILE_UNITS ((MAX_ROWS + 1) * LANES)
#define PARTIAL(job, panel, P) ((job)->H < ((panel) + (P)) * LANES)
/* Whole vectors: the compiler may round a rest differently, and where a row's units lie in a tile
 * depends on the other rows. What lies beyond the units is computed and thrown away. */
#define WHOLE(n) (((n) + LANES - 1) / LANES * LANES)
#define VECTOR(address) (*(FN(vector) *)(address))
#define CONST_VECTOR(address) (*(const FN(vector) *)(address))
/* Runs the block for every row r and panel j, with its first unit u, its place o, its length n. */
#define EACH_PIECE(R, P)                                                                           \
    for (ptrdiff_t r = 0, o = 0, n, u; r < (R); r++)                                               \
        for (ptrdiff_t j = 0; j < (P) && (u = (panel + j) * LANES,                                 \
                                          n = job->H - u < LANES ? job->H - u : LANES, 1);         \
             j++, o += n)

/* n units at address, from `values`. */
static inline void FN(scatter)(TYPE *address, const TYPE *values, ptrdiff_t n) {
    if (n == LANES)
        VECTOR(address) = CONST_VECTOR(values);
    else
        FN(copy_part)(address, values, n);
}

static inline void FN(gather)(TYPE *to, const TYPE *from, ptrdiff_t n) {
    if (n == LANES)
        VECTOR(to) = CONST_VECTOR(from);
    else
        FN(copy_part)(to, from, n);
}

#define FUSED_GATES(f)                                                                             \
    ((f)->activation == ACT_TANH && (f)->recurrent_activation == ACT_SIGMOID)

static void FN(epilogue_after)(const void *context, ptrdiff_t row, int R, ptrdiff_t panel, int P,
                               TYPE *sums) {
    const FN(step) *step = context;
    const gru_job *job = step->job;
    const gate_functions *f = &job->functions;
    const ptrdiff_t first = (panel - step->panel0) * 3 * LANES;
    if (FUSED_GATES(f) && !PARTIAL(job, panel, P)) {
        for (int j = 0; j < R * P; j++)
            FN(sigmoids)(2 * LANES, sums + j * 3 * LANES);
        for (int r = 0; r < R; r++) {
            const TYPE *p = step->p[row + r] + first, *a = sums + r * P * 3 * LANES;
            const TYPE *h = step->h[row + r] + panel * LANES;
            TYPE *h_new = step->h_new[row + r] + panel * LANES;
            if (step->gates) {
                TYPE *gates = step->gates[row + r] + panel * step->gates_stride;
                for (int j = 0; j < P; j++, p += 3 * LANES, a += 3 * LANES)
                    FN(new_state_kept)(LANES, a, a + LANES, p + 2 * LANES, a + 2 * LANES,
                                       h + j * LANES, h_new + j * LANES,
                                       gates + j * step->gates_stride, LANES);
            } else {
                for (int j = 0; j < P; j++, p += 3 * LANES, a += 3 * LANES)
                    FN(new_state)(LANES, a, a + LANES, p + 2 * LANES, a + 2 * LANES,
                                  h + j * LANES, h_new + j * LANES);
            }
        }
        return;
    }
    TYPE a[4][TILE_UNITS], h[TILE_UNITS], h_new[TILE_UNITS], kept[4 * TILE_UNITS];
    ptrdiff_t units = 0;
    EACH_PIECE(R, P) {
        const TYPE *q = sums + (r * P + j) * 3 * LANES;
        VECTOR(a[0] + o) = CONST_VECTOR(q);
        VECTOR(a[1] + o) = CONST_VECTOR(q + LANES);
        VECTOR(a[2] + o) = CONST_VECTOR(step->p[row + r] + first + (j * 3 + 2) * LANES);
        VECTOR(a[3] + o) = CONST_VECTOR(q + 2 * LANES);
        FN(gather)(h + o, step->h[row + r] + u, n);
        units = WHOLE(o + n);
    }
    if (FUSED_GATES(f)) {
        FN(sigmoids)(units, a[0]);
        FN(sigmoids)(units, a[1]);
        if (step->gates)
            FN(new_state_kept)(units, a[0], a[1], a[2], a[3], h, h_new, kept, TILE_UNITS);
        else
            FN(new_state)(units, a[0], a[1], a[2], a[3], h, h_new);
    } else {
        FN(gates_any)(units, a[0], a[1], a[2], a[3], h, h_new, kept, TILE_UNITS, f);
    }
    EACH_PIECE(R, P) {
        FN(scatter)(step->h_new[row + r] + u, h_new + o, n);
        if (step->gates)
            for (int g = 0; g < 4; g++)
                FN(scatter)(step->gates[row + r] + (panel + j) * step->gates_stride + g * LANES,
                            kept + g * TILE_UNITS + o, n);
    }
}

static void FN(epilogue_zr)(const void *context, ptrdiff_t row, int R, ptrdiff_t panel, int P,
                            TYPE *sums) {
    const FN(step) *step = context;
    const gru_job *job = step->job;
    const gate_functions *f = &job->functions;
    const ptrdiff_t first = panel - step->panel0;
    TYPE a[2][TILE_UNITS], z[TILE_UNITS], rk[TILE_UNITS];
    ptrdiff_t units = 0;
    EACH_PIECE(R, P) {
        for (int g = 0; g < 2; g++)
            VECTOR(a[g] + o) = CONST_VECTOR(sums + ((r * P + j) * 2 + g) * LANES);
        units = WHOLE(o + n);
    }
    memcpy(z, a[0], (size_t)units * sizeof(TYPE));
    memcpy(rk, a[1], (size_t)units * sizeof(TYPE));
    FN(kernels).activations[f->recurrent_activation](units, f->recurrent_params, z);
    FN(kernels).activations[f->recurrent_activation](units, f->recurrent_params, rk);
    if (KEEPS_VALUE(f->recurrent_activation)) {
        memcpy(a[0], z, (size_t)units * sizeof(TYPE));
        memcpy(a[1], rk, (size_t)units * sizeof(TYPE));
    }
    EACH_PIECE(R, P) {
        const TYPE *k = step->k[row + r] + u;
        TYPE *out = step->rk[row + r] + u;
        for (ptrdiff_t i = 0; i < n; i++)
            out[i] = rk[o + i] * k[i];
        FN(scatter)(step->z[row + r] + (first + j) * LANES, z + o, n);
        if (step->gates)
            for (int g = 0; g < 2; g++)
                FN(scatter)(step->gates[row + r] + (panel + j) * step->gates_stride + g * LANES,
                            a[g] + o, n);
    }
}

static void FN(epilogue_h)(const void *context, ptrdiff_t row, int R, ptrdiff_t panel, int P,
                           TYPE *sums) {
    const FN(step) *step = context;
    const gru_job *job = step->job;
    const gate_functions *f = &job->functions;
    const ptrdiff_t first = panel - step->panel0;
    TYPE a[TILE_UNITS], c[TILE_UNITS], z[TILE_UNITS], h[TILE_UNITS];
    ptrdiff_t units = 0;
    EACH_PIECE(R, P) {
        VECTOR(a + o) = CONST_VECTOR(sums + (r * P + j) * LANES);
        FN(gather)(h + o, step->h[row + r] + u, n);
        FN(gather)(z + o, step->z[row + r] + (first + j) * LANES, n);
        units = WHOLE(o + n);
    }
    memcpy(c, a, (size_t)units * sizeof(TYPE));
    FN(kernels).activations[f->activation](units, f->params, c);
    if (KEEPS_VALUE(f->activation))
        memcpy(a, c, (size_t)units * sizeof(TYPE));
    for (ptrdiff_t i = 0; i < units; i++)
        h[i] = FN(mix)(z[i], h[i], c[i]);
    EACH_PIECE(R, P) {
        FN(scatter)(step->h_new[row + r] + u, h + o, n);
        if (step->gates)
            FN(scatter)(step->gates[row + r] + (panel + j) * step->gates_stride + 2 * LANES, a + o,
                        n);
    }
}

static inline int FN(valid)(const gru_job *job, ptrdiff_t b, ptrdiff_t t) {
    if (job->lengths)
        return t < job->lengths[b];
    return !job->steps || job->steps[b * job->T + t];
}

static inline int FN(resets)(const gru_job *job, ptrdiff_t b, ptrdiff_t t) {
    return job->resets && job->resets[b * job->T + t];
}

/* x.W and the bias of the valid rows of steps s0..s1 into p, in the order in which they are processed. */
static void FN(project)(const gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t s0, ptrdiff_t s1,
                        ptrdiff_t panel0, ptrdiff_t panel1, const TYPE **rows,
                        const TYPE **biases, TYPE **out, TYPE *p, TYPE *dropped) {
    const ptrdiff_t row = (panel1 - panel0) * 3 * LANES, I = job->inputs;
    const ptrdiff_t gates = job->dropout ? job->dropout_gates : 1, ld = job->chunk_rows;
    ptrdiff_t count = 0;
    for (ptrdiff_t s = s0; s < s1; s++) {
        const ptrdiff_t t = job->reverse ? job->T - 1 - s : s;
        for (ptrdiff_t b = b0; b < b0 + n; b++) {
            if (!FN(valid)(job, b, t))
                continue;
            const TYPE *x = (const TYPE *)(job->x + b * job->x_b + t * job->x_t);
            out[count] = p + count * row;
            for (ptrdiff_t g = 0; g < gates; g++) {
                rows[g * ld + count] = x;
                if (job->dropout) {
                    TYPE *copy = dropped + (g * ld + count) * I;
                    FN(multiply)(I, x, (const TYPE *)job->dropout + (g * job->B + b) * I, copy);
                    rows[g * ld + count] = copy;
                }
            }
            count++;
        }
    }
    for (ptrdiff_t i = 0; i < count; i++)
        biases[i] = (const TYPE *)job->bias + panel0 * 4 * LANES;
    FN(operands) o = {.K = I, .rows = rows, .ld = ld, .w = (const TYPE *)job->w,
                      .stride = I * 3 * LANES, .start = biases, .start_stride = 4 * LANES,
                      .out = out};
    if (count)
        FN(multiply_panels)(gates == 3 ? FN(tiles_3s) : FN(tiles_3), 3, &o, count, panel0, panel1,
                            NULL, NULL);
}

/* Bytes of scratch that one thread needs for n rows and `panels` panels. */
static ptrdiff_t FN(scratch_bytes)(const gru_job *job, ptrdiff_t n, ptrdiff_t panels) {
    const ptrdiff_t gates = job->dropout ? job->dropout_gates : 1, H = job->H;
    ptrdiff_t items = H + job->chunk_rows * panels * 3 * LANES;  /* zeros, p */
    if (job->dropout)
        items += gates * job->chunk_rows * job->inputs;
    if (job->recurrent_dropout)
        items += 3 * n * H;
    if (!job->reset_after)
        items += n * panels * LANES;
    return items * (ptrdiff_t)sizeof(TYPE) +
           (ptrdiff_t)sizeof(void *) * ((gates + 2) * job->chunk_rows + 12 * n) + 64 * 21;
}

#define CARVE(type, name, count)                                                                   \
    type *name = (type *)scratch;                                                                  \
    scratch += ((size_t)(count) * sizeof(type) + 63) / 64 * 64

/* All steps of rows b0..b0+n, units of the panels panel0..panel1; with team > 1 the other threads
 * make the other panels of the same rows and meet at the barrier. scratch: 64-byte aligned. A call
 * that is stopped leaves y, states and gates half made. */
static void FN(run_block)(const gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,
                          ptrdiff_t panel1, int team, char *scratch) {
    const ptrdiff_t T = job->T, I = job->inputs, H = job->H, panels = panel1 - panel0;
    const ptrdiff_t u0 = panel0 * LANES < H ? panel0 * LANES : H;
    const ptrdiff_t u1 = panel1 * LANES < H ? panel1 * LANES : H;
    const size_t own = (size_t)(u1 - u0) * sizeof(TYPE); /* bytes of this thread's units */
    const ptrdiff_t gates = job->dropout ? job->dropout_gates : 1, row = panels * 3 * LANES;
    const ptrdiff_t recurrent = job->recurrent_dropout ? 3 : 1;
    const ptrdiff_t vectors = job->reset_after ? 4 : 3; /* of gates, in a panel */
    const int masked = job->steps || job->lengths;
    const int plain = job->sequences && !(masked || job->resets || job->recurrent_dropout ||
                                          job->states || job->gates);
    CARVE(TYPE, zeros, H);
    CARVE(TYPE, p, job->chunk_rows * row);
    CARVE(TYPE, dropped_x, job->dropout ? gates * job->chunk_rows * I : 0);
    CARVE(TYPE, dropped_h, job->recurrent_dropout ? 3 * n * H : 0);
    CARVE(TYPE, z, job->reset_after ? 0 : n * panels * LANES);
    CARVE(const TYPE *, x_rows, gates *job->chunk_rows);
    CARVE(const TYPE *, biases, job->chunk_rows);
    CARVE(TYPE *, p_rows, job->chunk_rows);
    CARVE(const TYPE *, current, n);  /* the state of each row */
    CARVE(const TYPE *, previous, n); /* its last valid output; NULL before there is one */
    CARVE(const TYPE *, h, n);        /* from here on: of the active rows only */
    CARVE(const TYPE *, k_rows, recurrent *n);
    CARVE(TYPE *, h_new, n);
    CARVE(TYPE *, z_rows, n);
    CARVE(TYPE *, rk_rows, n);
    CARVE(TYPE *, gate_rows, n);
    CARVE(ptrdiff_t, index, n);
    CARVE(ptrdiff_t, slots, n); /* where its gates or its reset_state lie */
    const FN(step) step = {job, panel0, (const TYPE *const *)p_rows, h, k_rows + (recurrent - 1) * n,
                           h_new, rk_rows, z_rows, job->gates ? gate_rows : NULL,
                           job->rows_kept * vectors * LANES};
    FN(step) now = step;

    memset(zeros, 0, (size_t)H * sizeof(TYPE));
    for (ptrdiff_t k = 0; k < n; k++) {
        const ptrdiff_t b = job->rows ? job->rows[b0 + k] : b0 + k;
        current[k] = job->h0 ? (const TYPE *)job->h0 + b * H : zeros;
        previous[k] = NULL;
    }
    const ptrdiff_t chunk = job->chunk_rows / n > 0 ? job->chunk_rows / n : 1;
    double yielded = 0;
    for (ptrdiff_t s0 = 0; s0 < T; s0 += chunk) {
        const ptrdiff_t s1 = s0 + chunk < T ? s0 + chunk : T;
        ptrdiff_t used = 0;
        if (job->poll && poll_stops(job->poll, s0, s1))
            return;
        if (team == 1)
            yield_if_due(job->counts, job->granted, &yielded);
        FN(project)(job, b0, n, s0, s1, panel0, panel1, x_rows, biases, p_rows, p, dropped_x);
        for (ptrdiff_t s = s0; s < s1; s++) {
            const ptrdiff_t t = job->reverse ? T - 1 - s : s;
            ptrdiff_t active = 0;
            int started = 0; /* some row's state is not the zeros it began with */
            if (plain && s > 0) { /* every row as at the step before, one step on */
                for (ptrdiff_t k = 0; k < n; k++) {
                    k_rows[k] = h[k] = h_new[k];
                    h_new[k] = (TYPE *)((char *)h_new[k] + job->y_s);
                }
                active = n;
                started = 1;
            } else {
                for (ptrdiff_t k = 0; k < n; k++) {
                    const ptrdiff_t b = b0 + k;
                    if (FN(resets)(job, b, t))
                        current[k] = zeros;
                    if (!FN(valid)(job, b, t))
                        continue;
                    TYPE *target;
                    if (job->states) {
                        target = (TYPE *)job->states + (b * T + s) * H;
                    } else if (job->sequences) {
                        target = (TYPE *)(job->y + b * job->y_b + s * job->y_s);
                    } else {
                        target = (TYPE *)job->alternate + b * H;
                        if (target == current[k] || target == previous[k])
                            target += job->B * H;
                    }
                    index[active] = k;
                    if (job->gates) {
                        const ptrdiff_t place = kept_place(job->B, T, s, b);
                        slots[active] = job->slots ? job->slots[place] : place;
                        gate_rows[active] = (TYPE *)job->gates + slots[active] * vectors * LANES;
                    } else {
                        slots[active] = b;
                    }
                    h[active] = current[k];
                    started |= current[k] != zeros;
                    h_new[active] = target;
                    active++;
                }
                for (ptrdiff_t g = 0; g < recurrent; g++)
                    for (ptrdiff_t a = 0; a < active; a++) {
                        k_rows[g * n + a] = h[a];
                        if (job->recurrent_dropout) {
                            const ptrdiff_t b = b0 + index[a];
                            TYPE *copy = dropped_h + (g * n + a) * H;
                            FN(multiply)(H, h[a],
                                         (const TYPE *)job->recurrent_dropout + (g * job->B + b) * H,
                                         copy);
                            k_rows[g * n + a] = copy;
                        }
                    }
            }
            now.p = (const TYPE *const *)p_rows + used;
            /* zero states times finite weights are zero: the first step often needs no product */
            const ptrdiff_t K = started || !job->u_finite ? H : 0;
            FN(operands) o = {.K = K, .rows = k_rows, .ld = n, .w = (const TYPE *)job->u,
                              .stride = H * 3 * LANES, .descending = s & 1, .start = now.p,
                              .start_stride = 3 * LANES};
            if (job->reset_after) {
                o.last = (const TYPE *)job->bias + 3 * LANES;
                o.last_stride = 4 * LANES;
                if (active)
                    FN(multiply_panels)(recurrent == 3 ? FN(tiles_3s) : FN(tiles_3), 3, &o, active,
                                        panel0, panel1, FN(epilogue_after), &now);
            } else {
                for (ptrdiff_t a = 0; a < active; a++) {
                    z_rows[a] = z + a * panels * LANES;
                    rk_rows[a] = (TYPE *)job->reset_state + slots[a] * H;
                }
                o.stride = H * 2 * LANES;
                if (active)
                    FN(multiply_panels)(recurrent == 3 ? FN(tiles_2s) : FN(tiles_2), 2, &o, active,
                                        panel0, panel1, FN(epilogue_zr), &now);
                barrier_wait(job->barrier, team);
                o.rows = (const TYPE *const *)rk_rows;
                o.w = (const TYPE *)job->uh;
                o.K = H; /* r may be NaN, and NaN times a zero state is no zero */
                o.stride = H * LANES;
                o.start_offset = 2 * LANES;
                if (active)
                    FN(multiply_panels)(FN(tiles_1), 1, &o, active, panel0, panel1, FN(epilogue_h),
                                        &now);
            }
            used += active;

            if (!plain || s == T - 1)
                for (ptrdiff_t a = 0; a < active; a++)
                    current[index[a]] = previous[index[a]] = h_new[a];
            if (masked || job->states) {
                for (ptrdiff_t k = 0; k < n; k++) {
                    const ptrdiff_t b = b0 + k;
                    const int valid = FN(valid)(job, b, t);
                    if (job->states && !valid)
                        memcpy((TYPE *)job->states + (b * T + s) * H + u0, current[k] + u0, own);
                    if (!job->sequences || (valid && !job->states))
                        continue;
                    TYPE *y = (TYPE *)(job->y + b * job->y_b + s * job->y_s) + u0;
                    if (!previous[k] || (!valid && job->zero_masked))
                        memset(y, 0, own);
                    else
                        memcpy(y, previous[k] + u0, own);
                }
            }
            barrier_wait(job->barrier, team);
        }
    }
    for (ptrdiff_t k = 0; k < n; k++) {
        const ptrdiff_t b = b0 + k, last = job->reverse ? 0 : T - 1;
        memmove((TYPE *)job->state + (job->rows ? job->rows[b] : b) * H + u0, current[k] + u0, own);
        if (job->sequences)
            continue;
        TYPE *y = (TYPE *)(job->y + b * job->y_b) + u0;
        if (!previous[k] || (job->zero_masked && !FN(valid)(job, b, last)))
            memset(y, 0, own);
        else
            memcpy(y, previous[k] + u0, own);
    }
}
