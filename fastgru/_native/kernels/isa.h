/* What isa_base.c, isa_avx2.c and isa_avx512.c have in common. Each of them compiles isa_template.h
 * for one instruction set. They are three files because they take most of the time of a build: so
 * they are compiled side by side.
 *
 * No file needs compiler flags of its own: gcc and clang change the target by pragma. So any
 * setuptools build makes one binary for all machines. Elsewhere (MSVC; aarch64, whose baseline has
 * NEON) "base" is the only set, and the other two files are empty.
 */
#ifndef FASTGRU_ISA_H
#define FASTGRU_ISA_H

#include "kernels.h"
#include "job.h"

#include <math.h>
#if defined(__x86_64__) || defined(__i386__)
#    include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)

/* A tile keeps its sums in registers only where the compiler unrolls its loops. */
#if defined(__clang__)
#    define UNROLL _Pragma("clang loop unroll(full)")
#else
#    define UNROLL _Pragma("GCC unroll 16")
#endif

/* Types that the templates define, once for each dtype and set, as FN is. */
#define VEC FN(vector)
#define OPERANDS FN(operands)
#define TILE_FUNCTION FN(tile)
#define TILE_SIZES FN(tiles)
#define EPILOGUE_FUNCTION FN(epilogue)
#define STEP FN(step)
#define PART FN(part)
#define NARROW FN(narrow)
#define BACK_STEP FN(back_step)
#define BACK_PART FN(back_part)
#define FACTORS FN(factors)
#define FACTOR_FUNCTION FN(factor_tile)
#define GROUP FN(group)

#endif
