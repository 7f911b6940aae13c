/* Number types and activations of the CUDA kernels. The text includes no header, so that NVRTC
 * compiles it in milliseconds and the tests' emulator compiles the same text as C++.
 *
 * Chosen at compile time, so that no kernel branches on any of it:
 *   FLOAT_BITS                      16, 32 or 64: what arrays hold (STORE); sums are float for 16
 *   BFLOAT16                        16 bits are a bfloat16, not an IEEE half
 *   ACT, ACT_A, ACT_B, ACT_C        activation by its name below, and its parameters
 *   GATE, GATE_A, GATE_B, GATE_C    the same of the recurrent activation
 *   ACT_KEEPS_VALUE, GATE_KEEPS_VALUE   1 where the slope is a function of the value alone
 *
 * The formulas are those of fastgru/activations.py, whose docstring names the sources. Comparisons
 * are written so that the value of NaN is NaN. exp, tanh and erf are CUDA's own, with errors of at
 * most 2 ulp.
 */

#if FLOAT_BITS == 64
typedef double MATH;
#define M(name) name
#define L(x) x
#else
typedef float MATH;
#define M(name) name##f
#define L(x) x##f
#endif

#if FLOAT_BITS == 16
/* Only the bits: the types of cuda_fp16.h and cuda_bf16.h bring thousands of lines with them. */
struct STORE {
    unsigned short bits;
};
#endif

#if defined(BFLOAT16)
/* The upper half of a float, rounded to the nearest, ties to even. A NaN is made quiet instead: the
 * sum could carry into its exponent, or its payload could be in the lower half, which is lost. */
__device__ inline MATH load(const STORE *at) { return __uint_as_float((unsigned)at->bits << 16); }
__device__ inline void store(STORE *at, MATH value) {
    const unsigned bits = __float_as_uint(value), upper = bits >> 16;
    at->bits = value != value ? upper | 0x40 : (bits + 0x7fff + (upper & 1)) >> 16;
}
#elif FLOAT_BITS == 16
#ifndef EMULATED
__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif
__device__ inline MATH load(const STORE *at) { return half_to_float(at->bits); }
__device__ inline void store(STORE *at, MATH value) { at->bits = float_to_half(value); }
#else
typedef MATH STORE;
__device__ inline MATH load(const STORE *at) { return *at; }
__device__ inline void store(STORE *at, MATH value) { *at = value; }
#endif

__device__ inline MATH clip(MATH x, MATH low, MATH high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}
__device__ inline MATH max0(MATH x) { return x < L(0.0) ? L(0.0) : x; }
__device__ inline MATH min0(MATH x) { return x > L(0.0) ? L(0.0) : x; }
__device__ inline MATH ramp(MATH x) { return L(0.5) * (clip(x, L(-1.0), L(1.0)) + L(1.0)); }
__device__ inline MATH sixth(MATH x) { return clip(x / L(6.0) + L(0.5), L(0.0), L(1.0)); }
__device__ inline MATH squared(MATH x) { return x * x; }

__device__ inline MATH logistic(MATH x) {
    /* where e^-x overflows to infinity the result is 0, as it should be */
    return L(1.0) / (L(1.0) + M(exp)(-x));
}

__device__ inline MATH soft_maximum(MATH x) {
    return max0(x) + M(log1p)(M(exp)(-M(fabs)(x)));
}

__device__ inline MATH tanh_of_softplus(MATH x) {
    /* tanh(log(1 + e)) = w / (w + 2) with w = e (e + 2): no logarithm; 1 from x = 20 on */
    const MATH e = M(exp)(x > L(20.0) ? L(20.0) : x), w = e * (e + L(2.0));
    return w / (w + L(2.0));
}

__device__ inline MATH normal_cdf(MATH x) {
    return L(0.5) * (M(erf)(x * L(0.70710678118654752440)) + L(1.0));
}

__device__ inline MATH normal_cdf_tanh(MATH x) {
    /* the clip: the cube of a large float32 would overflow */
    const MATH c = clip(x, L(-100.0), L(100.0));
    return L(0.5) *
           (L(1.0) + M(tanh)(L(0.79788456080286535588) * (c + L(0.044715) * (c * c * c))));
}

__device__ inline MATH slope_of_gelu(MATH x) {
    const MATH c = clip(x, L(-100.0), L(100.0));
    return normal_cdf(x) + c * M(exp)(L(-0.5) * c * c) * L(0.39894228040143267794);
}

__device__ inline MATH slope_of_gelu_tanh(MATH x) {
    const MATH c = clip(x, L(-100.0), L(100.0)), p = normal_cdf_tanh(x);
    return p + c * (L(2.0) * p * (L(1.0) - p)) *
                   (L(0.79788456080286535588) * (L(1.0) + L(0.134145) * c * c));
}

__device__ inline MATH slope_of_silu(MATH x) {
    const MATH s = logistic(x);
    return s + x * s * (L(1.0) - s);
}

__device__ inline MATH slope_of_mish(MATH x) {
    const MATH t = tanh_of_softplus(x);
    return t + x * logistic(x) * (L(1.0) - t * t);
}

__device__ inline MATH relu_below(MATH x, MATH slope, MATH threshold) {
    /* 0 times -infinity would be NaN */
    return slope != L(0.0) ? slope * min0(x - threshold) : L(0.0);
}

/* act_NAME(x) and slope_NAME(x, y), y = act_NAME(x), with parameters A, B and C. */
#define ACTIVATION(NAME, VALUE, SLOPE)                                                             \
    __device__ inline MATH act_##NAME(MATH x, MATH A, MATH B, MATH C) { return VALUE; }            \
    __device__ inline MATH slope_##NAME(MATH x, MATH y, MATH A, MATH B, MATH C) { return SLOPE; }

