/* Arrays of 16-bit floats around a kernel that computes in float, for one ISA; included by
 * kernels_type.h. A kernel of doubles has none: there HALF is 0, and the compiler drops what it
 * guards.
 *
 * The conversions are arithmetic on the bits, which every compiler vectorises, and round to nearest
 * even. They keep subnormal numbers even where the processor takes those for zeros: no operand and
 * no result of a float operation is subnormal.
 */
#if HALVES
#    define HALF(job) ((job)->half)

static inline uint32_t FN(bits_of)(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float FN(of_bits)(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The lower 16 bits are the number. In a bfloat16 it is the upper half of the float's bits. */
static inline uint32_t FN(to_bfloat16)(float value) {
    const uint32_t bits = FN(bits_of)(value), upper = bits >> 16;
    const uint32_t quiet = upper | 0x40; /* a NaN: the sum could carry into its exponent */
    return (bits & 0x7fffffff) > 0x7f800000 ? quiet : (bits + 0x7fff + (upper & 1)) >> 16;
}

/* Below 2^-14 a float16 counts steps of 2^-24, which are also those of the floats from 0.5 to 1: a
 * sum with 0.5 rounds to them. From 65520 on the number rounds to infinity. */
static inline uint32_t FN(to_float16)(float value) {
    const uint32_t bits = FN(bits_of)(value), size = bits & 0x7fffffff;
    const uint32_t small = FN(bits_of)(FN(of_bits)(size) + 0.5f) - 0x3f000000;
    const uint32_t normal = ((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10);
    uint32_t half = size < 0x38800000 ? small : normal;
    half = size > 0x477fefff ? 0x7c00 : half;
    half = size > 0x7f800000 ? 0x7e00 : half;
    return half | (bits >> 16 & 0x8000);
}

static inline float FN(from_float16)(uint32_t half) {
    const uint32_t moved = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
    const uint32_t small = FN(bits_of)(FN(of_bits)(moved + (113 << 23)) - 6.103515625e-05f);
    const uint32_t large = moved + ((moved < 0x0f800000 ? 112u : 224u) << 23); /* inf, NaN */
    return FN(of_bits)((moved < 0x00800000 ? small : large) | sign);
}

static inline void FN(from_halves)(int half, ptrdiff_t n, const char *from, float *RESTRICT to) {
    const uint16_t *halves = (const uint16_t *)from;
    if (half == HALF_BFLOAT16)
        for (ptrdiff_t i = 0; i < n; i++)
            to[i] = FN(of_bits)((uint32_t)halves[i] << 16);
    else
        for (ptrdiff_t i = 0; i < n; i++)
            to[i] = FN(from_float16)(halves[i]);
}

static inline void FN(to_halves)(int half, ptrdiff_t n, const float *RESTRICT from, char *to) {
    uint16_t *halves = (uint16_t *)to;
    if (half == HALF_BFLOAT16)
        for (ptrdiff_t i = 0; i < n; i++)
            halves[i] = (uint16_t)FN(to_bfloat16)(from[i]);
    else
        for (ptrdiff_t i = 0; i < n; i++)
            halves[i] = (uint16_t)FN(to_float16)(from[i]);
}

/* a (n) becomes what it is in 16 bits. */
static void FN(round)(int half, ptrdiff_t n, float *a) {
    if (half == HALF_BFLOAT16)
        for (ptrdiff_t i = 0; i < n; i++)
            a[i] = FN(of_bits)(FN(to_bfloat16)(a[i]) << 16);
    else if (half == HALF_FLOAT16)
        for (ptrdiff_t i = 0; i < n; i++)
            a[i] = FN(from_float16)(FN(to_float16)(a[i]));
}
#else
#    define HALF(job) ((void)(job), 0)
static inline void FN(from_halves)(int half, ptrdiff_t n, const char *from, TYPE *to) {
    (void)half, (void)n, (void)from, (void)to;
}
static inline void FN(to_halves)(int half, ptrdiff_t n, const TYPE *from, char *to) {
    (void)half, (void)n, (void)from, (void)to;
}
static void FN(round)(int half, ptrdiff_t n, TYPE *a) { (void)half, (void)n, (void)a; }
#endif

/* Bytes of a number in the arrays of a job. */
#define ITEM(job) (HALF(job) ? 2 : (ptrdiff_t)sizeof(TYPE))

/* Writes n numbers, which 16 bits hold exactly where HALF, into an array of the job. They may lie
 * there already. */
static inline void FN(store)(const gru_job *job, ptrdiff_t n, const TYPE *from, char *to) {
    if (HALF(job))
        FN(to_halves)(HALF(job), n, from, to);
    else
        memmove(to, from, (size_t)n * sizeof(TYPE));
}
