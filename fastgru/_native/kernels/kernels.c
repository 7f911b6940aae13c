/* Names of activations and instruction sets, and the kernel tables of a set. */
#include "kernels.h"

#include <stddef.h>

#define NAME_STRING(NAME, name) #name,
const char *const fastgru_activation_names[ACT_COUNT] = {FASTGRU_ACTIVATIONS(NAME_STRING)};

#ifdef FASTGRU_X86_ISA
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
    return isa == 2   ? fastgru_kernels_f32_avx512()
           : isa == 1 ? fastgru_kernels_f32_avx2()
                      : fastgru_kernels_f32_base();
}

const kernels_f64 *fastgru_kernels_f64(int isa) {
    return isa == 2   ? fastgru_kernels_f64_avx512()
           : isa == 1 ? fastgru_kernels_f64_avx2()
                      : fastgru_kernels_f64_base();
}
#else
const char *const fastgru_isa_names[] = {"base", NULL};

int fastgru_isa_supported(int isa) { return isa == 0; }

const kernels_f32 *fastgru_kernels_f32(int isa) {
    (void)isa;
    return fastgru_kernels_f32_base();
}

const kernels_f64 *fastgru_kernels_f64(int isa) {
    (void)isa;
    return fastgru_kernels_f64_base();
}
#endif
