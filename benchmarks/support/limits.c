/* What one core of this machine gives: the two loops that limits.py times, one call a thread. */
#include <stddef.h>
#include <string.h>

#if defined(__AVX512F__)
#    define BYTES 64
#elif defined(__AVX__)
#    define BYTES 32
#else
#    define BYTES 16
#endif
#define LANES (BYTES / 4)

typedef float vec __attribute__((vector_size(BYTES)));

/* Sums that do not wait for each other: two units with a latency of four cycles need eight; twelve
   leave registers for the operands where there are only sixteen. */
#define SUMS 12

static float total(const vec *sums, int count) {
    float out = 0.0f;
    for (int i = 0; i < count; i++)
        for (int lane = 0; lane < LANES; lane++)
            out += sums[i][lane];
    return out;
}

size_t fma_flop(size_t rounds) { return rounds * SUMS * LANES * 2; }

float fma_loop(size_t rounds, float factor, float term) {
    vec sums[SUMS], a, b;
    for (int lane = 0; lane < LANES; lane++) {
        a[lane] = factor;
        b[lane] = term;
    }
    for (int i = 0; i < SUMS; i++)
        sums[i] = b * (float)i;
    for (size_t n = 0; n < rounds; n++)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            sums[i] = sums[i] * a + b;
    return total(sums, SUMS);
}

/* `bytes` is a multiple of 8 vectors, the buffer is aligned to one. */
float read_loop(const char *buffer, size_t bytes, size_t rounds) {
    vec sums[8];
    memset(sums, 0, sizeof sums);
    for (size_t n = 0; n < rounds; n++) {
        for (size_t at = 0; at < bytes; at += 8 * BYTES)
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                sums[i] += *(const vec *)(buffer + at + i * BYTES);
        __asm__ volatile("" ::: "memory"); /* read it again, do not remember it */
    }
    return total(sums, 8);
}
