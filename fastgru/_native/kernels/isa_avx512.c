/* AVX-512 with its extensions F, BW, DQ and VL. */
#include "isa.h"

#ifdef FASTGRU_X86_ISA
#    define VECTOR_BYTES 64
#    define VECTOR_REGISTERS 32
#    define MASKED_BYTES 64
#    define FUSED_MULTIPLY_ADD 1
#    ifdef __clang__
#        pragma clang attribute push(                                                              \
            __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))),                \
            apply_to = function)
#    else
#        pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#    endif
#    define ISA avx512
#    include "isa_template.h"
#    ifdef __clang__
#        pragma clang attribute pop
#    endif
#endif
