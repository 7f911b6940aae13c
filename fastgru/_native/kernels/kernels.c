/* Names of activations and instruction sets, and the kernel tables of a set. */
#include "kernels.h"

#include <stddef.h>

#define NAME_STRING(NAME, name) #name,
const char *const fastgru_activation_names[ACT_COUNT] = {FASTGRU_ACTIVATIONS(NAME_STRING)};

#ifdef FASTGRU_X86_ISA
#    define FASTGRU_TABLE(DTYPE)                                                                   \
        isa == 2   ? fastgru_kernels_##DTYPE##_avx512()                                            \
        : isa == 1 ? fastgru_kernels_##DTYPE##_avx2()                                              \
                   : fastgru_kernels_##DTYPE##_base()
const char *const fastgru_isa_names[] = {"base", "avx2", "avx512", NULL};

int fastgru_isa_supported(int isa) {
    __builtin_cpu_init();
    if (isa == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return isa == 0;
}
#else
#    define FASTGRU_TABLE(DTYPE) ((void)isa, fastgru_kernels_##DTYPE##_base())
const char *const fastgru_isa_names[] = {"base", NULL};

int fastgru_isa_supported(int isa) { return isa == 0; }
#endif

const kernels_f32 *fastgru_kernels_f32(int isa) { return FASTGRU_TABLE(f32); }
const kernels_f64 *fastgru_kernels_f64(int isa) { return FASTGRU_TABLE(f64); }
