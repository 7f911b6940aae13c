/* The forward loop of layers with few units, for one ISA and one TYPE; included by kernels_type.h
 * after forward_type.h.
 *
 * Where a layer has half as many units as a vector has lanes, or fewer, most lanes of
 * forward_type.h have no unit. With enough rows it is better to put rows into the lanes. So
 * everything is transposed here, and a vector holds one unit of LANES rows. Sums have the same
 * order and the same operations, so that both loops give a row the same bits.
 */
#define NARROW_ROWS (4 * LANES) /* rows at a time, so that a step stays in L1 */
#define POLL_STEPS 64 /* from poll to poll: a step takes about 1 us, reading the clock 0.03 */

/* Only for calls without masks, dropout, and outputs for backward; forward_type.h has these. */
static inline int FN(is_narrow)(const gru_job *job, ptrdiff_t n) {
    return 2 * job->H <= LANES && 2 * n >= LANES && job->T > 0 && job->reset_after &&
           !(job->steps || job->lengths || job->resets || job->dropout || job->recurrent_dropout ||
             job->states || job->gates || job->rows);
}

/* Scratch of run_narrow; ld rows are in the lanes, NARROW_ROWS at most. */
typedef struct {
    TYPE *x;      /* (I, ld) */
    TYPE *states; /* (2, H, ld): before and after a step */
    TYPE *a;      /* (4, ld): sums of one unit */
    TYPE *kept;   /* (4, ld): what gates_any keeps */
} NARROW;

static ptrdiff_t FN(carve_narrow)(const gru_job *job, NARROW *narrow, char *base) {
    size_t size = 0;
    CARVE(narrow->x, job->inputs * NARROW_ROWS);
    CARVE(narrow->states, 2 * job->H * NARROW_ROWS);
    CARVE(narrow->a, 4 * NARROW_ROWS);
    CARVE(narrow->kept, 4 * NARROW_ROWS);
    return (ptrdiff_t)size;
}

