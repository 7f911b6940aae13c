/* The gradients of the weights for one ISA and one TYPE, after the walk back through time; included
 * by kernels_type.h after backward_type.h.
 *
 * f = [x, h] are the factors of a row and step, with h the state before it, and d = [da_h, da_z,
 * da_r, dq_h] is what the walk has left. Over all rows and steps that were taken:
 *
 *   dW = x^T [da_z, da_r, da_h]
 *   dU = h^T [da_z, da_r, dq_h]
 *   db = sums of [da_z, da_r, da_h] and, with reset_after, of [da_z, da_r, dq_h]
 *
 * Where the gates have different factors, there is a copy of them for each gate: of x or h with a
 * dropout mask of its own, and of r * h for gate h of reset_after=False.
 *
 * x and h lie row after row, and so does d in its panels. For each row, a tile takes one vector of
 * three gates of d and multiplies it with R columns of f. Its 3 * R sums stay in registers for
 * PRODUCT_ROWS rows. The threads divide the columns of f among themselves, not the rows. So each
 * sum has one order, gradients do not depend on the number of threads, and each thread packs its
 * own columns and waits for no other.
 */
#define PRODUCT_ROWS 384 /* a panel of d has 96 KB then: every tile reads it, from L2 */
#define ROWS_AT_ONCE 8   /* packed, so that what they write to a tile is contiguous */

/* Tile: R columns of f, (rows, R), with one panel of d, (rows, vectors, LANES), from its first
 * wanted vector on. Without SPLIT all three vectors meet the same columns. */
typedef struct {
    ptrdiff_t rows;
    const TYPE *f[3]; /* by vector */
    const TYPE *d;
    ptrdiff_t d_stride; /* from row to row */
    int add;            /* to what dw has, instead of replacing it */
    ptrdiff_t units;    /* of the panel, LANES or less */
    TYPE *dw[3];        /* where the columns of each vector go; row after row `ld` apart */
    ptrdiff_t ld;
} FACTORS;

