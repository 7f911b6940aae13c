/* Includes the template for every instruction set and dtype, and chooses at run time.
 *
 * One translation unit and no per-file flags: gcc and clang switch the target by pragma, so a plain
 * setuptools build makes a binary for every machine. Elsewhere (aarch64, where the baseline has NEON;
 * MSVC) there is "base" alone.
 */
#include "gates.h"
#include "loop.h"

#include <math.h>
#if defined(__x86_64__) || defined(__i386__)
#    include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)

const char *const fastgru_activation_names[ACT_COUNT] = {
    "linear",       "tanh",       "sigmoid",      "relu",
    "relu6",        "leaky_relu", "elu",          "selu",
    "celu",         "exponential", "softplus",    "log_sigmoid",
    "softsign",     "silu",       "mish",         "gelu",
    "gelu_tanh",    "squareplus", "tanh_shrink",  "soft_shrink",
    "hard_shrink",  "threshold",  "hard_tanh",    "hard_sigmoid",
    "hard_sigmoid_keras2", "hard_silu", "sparse_plus", "sparse_sigmoid",
};

/* The fused loop wants vectors of a known width and unrolled tiles: gcc and clang have them.
 * FASTGRU_NO_VECTORS builds what a compiler without them would. */
#ifdef FASTGRU_NO_VECTORS
#elif defined(__clang__)
#    define UNROLL _Pragma("clang loop unroll(full)")
#    define VECTOR_BYTES 16
#elif defined(__GNUC__)
#    define UNROLL _Pragma("GCC unroll 16")
#    define VECTOR_BYTES 16
#endif
#ifdef __aarch64__
#    define VECTOR_REGISTERS 32
#else
#    define VECTOR_REGISTERS 16
#endif

#define MASKED_BYTES 0 /* no masked loads and stores */
#ifdef __aarch64__
#    define FUSED_MULTIPLY_ADD 1
#else
#    define FUSED_MULTIPLY_ADD 0
#endif
#define ISA base
#include "gates_template.h"
#undef ISA

#if (defined(__x86_64__) || defined(__i386__)) && defined(VECTOR_BYTES)
#    define HAVE_X86_ISA 1

#    ifdef __clang__
#        pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#    else
#        pragma GCC push_options
#        pragma GCC target("avx2,fma")
#    endif
#    undef VECTOR_BYTES
#    undef MASKED_BYTES
#    undef FUSED_MULTIPLY_ADD
#    define VECTOR_BYTES 32
#    define MASKED_BYTES 32
#    define FUSED_MULTIPLY_ADD 1
#    define ISA avx2
#    include "gates_template.h"
#    undef ISA
#    ifdef __clang__
#        pragma clang attribute pop
#        pragma clang attribute push(                                                              \
            __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))),                \
            apply_to = function)
#    else
#        pragma GCC pop_options
#        pragma GCC push_options
#        pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#    endif
#    undef VECTOR_BYTES
#    undef VECTOR_REGISTERS
#    undef MASKED_BYTES
#    define VECTOR_BYTES 64
#    define MASKED_BYTES 64
#    define VECTOR_REGISTERS 32
#    define ISA avx512
#    include "gates_template.h"
#    undef ISA
#    ifdef __clang__
#        pragma clang attribute pop
#    else
#        pragma GCC pop_options
#    endif
#endif

#ifdef HAVE_X86_ISA
const char *const fastgru_isa_names[] = {"base", "avx2", "avx512", NULL};

int fastgru_isa_supported(int isa) {
    __builtin_cpu_init();
    switch (isa) {
    case 0:
        return 1;
    case 1:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case 2:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    default:
        return 0;
    }
}

const kernels_f32 *fastgru_kernels_f32(int isa) {
    return isa == 2 ? &kernels_f32_avx512 : isa == 1 ? &kernels_f32_avx2 : &kernels_f32_base;
}

const kernels_f64 *fastgru_kernels_f64(int isa) {
    return isa == 2 ? &kernels_f64_avx512 : isa == 1 ? &kernels_f64_avx2 : &kernels_f64_base;
}
#else
const char *const fastgru_isa_names[] = {"base", NULL};

int fastgru_isa_supported(int isa) { return isa == 0; }

const kernels_f32 *fastgru_kernels_f32(int isa) {
    (void)isa;
    return &kernels_f32_base;
}

const kernels_f64 *fastgru_kernels_f64(int isa) {
    (void)isa;
    return &kernels_f64_base;
}
#endif