#define WHERE(condition) ((condition) ? L(1.0) : L(0.0))
#define SELU_ALPHA L(1.6732632423543772848)
#define SELU_SCALE L(1.0507009873554804935)

/* The slopes of these three depend on y alone. */
ACTIVATION(linear, x, L(1.0))
ACTIVATION(tanh, M(tanh)(x), L(1.0) - y * y)
ACTIVATION(sigmoid, logistic(x), y * (L(1.0) - y))

/* relu: slope A below threshold C, at most B; relu_open has no upper bound */
ACTIVATION(relu, clip(x <= C ? L(0.0) : x, L(0.0), B) + relu_below(x, A, C),
           x > C ? WHERE(x > L(0.0) && x < B) : (x == C ? L(0.0) : A))
ACTIVATION(relu_open, (x <= C ? L(0.0) : x) + relu_below(x, A, C),
           x > C ? L(1.0) : (x == C && C != L(0.0) ? L(0.0) : A))
ACTIVATION(relu6, clip(x, L(0.0), L(6.0)), WHERE(x > L(0.0) && x < L(6.0)))
ACTIVATION(leaky_relu, x < L(0.0) ? A * x : x, x > L(0.0) ? L(1.0) : A)
ACTIVATION(elu, x < L(0.0) ? A * M(expm1)(x) : x, x > L(0.0) ? L(1.0) : A * M(exp)(x))
ACTIVATION(selu, SELU_SCALE * (x < L(0.0) ? SELU_ALPHA * M(expm1)(x) : x),
           SELU_SCALE * (x > L(0.0) ? L(1.0) : SELU_ALPHA * M(exp)(x)))
ACTIVATION(celu, max0(x) + A * M(expm1)(min0(x) / A), M(exp)(min0(x) / A))
ACTIVATION(exponential, M(exp)(x), y)
ACTIVATION(softplus, soft_maximum(x), logistic(x))
ACTIVATION(log_sigmoid, -soft_maximum(-x), logistic(-x))
ACTIVATION(softsign, x / (L(1.0) + M(fabs)(x)), squared(L(1.0) / (L(1.0) + M(fabs)(x))))
ACTIVATION(silu, x * logistic(x), slope_of_silu(x))
ACTIVATION(mish, x * tanh_of_softplus(x), slope_of_mish(x))
ACTIVATION(gelu, x * normal_cdf(x), slope_of_gelu(x))
ACTIVATION(gelu_tanh, x * normal_cdf_tanh(x), slope_of_gelu_tanh(x))
/* two forms, so that neither subtracts numbers of nearly the same size */
ACTIVATION(squareplus,
           x > L(0.0) ? L(0.5) * (x + M(hypot)(x, M(sqrt)(A)))
                      : L(0.5) * A / (M(hypot)(x, M(sqrt)(A)) - x),
           L(0.5) * (L(1.0) + x / M(hypot)(x, M(sqrt)(A))))
ACTIVATION(tanh_shrink, x - M(tanh)(x), squared(M(tanh)(x)))
ACTIVATION(soft_shrink, x - clip(x, -A, A), WHERE(M(fabs)(x) > A))
ACTIVATION(hard_shrink, M(fabs)(x) <= A ? L(0.0) : x, WHERE(M(fabs)(x) > A))
ACTIVATION(threshold, x <= A ? B : x, WHERE(x > A))
ACTIVATION(hard_tanh, clip(x, L(-1.0), L(1.0)), WHERE(M(fabs)(x) < L(1.0)))
ACTIVATION(hard_sigmoid, sixth(x), M(fabs)(x) < L(3.0) ? L(1.0) / L(6.0) : L(0.0))
ACTIVATION(hard_sigmoid_keras2, clip(L(0.2) * x + L(0.5), L(0.0), L(1.0)),
           M(fabs)(x) < L(2.5) ? L(0.2) : L(0.0))
ACTIVATION(hard_silu, x * sixth(x),
           M(fabs)(x) < L(3.0) ? x / L(3.0) + L(0.5) : WHERE(x > L(0.0)))
ACTIVATION(sparse_plus, x >= L(1.0) ? x : squared(ramp(x)), ramp(x))
ACTIVATION(sparse_sigmoid, ramp(x), M(fabs)(x) < L(1.0) ? L(0.5) : L(0.0))

#define INFINITE __longlong_as_double(0x7ff0000000000000) /* a parameter may be it */
#define PASTE(a, b) a##b
#define APPLY(kind, name, ...) PASTE(kind, name)(__VA_ARGS__)

__device__ inline MATH activation(MATH x) {
    return APPLY(act_, ACT, x, MATH(ACT_A), MATH(ACT_B), MATH(ACT_C));
}
__device__ inline MATH gate(MATH x) {
    return APPLY(act_, GATE, x, MATH(GATE_A), MATH(GATE_B), MATH(GATE_C));
}

/* An activation's value and slope, from what forward kept of it: the value, or the argument. */
struct Slope {
    MATH y, slope;
};
__device__ inline Slope activation_of_kept(MATH kept) {
    const MATH y = ACT_KEEPS_VALUE ? kept : activation(kept);
    return {y, APPLY(slope_, ACT, kept, y, MATH(ACT_A), MATH(ACT_B), MATH(ACT_C))};
}
__device__ inline Slope gate_of_kept(MATH kept) {
    const MATH y = GATE_KEEPS_VALUE ? kept : gate(kept);
    return {y, APPLY(slope_, GATE, kept, y, MATH(GATE_A), MATH(GATE_B), MATH(GATE_C))};
}
