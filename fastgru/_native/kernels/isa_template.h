/* Both dtypes for one instruction set. The file that includes this defines ISA, the sizes of
 * vectors and registers, and, for all sets but base, the compiler's target.
 *
 * Here is what differs between the dtypes: constants, and the exponential. The code is
 * kernels_type.h and what it includes. The exponential makes 2^k from the bits of a float. It adds
 * ROUND = 1.5 * 2^(mantissa bits), which rounds to an integer and leaves that in the low bits: a
 * way that every compiler vectorises. Both this and NaN need -ffast-math to be off.
 *
 * Polynomials are Remez' on [-1/2, 1/2] (float, base 2) and [-ln2/2, ln2/2] (double). Their
 * relative errors are 2.0e-9 (2^f), 1.1e-8 ((2^f - 1)/f), 1.1e-16 ((e^r - 1 - r)/r^2), and of log(1
 * + e) 4.8e-9 (float) and 1.5e-18 (double).
 */
#define TYPE float
#define HALVES 1
#define KERNELS kernels_f32
#define FN(name) PASTE(name, f32, ISA)
#define M(name) name##f
#define C(x) x##f
#define LANE_MASK __mmask16
#define INTRINSIC(name) _mm##name##_ps

/* 2^k of the integer in the low bits of t = k + ROUND, -127 <= k <= 127 (k = -127 gives 0). */
static inline float FN(power)(float t) {
    uint32_t bits;
    memcpy(&bits, &t, sizeof bits);
    bits = (bits + 127) << 23;
    memcpy(&t, &bits, sizeof bits);
    return t;
}

static inline float FN(exp2_poly)(float f) {
    /* The last coefficient is exactly 1: the next number would bias every gate near its middle. */
    const float f2 = f * f; /* in pairs the chain is shorter: 1.11 times as fast at (32,10,8,4) */
    float e = 0.00015353361915019335f * f + 0.00133988744141861228f;
    e = e * f2 + (0.00961843735765250014f * f + 0.05550332471125732359f);
    e = e * f2 + (0.24022647913628941696f * f + 0.69314720285506625785f);
    return e * f + 1.0f;
}

/* e^x for |x| <= 88; the caller sees to overflow and underflow. NaN stays NaN. The error of x
 * log2(e) grows with x, but what 1 / (1 + e^-x) keeps of it does not. */
static inline float FN(exp_core)(float x) {
    float u = x * 1.44269504088896341f;
    float t = u + 12582912.0f;
    return FN(exp2_poly)(u - (t - 12582912.0f)) * FN(power)(t);
}

/* e^x / 2, for where e^x itself is the result: with ln2 in two parts (Cody and Waite). Half of it,
 * so that the last octave before overflow has a 2^k too. */
static inline float FN(half_exp)(float x) {
    float t = x * 1.44269504088896341f + 12582912.0f;
    float k = t - 12582912.0f;
    float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    return FN(exp2_poly)(r * 1.44269504088896341f) * FN(power)(t - 1.0f);
}

/* e^x - 1 for -88 <= x <= 88, accurate near 0. */
static inline float FN(expm1_core)(float x) {
    float u = x * 1.44269504088896341f;
    float t = u + 12582912.0f;
    float f = u - (t - 12582912.0f);
    float s = FN(power)(t);
    float e = 0.00015403512535316561011f;
    e = e * f + 0.0013390746904814770137f;
    e = e * f + 0.0096182375376487200326f;
    e = e * f + 0.055503574123173626261f;
    e = e * f + 0.24022649794426708314f;
    e = e * f + 0.69314718793109446597f;
    return s * (e * f) + (s - 1.0f);
}

/* (log(1 + e) / s - 2) / s^2 with s = e / (2 + e), 0 <= e <= 1; w = s^2 */
static inline float FN(log1p_poly)(float w) {
    float p = 0.279875634904f;
    p = p * w + 0.280075821029f;
    p = p * w + 0.400210977597f;
    return p * w + 0.666664260608f;
}

#define EXP_LIMIT 87.3f /* e^-x is still a normal number */
#define EXP_OVERFLOW 88.72283935546875f
#define TANH_LIMIT 10.0f /* tanh rounds to 1 from 9.1 on */
#include "kernels_type.h"

#define TYPE double
#define HALVES 0
#define KERNELS kernels_f64
#define FN(name) PASTE(name, f64, ISA)
#define M(name) name
#define C(x) x
#define LANE_MASK __mmask8
#define INTRINSIC(name) _mm##name##_pd

static inline double FN(power)(double t) {
    uint64_t bits;
    memcpy(&bits, &t, sizeof bits);
    bits = (bits + 1023) << 52;
    memcpy(&t, &bits, sizeof bits);
    return t;
}

/* Cody and Waite: ln2 in two parts, so that r keeps full accuracy. */
static inline double FN(reduce)(double x, double *t) {
    *t = x * 1.4426950408889634074 + 6755399441055744.0;
    double k = *t - 6755399441055744.0;
    return (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
}

static inline double FN(expm1_poly)(double r) {
    double e = 2.511005120265114307443e-8;
    e = e * r + 2.762008939339188096563e-7;
    e = e * r + 0.000002755724233311337118417;
    e = e * r + 0.00002480152129367699855453;
    e = e * r + 0.0001984126988659424574082;
    e = e * r + 0.001388888891721542667184;
    e = e * r + 0.008333333333322206187151;
    e = e * r + 0.0416666666666241237669;
    e = e * r + 0.1666666666666667453068;
    e = e * r + 0.5000000000000001022267;
    return e * (r * r) + r;
}

static inline double FN(exp_core)(double x) {
    double t, r = FN(reduce)(x, &t);
    return (FN(expm1_poly)(r) + 1.0) * FN(power)(t);
}

static inline double FN(half_exp)(double x) {
    double t, r = FN(reduce)(x, &t);
    return (FN(expm1_poly)(r) + 1.0) * FN(power)(t - 1.0);
}

static inline double FN(expm1_core)(double x) {
    double t, r = FN(reduce)(x, &t), s = FN(power)(t);
    return s * FN(expm1_poly)(r) + (s - 1.0);
}

static inline double FN(log1p_poly)(double w) {
    double p = 0.16946197481639211337;
    p = p * w + 0.083816037303597858186;
    p = p * w + 0.12095927288431549702;
    p = p * w + 0.1330235776337883262;
    p = p * w + 0.15386445198483860892;
    p = p * w + 0.18181749857827052878;
    p = p * w + 0.22222223781121189266;
    p = p * w + 0.28571428551334332854;
    p = p * w + 0.40000000000124460304;
    return p * w + 0.66666666666666417899;
}

#define EXP_LIMIT 708.0
#define EXP_OVERFLOW 709.782712893383973096
#define TANH_LIMIT 20.0
#include "kernels_type.h"

const kernels_f32 *PASTE(fastgru_kernels, f32, ISA)(void) { return &PASTE(kernels, f32, ISA); }
const kernels_f64 *PASTE(fastgru_kernels, f64, ISA)(void) { return &PASTE(kernels, f64, ISA); }
