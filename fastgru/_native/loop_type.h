/* The fused loop for one ISA and one TYPE; included by gates_type.h, whose macros it uses.
 *
 * A matrix is packed in panels of LANES units, a panel row after row: [panel][k][gate][lane]. A tile
 * multiplies R rows with P panels and keeps all R * P * N sums in registers; its gates are made
 * right after, while the sums are in L1. Every sum runs over k in one order, whatever the tile:
 * so a row's result depends neither on the other rows nor on how the work is cut (SPEC 5.12).
 *
 * Rows come by pointer: a masked or finished row is simply not listed, and h(t-1) is read where
 * step t-1 wrote it, in the output.
 */
typedef TYPE FN(vector) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(TYPE))));
#define LANES ((ptrdiff_t)(VECTOR_BYTES / sizeof(TYPE)))

/* out[r][offset...] = rows[r] . panels, r < R: P panels of N vectors, `stride` apart.
 * SPLIT: gate g has rows of its own, rows[g * ld + r]. */
#define TILE(NAME, R, P, N, SPLIT)                                                                 \
    static void FN(NAME)(ptrdiff_t K, const TYPE *const *rows, ptrdiff_t ld, const TYPE *w,        \
                         ptrdiff_t stride, TYPE *const *out, ptrdiff_t offset) {                   \
        enum { G = SPLIT ? N : 1, A = N * P };                                                     \
        FN(vector) sum[R][A];                                                                      \
        const TYPE *x[R][G];                                                                       \
        UNROLL for (int r = 0; r < R; r++) {                                                       \
            UNROLL for (int g = 0; g < G; g++) x[r][g] = rows[g * ld + r];                         \
            UNROLL for (int j = 0; j < A; j++) sum[r][j] = (FN(vector)){0};                        \
        }                                                                                          \
        for (ptrdiff_t k = 0; k < K; k++, w += N * LANES) {                                        \
            FN(vector) v[A];                                                                       \
            UNROLL for (int j = 0; j < A; j++) v[j] =                                              \
                *(const FN(vector) *)(w + (j / N) * stride + (j % N) * LANES);                     \
            UNROLL for (int r = 0; r < R; r++) {                                                   \
                UNROLL for (int j = 0; j < A; j++) sum[r][j] += v[j] * x[r][SPLIT ? j % N : 0][k]; \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int r = 0; r < R; r++) {                                                       \
            UNROLL for (int j = 0; j < A; j++) *(FN(vector) *)(out[r] + offset + j * LANES) =      \
                sum[r][j];                                                                         \
        }                                                                                          \
    }
#define TILES(N, S, SPLIT)                                                                         \
    TILE(tile_1_4_##N##S, 1, 4, N, SPLIT)                                                          \
    TILE(tile_1_1_##N##S, 1, 1, N, SPLIT)                                                          \
    TILE(tile_2_1_##N##S, 2, 1, N, SPLIT)                                                          \
    TILE(tile_3_1_##N##S, 3, 1, N, SPLIT)                                                          \
    TILE(tile_4_1_##N##S, 4, 1, N, SPLIT)                                                          \
    WIDE_TILES(N, S, SPLIT)

typedef void (*FN(tile))(ptrdiff_t, const TYPE *const *, ptrdiff_t, const TYPE *, ptrdiff_t,
                         TYPE *const *, ptrdiff_t);
/* By rows: the tile of one panel, the tile of several, and of how many. */
typedef struct {
    FN(tile) one, several;
    int panels;
} FN(tiles);

#if VECTOR_REGISTERS >= 32
#    define MAX_ROWS 8
#    define WIDE_TILES(N, S, SPLIT)                                                                \
        TILE(tile_2_4_##N##S, 2, 4, N, SPLIT)                                                      \
        TILE(tile_3_2_##N##S, 3, 2, N, SPLIT)                                                      \
        TILE(tile_4_2_##N##S, 4, 2, N, SPLIT)                                                      \
        TILE(tile_5_1_##N##S, 5, 1, N, SPLIT)                                                      \
        TILE(tile_6_1_##N##S, 6, 1, N, SPLIT)                                                      \
        TILE(tile_7_1_##N##S, 7, 1, N, SPLIT)                                                      \
        TILE(tile_8_1_##N##S, 8, 1, N, SPLIT)
#    define TILE_TABLE(S)                                                                          \
        {{FN(tile_1_1_##S), FN(tile_1_4_##S), 4}, {FN(tile_2_1_##S), FN(tile_2_4_##S), 4},         \
         {FN(tile_3_1_##S), FN(tile_3_2_##S), 2}, {FN(tile_4_1_##S), FN(tile_4_2_##S), 2},         \
         {FN(tile_5_1_##S), FN(tile_5_1_##S), 1}, {FN(tile_6_1_##S), FN(tile_6_1_##S), 1},         \
         {FN(tile_7_1_##S), FN(tile_7_1_##S), 1}, {FN(tile_8_1_##S), FN(tile_8_1_##S), 1}}
#else
#    define MAX_ROWS 4
#    define WIDE_TILES(N, S, SPLIT) TILE(tile_2_2_##N##S, 2, 2, N, SPLIT)
#    define TILE_TABLE(S)                                                                          \
        {{FN(tile_1_1_##S), FN(tile_1_4_##S), 4}, {FN(tile_2_1_##S), FN(tile_2_2_##S), 2},         \
         {FN(tile_3_1_##S), FN(tile_3_1_##S), 1}, {FN(tile_4_1_##S), FN(tile_4_1_##S), 1}}
#endif

TILES(3, , 0)
TILES(3, s, 1)
TILES(2, , 0)
TILES(2, s, 1)
TILES(1, , 0)

static const FN(tiles) FN(tiles_3)[MAX_ROWS] = TILE_TABLE(3);
static const FN(tiles) FN(tiles_3s)[MAX_ROWS] = TILE_TABLE(3s);
static const FN(tiles) FN(tiles_2)[MAX_ROWS] = TILE_TABLE(2);
static const FN(tiles) FN(tiles_2s)[MAX_ROWS] = TILE_TABLE(2s);
static const FN(tiles) FN(tiles_1)[MAX_ROWS] = TILE_TABLE(1);

/* What is done with the sums of R rows and P panels from `panel` on: sums[r] holds them. */
typedef struct {
    const gru_job *job;
    ptrdiff_t panel0;       /* where the thread's panels begin: p and z rows begin there */
    const TYPE *const *p;   /* x.W of each row */
    const TYPE *const *h;   /* state before the step */
    const TYPE *const *k;   /* the same with recurrent dropout of gate h */
    TYPE *const *h_new;     /* state after the step */
    TYPE *const *rk;        /* reset_after=False: r * k */
    TYPE *const *z;         /* reset_after=False */
    TYPE *const *gates;     /* where to keep them; NULL: nowhere */
} FN(step);

typedef void (*FN(epilogue))(const void *, ptrdiff_t row, ptrdiff_t panel, const TYPE *sums);

/* n rows times the panels panel0..panel1, which lie `stride` apart. Without an epilogue the sums go
 * to out. */
static void FN(multiply_panels)(const FN(tiles) *table, int vectors, ptrdiff_t K, ptrdiff_t stride,
                                ptrdiff_t n, const TYPE *const *rows, ptrdiff_t ld,
                                const TYPE *matrix, ptrdiff_t panel0, ptrdiff_t panel1,
                                TYPE *const *out, FN(epilogue) epilogue, const void *step) {
    const ptrdiff_t width = vectors * LANES;
    const ptrdiff_t tiles = (n + MAX_ROWS - 1) / MAX_ROWS;
    TYPE sums[MAX_ROWS * 4 * 3 * LANES] __attribute__((aligned(64)));
    TYPE *buffers[MAX_ROWS];
    ptrdiff_t panel = panel0;
    while (panel < panel1) {
        ptrdiff_t panels = 1, row = 0;
        if (tiles == 1 && panel + table[n - 1].panels <= panel1)
            panels = table[n - 1].panels;
        for (ptrdiff_t tile = 0; tile < tiles; tile++) {
            const ptrdiff_t R = (n - row + tiles - tile - 1) / (tiles - tile);
            const FN(tile) run = panels > 1 ? table[R - 1].several : table[R - 1].one;
            const TYPE *w = matrix + panel * stride;
            if (epilogue == NULL) {
                run(K, rows + row, ld, w, stride, out + row, (panel - panel0) * width);
            } else {
                for (ptrdiff_t r = 0; r < R; r++)
                    buffers[r] = sums + r * panels * width;
                run(K, rows + row, ld, w, stride, buffers, 0);
                for (ptrdiff_t r = 0; r < R; r++)
                    for (ptrdiff_t j = 0; j < panels; j++)
                        epilogue(step, row + r, panel + j, buffers[r] + j * width);
            }
            row += R;
        }
        panel += panels;
    }
}

/* Copies of what a last, partial panel may not read or write beyond. */
#define PARTIAL(job, panel) ((job)->H - (panel) * LANES < LANES)
#define REST(job, panel) ((size_t)((job)->H - (panel) * LANES) * sizeof(TYPE))

/* LANES units of reset_after=True, kept for backward: z, r, n, q_h go H apart, `bytes` of each. */
static void FN(after_keeping)(const gru_job *job, const TYPE *p, const TYPE *q, const TYPE *b,
                              const TYPE *h, TYPE *h_new, TYPE *gates, size_t bytes) {
    const gate_functions *f = &job->functions;
    TYPE zr[2 * LANES], n[LANES], qh[LANES], keep[4 * LANES];
    for (ptrdiff_t j = 0; j < 2 * LANES; j++)
        keep[j] = zr[j] = p[j] + q[j] + b[j];
    FN(kernels).activations[f->recurrent_activation](2 * LANES, f->recurrent_params, zr);
    for (ptrdiff_t j = 0; j < LANES; j++) {
        keep[3 * LANES + j] = qh[j] = q[2 * LANES + j] + b[3 * LANES + j];
        keep[2 * LANES + j] = n[j] = p[2 * LANES + j] + b[2 * LANES + j] + zr[LANES + j] * qh[j];
    }
    FN(kernels).activations[f->activation](LANES, f->params, n);
    if (KEEPS_VALUE(f->recurrent_activation))
        memcpy(keep, zr, sizeof zr);
    if (KEEPS_VALUE(f->activation))
        memcpy(keep + 2 * LANES, n, sizeof n);
    for (ptrdiff_t j = 0; j < LANES; j++)
        h_new[j] = zr[j] * h[j] + (C(1.0) - zr[j]) * n[j];
    for (int g = 0; g < 4; g++)
        memcpy(gates + g * job->H, keep + g * LANES, bytes);
}

static void FN(epilogue_after)(const void *context, ptrdiff_t row, ptrdiff_t panel, const TYPE *q) {
    const FN(step) *step = context;
    const gru_job *job = step->job;
    const TYPE *p = step->p[row] + (panel - step->panel0) * 3 * LANES;
    const TYPE *b = (const TYPE *)job->bias + panel * 4 * LANES;
    const TYPE *h = step->h[row] + panel * LANES;
    TYPE *h_new = step->h_new[row] + panel * LANES;
    TYPE work[3 * LANES], h_copy[LANES], new_copy[LANES];
    const int partial = PARTIAL(job, panel);
    if (partial) {
        memset(h_copy, 0, sizeof h_copy);
        memcpy(h_copy, h, REST(job, panel));
        h = h_copy;
        h_new = new_copy;
    }
    if (step->gates)
        FN(after_keeping)(job, p, q, b, h, h_new, step->gates[row] + panel * LANES,
                          partial ? REST(job, panel) : LANES * sizeof(TYPE));
    else if (job->functions.activation == ACT_TANH &&
             job->functions.recurrent_activation == ACT_SIGMOID)
        FN(after_fused)(LANES, LANES, p, q, b, h, h_new);
    else
        FN(after)(LANES, LANES, p, q, b, h, h_new, work, &job->functions);
    if (partial)
        memcpy(step->h_new[row] + panel * LANES, new_copy, REST(job, panel));
}

static void FN(epilogue_zr)(const void *context, ptrdiff_t row, ptrdiff_t panel, const TYPE *q) {
    const FN(step) *step = context;
    const gru_job *job = step->job;
    const TYPE *p = step->p[row] + (panel - step->panel0) * 3 * LANES;
    const TYPE *b = (const TYPE *)job->bias + panel * 4 * LANES;
    const TYPE *k = step->k[row] + panel * LANES;
    TYPE work[3 * LANES], k_copy[LANES], rk[LANES];
    const size_t bytes = PARTIAL(job, panel) ? REST(job, panel) : sizeof rk;
    if (PARTIAL(job, panel)) {
        memset(k_copy, 0, sizeof k_copy);
        memcpy(k_copy, k, bytes);
        k = k_copy;
    }
    FN(before_zr)(LANES, LANES, p, q, b, k, step->z[row] + (panel - step->panel0) * LANES, rk, work,
                  &job->functions);
    memcpy(step->rk[row] + panel * LANES, rk, bytes);
    if (step->gates) {
        TYPE zr[2 * LANES], *gates = step->gates[row] + panel * LANES;
        for (ptrdiff_t j = 0; j < 2 * LANES; j++)
            zr[j] = p[j] + q[j] + b[j];
        if (KEEPS_VALUE(job->functions.recurrent_activation))
            FN(kernels).activations[job->functions.recurrent_activation](
                2 * LANES, job->functions.recurrent_params, zr);
        memcpy(gates, zr, bytes);
        memcpy(gates + job->H, zr + LANES, bytes);
    }
}

static void FN(epilogue_h)(const void *context, ptrdiff_t row, ptrdiff_t panel, const TYPE *q) {
    const FN(step) *step = context;
    const gru_job *job = step->job;
    const TYPE *p = step->p[row] + (panel - step->panel0) * 3 * LANES;
    const TYPE *b = (const TYPE *)job->bias + panel * 4 * LANES;
    const TYPE *h = step->h[row] + panel * LANES;
    TYPE c[LANES], h_copy[LANES], h_new[LANES];
    const size_t bytes = PARTIAL(job, panel) ? REST(job, panel) : sizeof h_new;
    if (PARTIAL(job, panel)) {
        memset(h_copy, 0, sizeof h_copy);
        memcpy(h_copy, h, bytes);
        h = h_copy;
    }
    for (ptrdiff_t j = 0; j < LANES; j++)
        c[j] = p[2 * LANES + j] + b[2 * LANES + j] + q[j];
    if (step->gates) {
        TYPE n[LANES], *gates = step->gates[row] + 2 * job->H + panel * LANES;
        memcpy(n, c, sizeof n);
        if (KEEPS_VALUE(job->functions.activation))
            FN(kernels).activations[job->functions.activation](LANES, job->functions.params, n);
        memcpy(gates, n, bytes);
    }
    FN(blend)(LANES, step->z[row] + (panel - step->panel0) * LANES, c, h, h_new, &job->functions);
    memcpy(step->h_new[row] + panel * LANES, h_new, bytes);
}

static inline int FN(valid)(const gru_job *job, ptrdiff_t b, ptrdiff_t t) {
    if (job->lengths)
        return t < job->lengths[b];
    return !job->steps || job->steps[b * job->T + t];
}

static inline int FN(resets)(const gru_job *job, ptrdiff_t b, ptrdiff_t t) {
    return job->resets && job->resets[b * job->T + t];
}

/* x.W of the valid rows of steps s0..s1 into p, in the order in which they are processed. */
static void FN(project)(const gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t s0, ptrdiff_t s1,
                        ptrdiff_t panel0, ptrdiff_t panel1, const TYPE **rows, TYPE **out, TYPE *p,
                        TYPE *dropped) {
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
    if (count)
        FN(multiply_panels)(gates == 3 ? FN(tiles_3s) : FN(tiles_3), 3, I, I * 3 * LANES, count, rows, ld,
                            (const TYPE *)job->w, panel0, panel1, out, NULL, NULL);
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
           (ptrdiff_t)sizeof(void *) * ((gates + 1) * job->chunk_rows + 11 * n) + 64 * 20;
}

#define CARVE(type, name, count)                                                                   \
    type *name = (type *)scratch;                                                                  \
    scratch += ((size_t)(count) * sizeof(type) + 63) / 64 * 64

/* All steps of rows b0..b0+n, units of the panels panel0..panel1; with team > 1 the other threads
 * make the other panels of the same rows and meet at the barrier. scratch: 64-byte aligned. */
static void FN(run_block)(const gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,
                          ptrdiff_t panel1, int team, char *scratch) {
    const ptrdiff_t T = job->T, I = job->inputs, H = job->H, panels = panel1 - panel0;
    const ptrdiff_t u0 = panel0 * LANES < H ? panel0 * LANES : H;
    const ptrdiff_t u1 = panel1 * LANES < H ? panel1 * LANES : H;
    const size_t own = (size_t)(u1 - u0) * sizeof(TYPE); /* bytes of this thread's units */
    const ptrdiff_t gates = job->dropout ? job->dropout_gates : 1, row = panels * 3 * LANES;
    const ptrdiff_t recurrent = job->recurrent_dropout ? 3 : 1;
    const int masked = job->steps || job->lengths;
    CARVE(TYPE, zeros, H);
    CARVE(TYPE, p, job->chunk_rows * row);
    CARVE(TYPE, dropped_x, job->dropout ? gates * job->chunk_rows * I : 0);
    CARVE(TYPE, dropped_h, job->recurrent_dropout ? 3 * n * H : 0);
    CARVE(TYPE, z, job->reset_after ? 0 : n * panels * LANES);
    CARVE(const TYPE *, x_rows, gates *job->chunk_rows);
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
    const FN(step) step = {job, panel0, (const TYPE *const *)p_rows, h, k_rows + (recurrent - 1) * n,
                           h_new, rk_rows, z_rows, job->gates ? gate_rows : NULL};
    FN(step) now = step;

    memset(zeros, 0, (size_t)H * sizeof(TYPE));
    for (ptrdiff_t k = 0; k < n; k++) {
        const ptrdiff_t b = job->rows ? job->rows[b0 + k] : b0 + k;
        current[k] = job->h0 ? (const TYPE *)job->h0 + b * H : zeros;
        previous[k] = NULL;
    }
    const ptrdiff_t chunk = job->chunk_rows / n > 0 ? job->chunk_rows / n : 1;
    for (ptrdiff_t s0 = 0; s0 < T; s0 += chunk) {
        const ptrdiff_t s1 = s0 + chunk < T ? s0 + chunk : T;
        ptrdiff_t used = 0;
        FN(project)(job, b0, n, s0, s1, panel0, panel1, x_rows, p_rows, p, dropped_x);
        for (ptrdiff_t s = s0; s < s1; s++) {
            const ptrdiff_t t = job->reverse ? T - 1 - s : s;
            ptrdiff_t active = 0;
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
                    const ptrdiff_t slot = job->slots ? job->slots[s * job->B + b] : s * job->B + b;
                    gate_rows[active] = (TYPE *)job->gates + slot * 4 * H;
                }
                h[active] = current[k];
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
            now.p = (const TYPE *const *)p_rows + used;
            if (job->reset_after) {
                if (active)
                    FN(multiply_panels)(recurrent == 3 ? FN(tiles_3s) : FN(tiles_3), 3, H, H * 3 * LANES, active,
                                        k_rows, n, (const TYPE *)job->u, panel0, panel1, NULL,
                                        FN(epilogue_after), &now);
            } else {
                for (ptrdiff_t a = 0; a < active; a++) {
                    z_rows[a] = z + a * panels * LANES;
                    rk_rows[a] = (TYPE *)job->reset_state + (b0 + index[a]) * H;
                }
                if (active)
                    FN(multiply_panels)(recurrent == 3 ? FN(tiles_2s) : FN(tiles_2), 2, H, H * 2 * LANES, active,
                                        k_rows, n, (const TYPE *)job->u, panel0, panel1, NULL,
                                        FN(epilogue_zr), &now);
                barrier_wait(job->barrier, team);
                if (active)
                    FN(multiply_panels)(FN(tiles_1), 1, H, H * LANES, active, (const TYPE *const *)rk_rows, 0,
                                        (const TYPE *)job->uh, panel0, panel1, NULL,
                                        FN(epilogue_h), &now);
            }
            used += active;

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
