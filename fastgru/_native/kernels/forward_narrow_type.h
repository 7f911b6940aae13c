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
    TYPE *x;          /* (I, ld) */
    TYPE *states;     /* (2, H, ld): before and after a step */
    TYPE *a;          /* (4, ld): sums of one unit */
    TYPE *kept;       /* (4, ld): what gates_any keeps */
    uint16_t *halves; /* (I or H, ld): rows of 16 bits, transposed */
} NARROW;

static ptrdiff_t FN(carve_narrow)(const gru_job *job, NARROW *narrow, char *base) {
    size_t size = 0;
    CARVE(narrow->x, job->inputs * NARROW_ROWS);
    CARVE(narrow->states, 2 * job->H * NARROW_ROWS);
    CARVE(narrow->a, 4 * NARROW_ROWS);
    CARVE(narrow->kept, 4 * NARROW_ROWS);
    CARVE(narrow->halves,
          HALF(job) ? (job->inputs > job->H ? job->inputs : job->H) * NARROW_ROWS : 0);
    return (ptrdiff_t)size;
}

/* gather transposes n rows of `count` numbers into (count, ld), in pairs; an odd last row twice: ld
 * is even. scatter transposes back. Rows are `stride` bytes apart. */
#define TRANSPOSE(NAME, NUMBER)                                                                    \
    static inline void FN(gather##NAME)(const char *first, ptrdiff_t stride, ptrdiff_t n,          \
                                        ptrdiff_t count, NUMBER *to, ptrdiff_t ld) {               \
        for (ptrdiff_t b = 0; b < n; b += 2) {                                                     \
            const NUMBER *row = (const NUMBER *)(first + b * stride);                              \
            const NUMBER *next = b + 1 < n ? (const NUMBER *)((const char *)row + stride) : row;   \
            for (ptrdiff_t i = 0; i < count; i++) {                                                \
                to[i * ld + b] = row[i];                                                           \
                to[i * ld + b + 1] = next[i];                                                      \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    static inline void FN(scatter##NAME)(const NUMBER *from, ptrdiff_t ld, ptrdiff_t n,            \
                                         ptrdiff_t count, char *first, ptrdiff_t stride) {         \
        for (ptrdiff_t b = 0; b < n; b++) {                                                        \
            NUMBER *row = (NUMBER *)(first + b * stride);                                          \
            for (ptrdiff_t i = 0; i < count; i++)                                                  \
                row[i] = from[i * ld + b];                                                         \
        }                                                                                          \
    }
TRANSPOSE(, TYPE)
TRANSPOSE(_halves, uint16_t)

/* The same between a job's array and numbers of the kernel. */
static inline void FN(read_rows)(const gru_job *job, const NARROW *narrow, const char *first,
                                 ptrdiff_t stride, ptrdiff_t n, ptrdiff_t count, TYPE *to,
                                 ptrdiff_t ld) {
    if (!HALF(job)) {
        FN(gather)(first, stride, n, count, to, ld);
        return;
    }
    memset(narrow->halves, 0, (size_t)(count * ld) * sizeof(uint16_t)); /* lanes without a row */
    FN(gather_halves)(first, stride, n, count, narrow->halves, ld);
    FN(from_halves)(HALF(job), count * ld, (const char *)narrow->halves, to);
}

static inline void FN(write_rows)(const gru_job *job, const NARROW *narrow, const TYPE *from,
                                  ptrdiff_t ld, ptrdiff_t n, ptrdiff_t count, char *first,
                                  ptrdiff_t stride) {
    if (!HALF(job)) {
        FN(scatter)(from, ld, n, count, first, stride);
        return;
    }
    FN(to_halves)(HALF(job), count * ld, from, (char *)narrow->halves);
    FN(scatter_halves)(narrow->halves, ld, n, count, first, stride);
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
    const ptrdiff_t state = H * ITEM(job); /* bytes of one */
    const gate_functions *f = &job->functions;
    NARROW narrow;
    FN(carve_narrow)(job, &narrow, scratch);
    TYPE *const x = narrow.x, *const a = narrow.a, *h = narrow.states, *h_new = h + H * ld;

    memset(x, 0, (size_t)(I * ld) * sizeof(TYPE)); /* also the lanes that have no row */
    memset(h, 0, (size_t)(2 * H * ld) * sizeof(TYPE));
    if (job->h0)
        FN(read_rows)(job, &narrow, job->h0 + b0 * state, state, n, H, h, ld);
    double yielded = 0;
    for (ptrdiff_t s = 0; s < T; s++) {
        const ptrdiff_t t = TIME_OF(job, s);
        if (s % POLL_STEPS == 0) {
            if (job->poll && poll_stops(job->poll, s, s + POLL_STEPS))
                return;
            yield_if_due(job->counts, job->granted, &yielded);
        }
        FN(read_rows)(job, &narrow, job->x + b0 * job->x_b + t * job->x_t, job->x_b, n, I, x, ld);
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
        if (HALF(job))
            FN(round)(HALF(job), H * ld, h_new);
        if (job->sequences)
            FN(write_rows)(job, &narrow, h_new, ld, n, H, job->y + b0 * job->y_b + s * job->y_s,
                           job->y_b);
        TYPE *old = h;
        h = h_new;
        h_new = old;
    }
    FN(write_rows)(job, &narrow, h, ld, n, H, job->state + b0 * state, state);
    if (!job->sequences)
        FN(write_rows)(job, &narrow, h, ld, n, H, job->y + b0 * job->y_b, job->y_b);
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
#undef TRANSPOSE