/* Unit j of V vectors of rows: a[0], a[1], a[2], a[3] become the sums of z, r, x.Wh and h.Uh. */
#define NARROW_SUMS(V)                                                                             \
    static void FN(narrow_sums_##V)(const gru_job *job, ptrdiff_t j, const TYPE *x, const TYPE *h, \
                                    TYPE *a, ptrdiff_t ld) {                                       \
        const TYPE *w = (const TYPE *)job->w + j, *u = (const TYPE *)job->u + j;                   \
        const TYPE *bias = (const TYPE *)job->bias + j;                                            \
        VEC sum[4][V];                                                                             \
        UNROLL for (int g = 0; g < 4; g++) {                                                       \
            UNROLL for (int v = 0; v < V; v++) sum[g][v] = (VEC){0} + bias[g * LANES];             \
        }                                                                                          \
        for (ptrdiff_t i = 0; i < job->inputs; i++, w += 3 * LANES) {                              \
            UNROLL for (int v = 0; v < V; v++) {                                                   \
                const VEC value = CONST_VECTOR(x + i * ld + v * LANES);                            \
                UNROLL for (int g = 0; g < 3; g++) sum[g][v] += w[g * LANES] * value;              \
            }                                                                                      \
        }                                                                                          \
        for (ptrdiff_t k = 0; k < job->H; k++, u += 3 * LANES) {                                   \
            UNROLL for (int v = 0; v < V; v++) {                                                   \
                const VEC value = CONST_VECTOR(h + k * ld + v * LANES);                            \
                UNROLL for (int g = 0; g < 2; g++) sum[g][v] += u[g * LANES] * value;              \
                sum[3][v] += u[2 * LANES] * value;                                                 \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int g = 0; g < 4; g++) {                                                       \
            UNROLL for (int v = 0; v < V; v++) VECTOR(a + g * ld + v * LANES) = sum[g][v];         \
        }                                                                                          \
    }
NARROW_SUMS(1)
NARROW_SUMS(2)

static void FN(run_narrow)(const gru_job *job, ptrdiff_t b0, ptrdiff_t n, char *scratch) {
    const ptrdiff_t T = job->T, I = job->inputs, H = job->H, ld = WHOLE(n);
    const gate_functions *f = &job->functions;
    NARROW narrow;
    FN(carve_narrow)(job, &narrow, scratch);
    TYPE *const x = narrow.x, *const a = narrow.a, *h = narrow.states, *h_new = h + H * ld;

    memset(x, 0, (size_t)(I * ld) * sizeof(TYPE)); /* also the lanes that have no row */
    memset(h, 0, (size_t)(2 * H * ld) * sizeof(TYPE));
    if (job->h0)
        for (ptrdiff_t b = 0; b < n; b++)
            for (ptrdiff_t j = 0; j < H; j++)
                h[j * ld + b] = ((const TYPE *)job->h0)[(b0 + b) * H + j];
    double yielded = 0;
    for (ptrdiff_t s = 0; s < T; s++) {
        const ptrdiff_t t = TIME_OF(job, s);
        if (s % POLL_STEPS == 0) {
            if (job->poll && poll_stops(job->poll, s, s + POLL_STEPS))
                return;
            yield_if_due(job->counts, job->granted, &yielded);
        }
        for (ptrdiff_t b = 0; b < n; b++) {
            const TYPE *row = (const TYPE *)(job->x + (b0 + b) * job->x_b + t * job->x_t);
            for (ptrdiff_t i = 0; i < I; i++)
                x[i * ld + b] = row[i];
        }
        for (ptrdiff_t j = 0; j < H; j++) {
            ptrdiff_t v = 0;
            for (; v + 2 * LANES <= ld; v += 2 * LANES)
                FN(narrow_sums_2)(job, j, x + v, h + v, a + v, ld);
            if (v < ld)
                FN(narrow_sums_1)(job, j, x + v, h + v, a + v, ld);
            if (FUSED_GATES(f)) {
                FN(sigmoids)(2 * ld, a);
                FN(new_state)(ld, a, a + ld, a + 2 * ld, a + 3 * ld, h + j * ld, h_new + j * ld);
            } else {
                FN(gates_any)(ld, a, a + ld, a + 2 * ld, a + 3 * ld, h + j * ld, h_new + j * ld,
                              narrow.kept, ld, f);
            }
        }
        if (job->sequences)
            for (ptrdiff_t b = 0; b < n; b++) {
                TYPE *y = (TYPE *)(job->y + (b0 + b) * job->y_b + s * job->y_s);
                for (ptrdiff_t j = 0; j < H; j++)
                    y[j] = h_new[j * ld + b];
            }
        TYPE *old = h;
        h = h_new;
        h_new = old;
    }
    for (ptrdiff_t b = 0; b < n; b++)
        for (ptrdiff_t j = 0; j < H; j++) {
            ((TYPE *)job->state)[(b0 + b) * H + j] = h[j * ld + b];
            if (!job->sequences)
                ((TYPE *)(job->y + (b0 + b) * job->y_b))[j] = h[j * ld + b];
        }
}

/* The kernel `run` (kernels.h): the loop that is faster. */
static void FN(run)(const gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,
                    ptrdiff_t panel1, int team, char *scratch) {
    if (team > 1 || !FN(is_narrow)(job, n)) {
        FN(run_block)(job, b0, n, panel0, panel1, team, scratch);
        return;
    }
    for (ptrdiff_t b = b0; b < b0 + n; b += NARROW_ROWS)
        FN(run_narrow)(job, b, b0 + n - b < NARROW_ROWS ? b0 + n - b : NARROW_ROWS, scratch);
}

/* Returns the bytes that one thread needs for n rows and `panels` panels, in either loop. */
static ptrdiff_t FN(run_scratch)(const gru_job *job, ptrdiff_t n, ptrdiff_t panels) {
    PART part = {.job = job, .n = n, .panel1 = panels};
    NARROW narrow;
    const ptrdiff_t block = FN(carve_part)(&part, NULL);
    const ptrdiff_t rows = FN(carve_narrow)(job, &narrow, NULL);
    return block > rows ? block : rows;
}

#undef NARROW_ROWS
#undef POLL_STEPS
#undef NARROW_SUMS
