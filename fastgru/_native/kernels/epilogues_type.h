/* What the forward loop does with the sums of a tile: the gates and the new state, for one ISA and
 * one TYPE; included by forward_type.h after tile_type.h.
 */
/* What the epilogues need: where the rows of a step lie. All lists are by active row. */
typedef struct {
    const gru_job *job;
    ptrdiff_t panel0;       /* the thread's first panel, where rows of p and z begin */
    const TYPE *const *p;   /* x.W and the bias of each row */
    const TYPE *const *h;   /* state before the step */
    const TYPE *const *k;   /* the same with the recurrent dropout of gate h */
    TYPE *const *h_new;     /* state after the step */
    TYPE *const *rk;        /* reset_after=False: r * k */
    TYPE *const *z;         /* reset_after=False */
    TYPE *const *gates;     /* where they are kept, in the first panel; NULL: nowhere */
    ptrdiff_t gates_stride; /* from panel to panel */
} STEP;

/* An epilogue gathers the units of a tile, row after row without gaps. So its vectors are full of
 * units where a layer has fewer units than lanes, and a partial panel reads and writes nothing
 * beyond H. It gathers whole vectors, in ascending order: each overwrites what the one before it
 * wrote too much. */
#define TILE_UNITS ((MAX_ROWS + 1) * LANES)
#define PARTIAL(job, panel, P) ((job)->H < ((panel) + (P)) * LANES)
/* The arithmetic is done on whole vectors. The compiler may round a remainder differently, and
 * where a row's units lie in a tile depends on the other rows. The lanes beyond the units are not
 * used. */
#define WHOLE(n) (((n) + LANES - 1) / LANES * LANES)
/* Runs the block for each row r and panel j: its n units from unit u on, at place o of the
 * gathered. */
#define EACH_PIECE(R, P)                                                                           \
    for (ptrdiff_t r = 0, o = 0, n, u; r < (R); r++)                                               \
        for (ptrdiff_t j = 0;                                                                      \
             j < (P) && (u = (panel + j) * LANES, n = job->H - u < LANES ? job->H - u : LANES, 1); \
             j++, o += n)

/* Copies n units, LANES or fewer; reads and writes nothing beyond them. */
static inline void FN(copy_units)(TYPE *to, const TYPE *from, ptrdiff_t n) {
    if (n == LANES) {
        VECTOR(to) = CONST_VECTOR(from);
        return;
    }
#if MASKED_BYTES == 64
    const LANE_MASK mask = (LANE_MASK)((1u << n) - 1);
    INTRINSIC(512_mask_storeu)(to, mask, INTRINSIC(512_maskz_loadu)(mask, from));
#elif MASKED_BYTES == 32
    static const int8_t ones[64] = {[0 ... 31] = -1};
    const int8_t *first = ones + 32 - n * (ptrdiff_t)sizeof(TYPE);
    const __m256i mask = _mm256_loadu_si256((const __m256i *)first);
    INTRINSIC(256_maskstore)(to, mask, INTRINSIC(256_maskload)(from, mask));
#else
    for (ptrdiff_t i = 0; i < n; i++)
        to[i] = from[i];
#endif
}

#define FUSED_GATES(f) ((f)->activation == ACT_TANH && (f)->recurrent_activation == ACT_SIGMOID)

static void FN(epilogue_after)(const void *context, ptrdiff_t row, int R, ptrdiff_t panel, int P,
                               TYPE *sums) {
    const STEP *step = context;
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
                    FN(new_state)(LANES, a, a + LANES, p + 2 * LANES, a + 2 * LANES, h + j * LANES,
                                  h_new + j * LANES);
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
        FN(copy_units)(h + o, step->h[row + r] + u, n);
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
        FN(copy_units)(step->h_new[row + r] + u, h_new + o, n);
        if (step->gates)
            for (int g = 0; g < 4; g++)
                FN(copy_units)(step->gates[row + r] + (panel + j) * step->gates_stride + g * LANES,
                               kept + g * TILE_UNITS + o, n);
    }
}

static void FN(epilogue_zr)(const void *context, ptrdiff_t row, int R, ptrdiff_t panel, int P,
                            TYPE *sums) {
    const STEP *step = context;
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
        FN(copy_units)(step->z[row + r] + (first + j) * LANES, z + o, n);
        if (step->gates)
            for (int g = 0; g < 2; g++)
                FN(copy_units)(step->gates[row + r] + (panel + j) * step->gates_stride + g * LANES,
                               a[g] + o, n);
    }
}

static void FN(epilogue_h)(const void *context, ptrdiff_t row, int R, ptrdiff_t panel, int P,
                           TYPE *sums) {
    const STEP *step = context;
    const gru_job *job = step->job;
    const gate_functions *f = &job->functions;
    const ptrdiff_t first = panel - step->panel0;
    TYPE a[TILE_UNITS], c[TILE_UNITS], z[TILE_UNITS], h[TILE_UNITS];
    ptrdiff_t units = 0;
    EACH_PIECE(R, P) {
        VECTOR(a + o) = CONST_VECTOR(sums + (r * P + j) * LANES);
        FN(copy_units)(h + o, step->h[row + r] + u, n);
        FN(copy_units)(z + o, step->z[row + r] + (first + j) * LANES, n);
        units = WHOLE(o + n);
    }
    memcpy(c, a, (size_t)units * sizeof(TYPE));
    FN(kernels).activations[f->activation](units, f->params, c);
    if (KEEPS_VALUE(f->activation))
        memcpy(a, c, (size_t)units * sizeof(TYPE));
    for (ptrdiff_t i = 0; i < units; i++)
        h[i] = FN(mix)(z[i], h[i], c[i]);
    EACH_PIECE(R, P) {
        FN(copy_units)(step->h_new[row + r] + u, h + o, n);
        if (step->gates)
            FN(copy_units)(step->gates[row + r] + (panel + j) * step->gates_stride + 2 * LANES,
                           a + o, n);
    }
}
