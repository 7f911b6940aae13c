/* Products of rows with a packed matrix, for one ISA and one TYPE; included by forward_type.h.
 *
 * A matrix is packed in panels of LANES units: [panel][k][gate][lane]. A tile multiplies R rows
 * with P panels of N vectors (gates, or two vectors of one), and keeps all R * P * N sums in
 * registers. Each sum runs over k in one order, whatever the tile is. So the result of a row
 * depends neither on the other rows nor on the partition of the work (docs/semantics.md 12).
 */
typedef TYPE VEC __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(TYPE))));
#define LANES ((ptrdiff_t)(VECTOR_BYTES / sizeof(TYPE)))
#define VECTOR(address) (*(VEC *)(address))
#define CONST_VECTOR(address) (*(const VEC *)(address))

/* What a tile multiplies. */
typedef struct {
    ptrdiff_t K;             /* length of a row; 0: the sums are what they start from */
    const TYPE *const *rows; /* row r; with SPLIT vector g has its own, rows[g * ld + r] */
    ptrdiff_t ld;
    const TYPE *w;    /* the first panel */
    ptrdiff_t stride; /* from panel to panel of w */
    int descending;   /* the last panel is the first to be multiplied */
    /* What the sums start from: vector j of panel p is at start[r] + start_offset + p *
     * start_stride + j * LANES. start NULL: zeros. If last is not NULL, the last vector of panel p
     * is at last + p * last_stride instead, for all rows. */
    const TYPE *const *start;
    ptrdiff_t start_offset, start_stride;
    const TYPE *last;
    ptrdiff_t last_stride;
    TYPE *const *out; /* where the sums go: (P, N, LANES) of each row, from `offset` on */
    ptrdiff_t offset;
} OPERANDS;

/* Where vector j of a tile lies in panels that are `stride` apart. */
#define IN_PANELS(j, N, stride) ((j) / (N) * (stride) + (j) % (N) * LANES)

