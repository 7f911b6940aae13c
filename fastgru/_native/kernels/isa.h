/* What isa_base.c, isa_avx2.c and isa_avx512.c have in common: each includes the template for one
 * instruction set. They are three files because they take most of the time that a build takes: so
 * they are compiled side by side.
 *
 * No per-file flags: gcc and clang switch the target by pragma, so that a plain setuptools build
 * makes a binary for every machine. Elsewhere (aarch64, where the baseline has NEON; MSVC) there is
 * "base" alone, and the other two files are empty.
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

/* The fused loop wants vectors of a known width and unrolled tiles: gcc and clang have them. */
#if defined(__clang__)
#    define UNROLL _Pragma("clang loop unroll(full)")
#else
#    define UNROLL _Pragma("GCC unroll 16")
#endif

/* Types that the templates define: each dtype has its own, FN being its own too. */
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