#define FACTOR_TILE(NAME, R, SPLIT)                                                                \
    static void FN(NAME)(const FACTORS *o) {                                                       \
        const TYPE *d = o->d, *f[3] = {o->f[0], o->f[1], o->f[2]};                                 \
        VEC sum[R][3];                                                                             \
        UNROLL for (int r = 0; r < R; r++) {                                                       \
            UNROLL for (int j = 0; j < 3; j++) {                                                   \
                sum[r][j] = (VEC){0};                                                              \
                if (o->add) /* in cache when the rows are done */                                  \
                    __builtin_prefetch(o->dw[j] + r * o->ld, 1);                                   \
            }                                                                                      \
        }                                                                                          \
        for (ptrdiff_t k = 0; k < o->rows; k++, d += o->d_stride) {                                \
            VEC v[3];                                                                              \
            UNROLL for (int j = 0; j < 3; j++) v[j] = CONST_VECTOR(d + j * LANES);                 \
            UNROLL for (int r = 0; r < R; r++) {                                                   \
                UNROLL for (int j = 0; j < 3; j++) {                                               \
                    sum[r][j] += v[j] * f[SPLIT ? j : 0][k * R + r];                               \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int r = 0; r < R; r++) {                                                       \
            UNROLL for (int j = 0; j < 3; j++) {                                                   \
                FN(put)(o->dw[j] + r * o->ld, sum[r][j], o->units, o->add);                        \
            }                                                                                      \
        }                                                                                          \
    }

static inline void FN(put)(TYPE *to, VEC values, ptrdiff_t n, int add) {
    TYPE sums[LANES];
    if (n == LANES) {
        VECTOR(to) = add ? CONST_VECTOR(to) + values : values;
        return;
    }
    VECTOR(sums) = values;
    for (ptrdiff_t j = 0; j < n; j++)
        to[j] = add ? to[j] + sums[j] : sums[j];
}

typedef void (*FACTOR_FUNCTION)(const FACTORS *);
#define FACTOR_TILES(S, SPLIT)                                                                     \
    FACTOR_TILE(factors_1##S, 1, SPLIT)                                                            \
    FACTOR_TILE(factors_2##S, 2, SPLIT)                                                            \
    FACTOR_TILE(factors_3##S, 3, SPLIT)                                                            \
    FACTOR_TILE(factors_4##S, 4, SPLIT)                                                            \
    WIDE_FACTOR_TILES(S, SPLIT)                                                                    \
    static const FACTOR_FUNCTION FN(factor_tiles##S)[MAX_ROWS] = {                                 \
        FN(factors_1##S), FN(factors_2##S), FN(factors_3##S),                                      \
        FN(factors_4##S) WIDE_FACTOR_TILE_NAMES(S)};
#if MAX_ROWS == 8
#    define WIDE_FACTOR_TILES(S, SPLIT)                                                            \
        FACTOR_TILE(factors_5##S, 5, SPLIT)                                                        \
        FACTOR_TILE(factors_6##S, 6, SPLIT)                                                        \
        FACTOR_TILE(factors_7##S, 7, SPLIT)                                                        \
        FACTOR_TILE(factors_8##S, 8, SPLIT)
#    define WIDE_FACTOR_TILE_NAMES(S)                                                              \
        , FN(factors_5##S), FN(factors_6##S), FN(factors_7##S), FN(factors_8##S)
#else
#    define WIDE_FACTOR_TILES(S, SPLIT)
#    define WIDE_FACTOR_TILE_NAMES(S)
#endif
FACTOR_TILES(, 0)
FACTOR_TILES(s, 1)

/* A thread's columns of x, or those of h, which are divided into tiles. */
typedef struct {
    ptrdiff_t first, columns;
    ptrdiff_t tiles;   /* of MAX_ROWS columns or fewer */
    ptrdiff_t all;     /* columns of all threads */
    ptrdiff_t copies;  /* 1; 3: of each gate z, r, h; 2: of z and r, and of h */
    TYPE *packed;      /* (copies, columns * PRODUCT_ROWS): of each tile (PRODUCT_ROWS, width) */
    ptrdiff_t vector;  /* of d, the first that it multiplies */
    ptrdiff_t gate[3]; /* of this vector and the next two */
    TYPE *dw;          /* the first column's row */
} GROUP;

static ptrdiff_t FN(copies)(const gru_back_job *job, int of_h) {
    if (of_h)
        return job->recurrent_dropout ? 3 : job->reset_after ? 1 : 2;
    return job->dropout_gates == 3 ? 3 : 1;
}

/* Returns the bytes of job->factors, and carves them unless base is NULL: all threads pack their
 * columns of x there, and those of h. */
static ptrdiff_t FN(carve_factors)(const gru_back_job *job, TYPE *packed[2], char *base) {
    size_t size = 0;
    CARVE(packed[0], FN(copies)(job, 0) * job->inputs * PRODUCT_ROWS);
    CARVE(packed[1], FN(copies)(job, 1) * job->H * PRODUCT_ROWS);
    return (ptrdiff_t)size;
}

static ptrdiff_t FN(product_scratch)(const gru_back_job *job) {
    TYPE *packed[2];
    return FN(carve_factors)(job, packed, NULL);
}

static void FN(make_groups)(const gru_back_job *job, int rank, int team, GROUP *groups) {
    TYPE *packed[2], *dw = (TYPE *)job->dw;
    FN(carve_factors)(job, packed, job->factors);
    for (int of_h = 0; of_h < 2; of_h++) {
        GROUP *group = &groups[of_h];
        const ptrdiff_t all = of_h ? job->H : job->inputs;
        *group = (GROUP){.all = all, .copies = FN(copies)(job, of_h), .gate = {2, 0, 1}};
        if (of_h && job->reset_after) {
            group->vector = 1;
            group->gate[0] = 0, group->gate[1] = 1, group->gate[2] = 2;
        }
        group->first = all * rank / team;
        group->columns = all * (rank + 1) / team - group->first;
        group->tiles = (group->columns + MAX_ROWS - 1) / MAX_ROWS;
        group->packed = packed[of_h] + group->copies * group->first * PRODUCT_ROWS;
        group->dw = dw + group->first * 3 * job->H;
        dw += (all + (job->reset_after ? 2 : 1)) * 3 * job->H;
    }
}

/* The first column of a tile, counted from the group's. All tiles have about the same width. */
static inline ptrdiff_t FN(tile_column)(const GROUP *group, ptrdiff_t tile) {
    const ptrdiff_t width = group->columns / group->tiles, wider = group->columns % group->tiles;
    return tile * width + (tile < wider ? tile : wider);
}

/* Packs n rows of one copy into its tiles, from row `row` of these on: values[i] * masks[i]. masks
 * NULL: no masks. values[i] NULL: zeros. */
static void FN(pack_factors)(const GROUP *group, TYPE *packed, ptrdiff_t row, ptrdiff_t n,
                             const TYPE *const *values, const TYPE *const *masks) {
    for (ptrdiff_t tile = 0; tile < group->tiles; tile++) {
        const ptrdiff_t column = FN(tile_column)(group, tile), first = group->first + column;
        const ptrdiff_t width = FN(tile_column)(group, tile + 1) - column;
        TYPE *to = packed + column * PRODUCT_ROWS + row * width;
        for (ptrdiff_t i = 0; i < n; i++, to += width) {
            if (!values[i])
                memset(to, 0, (size_t)width * sizeof(TYPE));
            else if (masks)
                for (ptrdiff_t j = 0; j < width; j++)
                    to[j] = values[i][first + j] * masks[i][first + j];
            else if (width == MAX_ROWS) /* a copy of a known length needs no call of memcpy */
                memcpy(to, values[i] + first, MAX_ROWS * sizeof(TYPE));
            else
                memcpy(to, values[i] + first, (size_t)width * sizeof(TYPE));
        }
    }
}

/* Packs the factors of rows first..first+rows of d. */
static void FN(pack_rows)(const gru_back_job *job, const GROUP *groups, ptrdiff_t first,
                          ptrdiff_t rows) {
    const ptrdiff_t B = job->B, T = job->T;
    const TYPE *values[3][ROWS_AT_ONCE], *masks[ROWS_AT_ONCE]; /* values: x, h, r * h */
    ptrdiff_t b[ROWS_AT_ONCE];
    for (ptrdiff_t row = 0, n; row < rows; row += n) {
        n = rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE;
        for (ptrdiff_t i = 0; i < n; i++) {
            const ptrdiff_t kept = first + row + i;
            const ptrdiff_t s = kept_step(B, T, job->taken ? job->taken[kept] : kept, &b[i]);
            const ptrdiff_t t = TIME_OF(job, s);
            values[0][i] = (const TYPE *)(job->x + b[i] * job->x_b + t * job->x_t);
            values[1][i] = FN(state_before)(job, b[i], s, t);
            values[2][i] = (const TYPE *)job->reset_state + kept * job->H;
        }
        for (int of_h = 0; of_h < 2; of_h++) {
            const GROUP *group = &groups[of_h];
            const TYPE *dropout = (const TYPE *)(of_h ? job->recurrent_dropout : job->dropout);
            for (ptrdiff_t copy = 0; copy < group->copies; copy++) {
                const int reset = of_h && !job->reset_after && copy == group->copies - 1;
                if (dropout && !reset)
                    for (ptrdiff_t i = 0; i < n; i++)
                        masks[i] = dropout + (copy * B + b[i]) * group->all;
                FN(pack_factors)(group, group->packed + copy * group->columns * PRODUCT_ROWS, row,
                                 n, values[reset ? 2 : of_h], dropout && !reset ? masks : NULL);
            }
        }
    }
}

/* Adds these rows to db of the panel that begins at unit u. */
static void FN(add_biases)(const gru_back_job *job, const FACTORS *o, ptrdiff_t u) {
    static const int gate[4] = {2, 0, 1, 2};
    const ptrdiff_t vectors = GATE_VECTORS(job), H = job->H;
    VEC sum[4] = {{0}, {0}, {0}, {0}};
    const TYPE *d = o->d;
    for (ptrdiff_t k = 0; k < o->rows; k++, d += o->d_stride)
        for (ptrdiff_t j = 0; j < vectors; j++)
            sum[j] += CONST_VECTOR(d + j * LANES);
    for (ptrdiff_t j = 0; j < vectors; j++) {
        TYPE *db = (TYPE *)job->dw + job->inputs * o->ld + gate[j] * H + u;
        if (j < 3)
            FN(put)(db, sum[j], o->units, o->add);
        if (j > 0 && job->reset_after)
            FN(put)(db + o->ld, sum[j], o->units, o->add);
    }
}

/* Multiplies all tiles of a group with the panel of d that begins at unit u. */
static void FN(add_products)(const GROUP *group, const FACTORS *panel, ptrdiff_t H, ptrdiff_t u) {
    FACTORS o = *panel;
    o.d += group->vector * LANES;
    for (ptrdiff_t tile = 0; tile < group->tiles; tile++) {
        const ptrdiff_t column = FN(tile_column)(group, tile);
        const ptrdiff_t width = FN(tile_column)(group, tile + 1) - column;
        for (int j = 0; j < 3; j++) {
            const ptrdiff_t gate = group->gate[j];
            const ptrdiff_t copy = group->copies == 3 ? gate : gate == 2 ? group->copies - 1 : 0;
            o.f[j] = group->packed + (copy * group->columns + column) * PRODUCT_ROWS;
            o.dw[j] = group->dw + column * o.ld + gate * H + u;
        }
        (group->copies > 1 ? FN(factor_tiless) : FN(factor_tiles))[width - 1](&o);
    }
}

/* The rows of dW and dU that belong to a thread's columns, and its panels of db. */
static void FN(run_products)(const gru_back_job *job, int rank, int team) {
    const ptrdiff_t H = job->H, panels = (H + LANES - 1) / LANES;
    GROUP groups[2];
    double yielded = 0;
    FN(make_groups)(job, rank, team, groups);
    for (ptrdiff_t first = 0; first < job->rows; first += PRODUCT_ROWS) {
        const ptrdiff_t n = job->rows - first < PRODUCT_ROWS ? job->rows - first : PRODUCT_ROWS;
        FACTORS o = {
            .rows = n, .d_stride = GATE_VECTORS(job) * LANES, .add = first > 0, .ld = 3 * H};
        FN(pack_rows)(job, groups, first, n);
        for (ptrdiff_t panel = 0; panel < panels; panel++) {
            const ptrdiff_t u = panel * LANES;
            if (job->poll && poll_stops(job->poll, first, first))
                return;
            yield_if_due(job->counts, job->granted, &yielded);
            o.units = H - u < LANES ? H - u : LANES;
            o.d = (const TYPE *)job->gates + panel * GATE_STRIDE(job) + first * o.d_stride;
            if (panel % team == rank)
                FN(add_biases)(job, &o, u);
            FN(add_products)(&groups[0], &o, H, u);
            FN(add_products)(&groups[1], &o, H, u);
        }
    }
}

#undef TILE
#undef TILES
#undef WIDE_TILES
#undef TILE_TABLE
#undef IN_PANELS
#undef MAX_ROWS
#undef PARTIAL
#undef TILE_UNITS
#undef WHOLE
#undef VECTOR
#undef CONST_VECTOR
#undef EACH_PIECE
#undef FUSED_GATES
#undef MAX_PANELS
#undef LANES
#undef GATE_VECTORS
#undef GATE_STRIDE
#undef PRODUCT_ROWS
#undef ROWS_AT_ONCE
#undef FACTOR_TILE
#undef FACTOR_TILES
#undef WIDE_FACTOR_TILES
#undef WIDE_FACTOR_TILE_NAMES