#define TILE(NAME, R, P, N, SPLIT)                                                                 \
    static void FN(NAME)(const OPERANDS *o) {                                                      \
        enum { G = SPLIT ? N : 1, A = N * P };                                                     \
        const ptrdiff_t stride = o->stride, start_stride = o->start_stride;                        \
        const TYPE *w = o->w;                                                                      \
        VEC sum[R][A];                                                                             \
        const TYPE *x[R][G];                                                                       \
        UNROLL for (int r = 0; r < R; r++) {                                                       \
            UNROLL for (int g = 0; g < G; g++) x[r][g] = o->rows[g * o->ld + r];                   \
            UNROLL for (int j = 0; j < A; j++) sum[r][j] = (VEC){0};                               \
            if (o->start) {                                                                        \
                const TYPE *from = o->start[r] + o->start_offset;                                  \
                UNROLL for (int j = 0; j < A; j++) {                                               \
                    sum[r][j] = CONST_VECTOR(from + IN_PANELS(j, N, start_stride));                \
                }                                                                                  \
            }                                                                                      \
            if (o->last) {                                                                         \
                UNROLL for (int p = 0; p < P; p++) {                                               \
                    sum[r][p * N + N - 1] = CONST_VECTOR(o->last + p * o->last_stride);            \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        for (ptrdiff_t k = 0; k < o->K; k++, w += N * LANES) {                                     \
            VEC v[A];                                                                              \
            UNROLL for (int j = 0; j < A; j++) v[j] = CONST_VECTOR(w + IN_PANELS(j, N, stride));   \
            UNROLL for (int r = 0; r < R; r++) {                                                   \
                UNROLL for (int j = 0; j < A; j++) sum[r][j] += v[j] * x[r][SPLIT ? j % N : 0][k]; \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int r = 0; r < R; r++) {                                                       \
            TYPE *out = o->out[r] + o->offset;                                                     \
            UNROLL for (int j = 0; j < A; j++) VECTOR(out + j * LANES) = sum[r][j];                \
        }                                                                                          \
    }

/* All tiles of N vectors; S is "s" in the names of those with SPLIT. */
#define TILES(N, S, SPLIT)                                                                         \
    TILE(tile_1_1_##N##S, 1, 1, N, SPLIT)                                                          \
    TILE(tile_1_2_##N##S, 1, 2, N, SPLIT)                                                          \
    TILE(tile_1_3_##N##S, 1, 3, N, SPLIT)                                                          \
    TILE(tile_1_4_##N##S, 1, 4, N, SPLIT)                                                          \
    TILE(tile_2_1_##N##S, 2, 1, N, SPLIT)                                                          \
    TILE(tile_3_1_##N##S, 3, 1, N, SPLIT)                                                          \
    TILE(tile_4_1_##N##S, 4, 1, N, SPLIT)                                                          \
    WIDE_TILES(N, S, SPLIT)

typedef void (*TILE_FUNCTION)(const OPERANDS *);
/* The tiles of R rows, by the number of panels from 1 on. NULL: more sums than registers. R * P is
 * at most MAX_ROWS. */
#define MAX_PANELS 4
typedef TILE_FUNCTION TILE_SIZES[MAX_PANELS];

#if VECTOR_REGISTERS >= 32
#    define MAX_ROWS 8
#    define WIDE_TILES(N, S, SPLIT)                                                                \
        TILE(tile_2_2_##N##S, 2, 2, N, SPLIT)                                                      \
        TILE(tile_2_3_##N##S, 2, 3, N, SPLIT)                                                      \
        TILE(tile_2_4_##N##S, 2, 4, N, SPLIT)                                                      \
        TILE(tile_3_2_##N##S, 3, 2, N, SPLIT)                                                      \
        TILE(tile_4_2_##N##S, 4, 2, N, SPLIT)                                                      \
        TILE(tile_5_1_##N##S, 5, 1, N, SPLIT)                                                      \
        TILE(tile_6_1_##N##S, 6, 1, N, SPLIT)                                                      \
        TILE(tile_7_1_##N##S, 7, 1, N, SPLIT)                                                      \
        TILE(tile_8_1_##N##S, 8, 1, N, SPLIT)
#    define TILE_TABLE(NAME, S)                                                                    \
        static const TILE_SIZES FN(NAME)[MAX_ROWS] = {                                             \
            {FN(tile_1_1_##S), FN(tile_1_2_##S), FN(tile_1_3_##S), FN(tile_1_4_##S)},              \
            {FN(tile_2_1_##S), FN(tile_2_2_##S), FN(tile_2_3_##S), FN(tile_2_4_##S)},              \
            {FN(tile_3_1_##S), FN(tile_3_2_##S)},                                                  \
            {FN(tile_4_1_##S), FN(tile_4_2_##S)},                                                  \
            {FN(tile_5_1_##S)},                                                                    \
            {FN(tile_6_1_##S)},                                                                    \
            {FN(tile_7_1_##S)},                                                                    \
            {FN(tile_8_1_##S)},                                                                    \
        };
#else
#    define MAX_ROWS 4
#    define WIDE_TILES(N, S, SPLIT) TILE(tile_2_2_##N##S, 2, 2, N, SPLIT)
#    define TILE_TABLE(NAME, S)                                                                    \
        static const TILE_SIZES FN(NAME)[MAX_ROWS] = {                                             \
            {FN(tile_1_1_##S), FN(tile_1_2_##S), FN(tile_1_3_##S), FN(tile_1_4_##S)},              \
            {FN(tile_2_1_##S), FN(tile_2_2_##S)},                                                  \
            {FN(tile_3_1_##S)},                                                                    \
            {FN(tile_4_1_##S)},                                                                    \
        };
#endif

TILES(3, , 0)
TILES(3, s, 1)
TILES(2, , 0)
TILES(2, s, 1)
TILES(1, , 0)
TILE_TABLE(tiles_3, 3)
TILE_TABLE(tiles_3s, 3s)
TILE_TABLE(tiles_2, 2)
TILE_TABLE(tiles_2s, 2s)
TILE_TABLE(tiles_1, 1)

/* What is done with the sums (R, P, N, LANES) of the rows row..row+R and panels panel..panel+P;
 * they may be overwritten. step: what it needs besides. */
typedef void (*EPILOGUE_FUNCTION)(const void *step, ptrdiff_t row, int R, ptrdiff_t panel, int P,
                                  TYPE *sums);

/* Multiplies n rows with the panels panel0..panel1 of a matrix in panels of `vectors` vectors. In
 * o, `w` and `last` are those of panel 0; `start_offset`, `out` and `offset` are those of panel0;
 * `rows`, `start` and `out` list all rows. Without an epilogue the sums go to out.
 *
 * o changes from tile to tile and is restored at the end. A copy of it would have to wait for the
 * stores of the caller, who has just filled it: 1.06 times the time of a call at (1,100,16,32).
 * Inline, because a call for each step costs narrow layers 4 %. */
static inline void FN(multiply_panels)(const TILE_SIZES *table, int vectors, OPERANDS *o,
                                       ptrdiff_t n, ptrdiff_t panel0, ptrdiff_t panel1,
                                       EPILOGUE_FUNCTION epilogue, const void *step) {
    const ptrdiff_t width = vectors * LANES, tiles = (n + MAX_ROWS - 1) / MAX_ROWS;
    const TYPE *const *const rows = o->rows, *const *const start = o->start;
    const TYPE *const w = o->w, *const last = o->last;
    const ptrdiff_t start_offset = o->start_offset;
    TYPE *const *const out = o->out;
    TYPE sums[MAX_ROWS * 3 * LANES] __attribute__((aligned(64)));
    TYPE *buffers[MAX_ROWS];
    int most = tiles == 1 ? MAX_PANELS : 1;
    while (tiles == 1 && !table[n - 1][most - 1])
        most--;
    const ptrdiff_t groups = (panel1 - panel0 + most - 1) / most;
    for (ptrdiff_t group = 0; group < groups; group++) {
        const ptrdiff_t panel = panel0 + most * (o->descending ? groups - 1 - group : group);
        const int P = panel1 - panel < most ? (int)(panel1 - panel) : most;
        ptrdiff_t row = 0;
        o->w = w + panel * o->stride;
        o->start_offset = start_offset + (panel - panel0) * o->start_stride;
        o->last = last ? last + panel * o->last_stride : NULL;
        for (ptrdiff_t tile = 0; tile < tiles; tile++) {
            const int R = (int)((n - row + tiles - tile - 1) / (tiles - tile));
            o->rows = rows + row;
            o->start = start ? start + row : NULL;
            if (epilogue == NULL) {
                o->out = out + row;
                o->offset = (panel - panel0) * width;
                table[R - 1][P - 1](o);
            } else {
                for (int r = 0; r < R; r++)
                    buffers[r] = sums + r * P * width;
                o->out = buffers;
                o->offset = 0;
                table[R - 1][P - 1](o);
                epilogue(step, row, R, panel, P, sums);
            }
            row += R;
        }
    }
    o->rows = rows;
    o->start = start;
    o->w = w;
    o->last = last;
    o->start_offset = start_offset;
    o->out = out;
}
