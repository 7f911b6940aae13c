/* AVX2 and FMA. */
#include "isa.h"

#ifdef FASTGRU_X86_ISA
#    define VECTOR_BYTES 32
#    define VECTOR_REGISTERS 16
#    define MASKED_BYTES 32
#    define FUSED_MULTIPLY_ADD 1
#    ifdef __clang__
#        pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#    else
#        pragma GCC target("avx2,fma")
#    endif
#    define ISA avx2
#    include "isa_template.h"
#    ifdef __clang__
#        pragma clang attribute pop
#    endif
#endif
