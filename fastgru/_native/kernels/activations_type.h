/* Activations and their derivatives for one ISA and one TYPE; included by kernels_type.h.
 *
 * These are plain loops over contiguous memory, without branches, which the compiler vectorises. A
 * choice is written as `a < b ? b : a`, with x where a comparison with NaN leaves it. The formulas
 * are those of fastgru/activations.py, whose docstring names the sources.
 */

static inline TYPE FN(clip)(TYPE x, TYPE low, TYPE high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

static inline TYPE FN(sigmoid_1)(TYPE x) {
    /* 1 / (1 + e^-x); at the limits the answer is 1 and (nearly) 0 anyway */
    return C(1.0) / (C(1.0) + FN(exp_core)(-FN(clip)(x, -EXP_LIMIT, EXP_LIMIT)));
}

static inline TYPE FN(tanh_1)(TYPE x) {
    /* odd by construction: e = expm1(-2|x|), tanh|x| = -e / (e + 2) */
    TYPE a = M(fabs)(x);
    TYPE e = FN(expm1_core)(C(-2.0) * (a > TANH_LIMIT ? TANH_LIMIT : a));
    return M(copysign)(-e / (e + C(2.0)), x);
}

static inline TYPE FN(exp_1)(TYPE x) {
    TYPE y = FN(half_exp)(FN(clip)(x, -EXP_LIMIT, EXP_OVERFLOW)) * C(2.0);
    y = x < -EXP_LIMIT ? C(0.0) : y;
    return x > EXP_OVERFLOW ? (TYPE)INFINITY : y;
}

static inline TYPE FN(expm1_negative)(TYPE x) {
    /* expm1(min(x, 0)); -1 to the last bit far below the limit */
    return FN(expm1_core)(FN(clip)(x, -EXP_LIMIT / 2, C(0.0)));
}

static inline TYPE FN(log1p_1)(TYPE e) {
    /* 0 <= e <= 1: 2 atanh(s) */
    const TYPE s = e / (e + C(2.0)), w = s * s;
    return s * (w * FN(log1p_poly)(w) + C(2.0));
}

static inline TYPE FN(hypot_1)(TYPE x, TYPE y) {
    /* y >= 0; without overflow, NaN stays NaN */
    const TYPE a = M(fabs)(x), large = a < y ? y : a, ratio = (a < y ? a : y) / large;
    return large * M(sqrt)(ratio * ratio + C(1.0));
}

/* NAME: replaces each x of an array by EXPRESSION. A and B are the first two parameters. */
#define ACTIVATION(NAME, EXPRESSION)                                                               \
    static void FN(NAME)(ptrdiff_t n, const double *params, TYPE *a) {                             \
        const TYPE A = (TYPE)params[0], B = (TYPE)params[1];                                       \
        (void)A, (void)B;                                                                          \
        for (ptrdiff_t i = 0; i < n; i++) {                                                        \
            const TYPE x = a[i];                                                                   \
            a[i] = EXPRESSION;                                                                     \
        }                                                                                          \
    }

#define CLIP(x, low, high) FN(clip)(x, C(low), C(high))
#define RAMP(x) (C(0.5) * (CLIP(x, -1.0, 1.0) + C(1.0)))
#define MAX0(x) ((x) < C(0.0) ? C(0.0) : (x))
#define MIN0(x) ((x) > C(0.0) ? C(0.0) : (x))
#define SIXTH(x) CLIP((x) / C(6.0) + C(0.5), 0.0, 1.0)

static void FN(linear)(ptrdiff_t n, const double *params, TYPE *a) {
    (void)n, (void)params, (void)a;
}

/* relu(negative_slope, max_value or NaN, threshold) */
static void FN(relu)(ptrdiff_t n, const double *params, TYPE *a) {
    const TYPE slope = (TYPE)params[0], threshold = (TYPE)params[2];
    const TYPE top = params[1] != params[1] ? (TYPE)INFINITY : (TYPE)params[1];
    const TYPE bottom = params[1] != params[1] ? -(TYPE)INFINITY : C(0.0);
    for (ptrdiff_t i = 0; i < n; i++) {
        const TYPE x = a[i];
        const TYPE below = x - threshold;
        const TYPE y = FN(clip)(x <= threshold ? C(0.0) : x, bottom, top);
        /* a slope of 0 must not make NaN of -inf */
        a[i] = y + (slope != C(0.0) ? slope * MIN0(below) : C(0.0));
    }
}

ACTIVATION(tanh, FN(tanh_1)(x))
ACTIVATION(sigmoid, FN(sigmoid_1)(x))
ACTIVATION(relu6, CLIP(x, 0.0, 6.0))
ACTIVATION(leaky_relu, x < C(0.0) ? A * x : x)
ACTIVATION(elu, x < C(0.0) ? A * FN(expm1_negative)(x) : x)
ACTIVATION(selu, C(1.0507009873554804935) *
                     (x < C(0.0) ? C(1.6732632423543772848) * FN(expm1_negative)(x) : x))
ACTIVATION(celu, MAX0(x) + A * FN(expm1_negative)(MIN0(x) / A))
ACTIVATION(exponential, FN(exp_1)(x))
ACTIVATION(softplus, MAX0(x) + FN(log1p_1)(FN(exp_1)(-M(fabs)(x))))
ACTIVATION(log_sigmoid, MIN0(x) - FN(log1p_1)(FN(exp_1)(-M(fabs)(x))))
ACTIVATION(softsign, x / (C(1.0) + M(fabs)(x)))
ACTIVATION(silu, x *FN(sigmoid_1)(x))
/* erf is libm's, one element at a time */
ACTIVATION(gelu, x *(C(0.5) * (M(erf)(x * C(0.70710678118654752440)) + C(1.0))))
ACTIVATION(squareplus, x > C(0.0) ? C(0.5) * (x + FN(hypot_1)(x, M(sqrt)(A)))
                                  : C(0.5) * A / (FN(hypot_1)(x, M(sqrt)(A)) - x))
ACTIVATION(tanh_shrink, x - FN(tanh_1)(x))
ACTIVATION(soft_shrink, x - FN(clip)(x, -A, A))
ACTIVATION(hard_shrink, M(fabs)(x) <= A ? C(0.0) : x)
ACTIVATION(threshold, x <= A ? B : x)
ACTIVATION(hard_tanh, CLIP(x, -1.0, 1.0))
ACTIVATION(hard_sigmoid, SIXTH(x))
ACTIVATION(hard_sigmoid_keras2, CLIP(C(0.2) * x + C(0.5), 0.0, 1.0))
ACTIVATION(hard_silu, x *SIXTH(x))
ACTIVATION(sparse_plus, x >= C(1.0) ? x : RAMP(x) * RAMP(x))
ACTIVATION(sparse_sigmoid, RAMP(x))

/* x tanh(softplus(x)) without a logarithm: tanh(log(1 + e)) = w / (w + 2), w = e (e + 2) */
static void FN(mish)(ptrdiff_t n, const double *params, TYPE *a) {
    (void)params;
    for (ptrdiff_t i = 0; i < n; i++) {
        const TYPE x = a[i];
        const TYPE e = FN(exp_core)(FN(clip)(x, -EXP_LIMIT, C(20.0)));
        const TYPE w = e * (e + C(2.0));
        a[i] = x * (w / (w + C(2.0)));
    }
}

static void FN(gelu_tanh)(ptrdiff_t n, const double *params, TYPE *a) {
    (void)params;
    for (ptrdiff_t i = 0; i < n; i++) {
        const TYPE x = a[i];
        const TYPE c = CLIP(x, -100.0, 100.0); /* the cube of a large float32 would overflow */
        const TYPE u = C(0.79788456080286535588) * (c + C(0.044715) * (c * c * c));
        a[i] = x * (C(0.5) * (C(1.0) + FN(tanh_1)(u)));
    }
}

/* d_NAME, for backward: EXPRESSION of what forward kept is the derivative. DERIVATIVE: forward kept
 * the value (KEEPS_VALUE). DERIVATIVE_THEN: it kept the argument, which FUNCTION then replaces by
 * the value. */
#define DERIVATIVE(NAME, EXPRESSION)                                                               \
    static void FN(d_##NAME)(ptrdiff_t n, const double *params, TYPE *RESTRICT a,                  \
                             TYPE *RESTRICT d) {                                                   \
        const TYPE A = (TYPE)params[0], B = (TYPE)params[1];                                       \
        (void)A, (void)B;                                                                          \
        for (ptrdiff_t i = 0; i < n; i++) {                                                        \
            const TYPE x = a[i];                                                                   \
            d[i] = EXPRESSION;                                                                     \
        }                                                                                          \
    }
#define DERIVATIVE_THEN(NAME, FUNCTION, EXPRESSION)                                                \
    DERIVATIVE(NAME##_only, EXPRESSION)                                                            \
    static void FN(d_##NAME)(ptrdiff_t n, const double *params, TYPE *RESTRICT a,                  \
                             TYPE *RESTRICT d) {                                                   \
        FN(d_##NAME##_only)(n, params, a, d);                                                      \
        FN(FUNCTION)(n, params, a);                                                                \
    }

static inline TYPE FN(gelu_slope)(TYPE x) {
    const TYPE c = CLIP(x, -100.0, 100.0);
    return C(0.5) * (C(1.0) + M(erf)(x * C(0.70710678118654752440))) +
           c * FN(half_exp)(FN(clip)(C(-0.5) * c * c, -EXP_LIMIT, C(0.0))) *
               C(0.79788456080286535588);
}

static inline TYPE FN(gelu_tanh_slope)(TYPE x) {
    const TYPE c = CLIP(x, -100.0, 100.0);
    const TYPE u = C(0.79788456080286535588) * (c + C(0.044715) * (c * c * c));
    const TYPE p = C(0.5) * (C(1.0) + FN(tanh_1)(u));
    return p + c * (C(2.0) * p * (C(1.0) - p)) * C(0.79788456080286535588) *
                   (C(1.0) + C(0.134145) * c * c);
}

static inline TYPE FN(mish_slope)(TYPE x) {
    const TYPE e = FN(exp_core)(FN(clip)(x, -EXP_LIMIT, C(20.0)));
    const TYPE w = e * (e + C(2.0)), t = w / (w + C(2.0));
    return t + x * FN(sigmoid_1)(x) * (C(1.0) - t * t);
}

static inline TYPE FN(silu_slope)(TYPE x) {
    const TYPE s = FN(sigmoid_1)(x);
    return s + x * s * (C(1.0) - s);
}

static void FN(d_relu)(ptrdiff_t n, const double *params, TYPE *RESTRICT a, TYPE *RESTRICT d) {
    const TYPE slope = (TYPE)params[0], threshold = (TYPE)params[2];
    const int bounded = params[1] == params[1];
    const TYPE top = bounded ? (TYPE)params[1] : (TYPE)INFINITY;
    const TYPE bottom = bounded ? C(0.0) : -(TYPE)INFINITY;
    const TYPE joint = bounded || threshold != C(0.0) ? C(0.0) : slope;
    for (ptrdiff_t i = 0; i < n; i++) {
        const TYPE x = a[i];
        const TYPE below = x == threshold ? joint : slope;
        d[i] = x > threshold ? (x > bottom && x < top ? C(1.0) : C(0.0)) : below;
    }
    FN(relu)(n, params, a);
}

DERIVATIVE(linear, C(1.0) + C(0.0) * x)
DERIVATIVE(tanh, C(1.0) - x * x)
DERIVATIVE(sigmoid, x *(C(1.0) - x))
DERIVATIVE_THEN(relu6, relu6, x > C(0.0) && x < C(6.0) ? C(1.0) : C(0.0))
DERIVATIVE_THEN(leaky_relu, leaky_relu, x > C(0.0) ? C(1.0) : A)
DERIVATIVE_THEN(elu, elu, x > C(0.0) ? C(1.0) : A * FN(exp_1)(x))
DERIVATIVE_THEN(selu, selu,
                C(1.0507009873554804935) *
                    (x > C(0.0) ? C(1.0) : C(1.6732632423543772848) * FN(exp_1)(x)))
DERIVATIVE_THEN(celu, celu, FN(exp_1)(MIN0(x) / A))
DERIVATIVE_THEN(exponential, exponential, FN(exp_1)(x))
DERIVATIVE_THEN(softplus, softplus, FN(sigmoid_1)(x))
DERIVATIVE_THEN(log_sigmoid, log_sigmoid, FN(sigmoid_1)(-x))
DERIVATIVE_THEN(softsign, softsign, C(1.0) / ((C(1.0) + M(fabs)(x)) * (C(1.0) + M(fabs)(x))))
DERIVATIVE_THEN(silu, silu, FN(silu_slope)(x))
DERIVATIVE_THEN(mish, mish, FN(mish_slope)(x))
DERIVATIVE_THEN(gelu, gelu, FN(gelu_slope)(x))
DERIVATIVE_THEN(gelu_tanh, gelu_tanh, FN(gelu_tanh_slope)(x))
DERIVATIVE_THEN(squareplus, squareplus, C(0.5) * (C(1.0) + x / FN(hypot_1)(x, M(sqrt)(A))))
DERIVATIVE_THEN(tanh_shrink, tanh_shrink, FN(tanh_1)(x) * FN(tanh_1)(x))
DERIVATIVE_THEN(soft_shrink, soft_shrink, M(fabs)(x) > A ? C(1.0) : C(0.0))
DERIVATIVE_THEN(hard_shrink, hard_shrink, M(fabs)(x) > A ? C(1.0) : C(0.0))
DERIVATIVE_THEN(threshold, threshold, x > A ? C(1.0) : C(0.0))
DERIVATIVE_THEN(hard_tanh, hard_tanh, M(fabs)(x) < C(1.0) ? C(1.0) : C(0.0))
DERIVATIVE_THEN(hard_sigmoid, hard_sigmoid, M(fabs)(x) < C(3.0) ? C(1.0) / C(6.0) : C(0.0))
DERIVATIVE_THEN(hard_sigmoid_keras2, hard_sigmoid_keras2, M(fabs)(x) < C(2.5) ? C(0.2) : C(0.0))
DERIVATIVE_THEN(hard_silu, hard_silu,
                M(fabs)(x) < C(3.0) ? x / C(3.0) + C(0.5)
                : x > C(0.0)        ? C(1.0)
                                    : C(0.0))
DERIVATIVE_THEN(sparse_plus, sparse_plus, RAMP(x))
DERIVATIVE_THEN(sparse_sigmoid, sparse_sigmoid, M(fabs)(x) < C(1.0) ? C(0.5) : C(0.0))

#undef ACTIVATION
#undef DERIVATIVE
#undef DERIVATIVE_THEN
#undef CLIP
#undef RAMP
#undef MAX0
#undef MIN0
#undef SIXTH
