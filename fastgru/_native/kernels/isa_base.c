/* The instructions that every machine of the compiler's target has. */
#include "isa.h"

#ifdef FASTGRU_VECTORS
#    define VECTOR_BYTES 16
#endif
#ifdef __aarch64__
#    define VECTOR_REGISTERS 32
#    define FUSED_MULTIPLY_ADD 1
#else
#    define VECTOR_REGISTERS 16
#    define FUSED_MULTIPLY_ADD 0
#endif
#define MASKED_BYTES 0 /* no masked loads and stores */
#define ISA base
#include "isa_template.h"
