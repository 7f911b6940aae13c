/* A chunk of steps in one launch: U stays in shared memory, the state goes round through global.
 *
 * Every block owns the units u0 .. u0 + own of all rows, with the columns of U that make them. A
 * step: the rows of the state are read, `tile` of them at a time; warps make the sums, their lanes
 * share the products of one; threads make gates and the new state as in gru_kernels.cu; then all
 * blocks wait for each other. States alternate between two buffers, so that one wait a step is
 * enough, two with reset_after=False.
 *
 * All blocks have to be resident at once: the launch is cooperative. An element (b, u) is always
 * the same thread's, which reads back what it wrote in the step before; what others wrote is read
 * by `fresh`.
 */

#ifndef EMULATED
#define SHARED(type, name)                                                                         \
    extern __shared__ double shared_bytes[];                                                       \
    type *name = (type *)shared_bytes
/* Wait for all blocks, for the round-th time. arrived is 0 before the launch. */
__device__ inline void grid_barrier(unsigned *arrived, unsigned round) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); /* what this block wrote, before it counts as arrived */
        atomicAdd(arrived, 1u);
        while (*(volatile unsigned *)arrived < round * gridDim.x) {
        }
        __threadfence();
    }
    __syncthreads();
}
#define GRID_BARRIER(arrived, round) grid_barrier(arrived, round)
#endif

#define ROWS 4 /* of a tile, that a warp multiplies at a time: U is read once for all of them */
#define ALL_LANES 0xffffffffu

/* What another block wrote in this launch, past the first-level cache, which does not see that. */
__device__ inline MATH fresh(const STORE *at) {
#if FLOAT_BITS == 16
    const STORE value = {*(const volatile unsigned short *)&at->bits};
    return load(&value);
#else
    return *(const volatile STORE *)at;
#endif
}

/* A block's units, and its shared memory:
 *   us (own, 3, H) U's columns   hs (planes, tile, H) states   sums (tile, 3, own) */
struct Share {
    int u0, own, tile, H;
    MATH *us, *hs, *sums;
};

__device__ inline Share share_of_block(const Call &c, long long units, long long tile,
                                       const STORE *u, MATH *memory) {
    Share my;
    my.H = c.H;
    my.u0 = blockIdx.x * units;
    my.own = my.H - my.u0 < units ? my.H - my.u0 : units;
    my.tile = tile;
    my.us = memory;
    my.sums = my.us + 3 * units * c.H;
    my.hs = my.sums + 3 * units * tile;
    for (int e = threadIdx.x; e < 3 * my.own * my.H; e += blockDim.x) {
        const int j = e % my.own, g = e / my.own % 3, k = e / (3 * my.own);
        my.us[(3 * j + g) * my.H + k] = load(u + k * 3 * c.H + g * c.H + my.u0 + j);
    }
    return my;
}

/* The part of a tile's elements that a thread makes: row0 + row, unit u0 + j, sums at q. */
struct Element {
    long long b, unit;
    const MATH *q;
};
__device__ inline Element element(const Share &my, int e, long long row0) {
    const int row = e / my.own, j = e % my.own;
    return {row0 + row, my.u0 + j, my.sums + row * 3 * my.own + j};
}

/* sums of the gates FIRST .. END for rows row0 .. row0 + rows, from states (PLANES, B, H): with
 * three planes each gate has its own, with one all share it. */
template <int FIRST, int END, int PLANES>
__device__ inline void multiply(const Call &c, const Share &my, const STORE *states, long long row0,
                                int rows) {
    constexpr int GATES = END - FIRST;
    const int H = my.H, lane = threadIdx.x % 32, groups = (rows + ROWS - 1) / ROWS;
    for (int g = 0; g < (PLANES == 1 ? 1 : GATES); g++) {
        const STORE *from = states + ((PLANES == 1 ? 0 : FIRST + g) * c.B + row0) * H;
        for (int i = threadIdx.x; i < rows * H; i += blockDim.x)
            my.hs[g * my.tile * H + i] = fresh(from + i);
    }
    __syncthreads();
    for (int job = threadIdx.x / 32; job < my.own * groups; job += blockDim.x / 32) {
        const int j = job % my.own, first = job / my.own * ROWS;
        const MATH *us = my.us + (3 * j + FIRST) * H;
        MATH sums[ROWS][GATES] = {};
        for (int k = lane; k < H; k += 32)
            for (int r = 0; r < ROWS; r++) {
                /* a row too many is multiplied again and not kept */
                const int row = first + r < rows ? first + r : rows - 1;
                for (int g = 0; g < GATES; g++)
                    sums[r][g] += us[g * H + k] *
                                  my.hs[((PLANES == 1 ? 0 : g) * my.tile + row) * H + k];
            }
        for (int r = 0; r < ROWS; r++)
            for (int g = 0; g < GATES; g++) {
                MATH sum = sums[r][g];
                for (int apart = 16; apart > 0; apart /= 2)
                    sum += __shfl_xor_sync(ALL_LANES, sum, apart);
                if (lane == 0 && first + r < rows)
                    my.sums[((first + r) * 3 + FIRST + g) * my.own + j] = sum;
            }
    }
    __syncthreads();
}

/* n steps from s0 on, reset_after=True.
 *   units, tile         of a block, of a tile; blocks = ceil(H / units), whole warps
 *   p (n, B, 3, H)      x.W of these steps   u (H, 3, H)   bias (4, H)
 *   h (2, B, H), k (2, 3, B, H) or NULL: step s reads buffer s % 2 and writes the other
 *   arrived             one 0 */
KERNEL steps_after(Call c, Results out, long long s0, long long n, long long units, long long tile,
                   const MATH *p, const STORE *u, const MATH *bias, STORE *h, STORE *k,
                   unsigned *arrived) {
    SHARED(MATH, memory);
    const Share my = share_of_block(c, units, tile, u, memory);
    const long long size = c.B * c.H;
    for (long long s = s0; s < s0 + n; s++, p += 3 * size) {
        STORE *now = h + s % 2 * size, *next = h + (s + 1) % 2 * size;
        STORE *k_now = k + s % 2 * 3 * size, *k_next = k + (s + 1) % 2 * 3 * size;
        for (long long row0 = 0; row0 < c.B; row0 += tile) {
            const int rows = c.B - row0 < tile ? c.B - row0 : tile;
            if (c.recurrent_dropout)
                multiply<0, 3, 3>(c, my, k_now, row0, rows);
            else
                multiply<0, 3, 1>(c, my, now, row0, rows);
            for (int e = threadIdx.x; e < rows * my.own; e += blockDim.x) {
                const Element at = element(my, e, row0);
                const MATH before = load(now + at.b * c.H + at.unit);
                const MATH after = new_state(c, out, at.b, at.unit, s, p, bias, at.q[0],
                                             at.q[my.own], at.q[2 * my.own], before);
                end_step(c, out, at.b, at.unit, s, before, after, next, k_next);
            }
        }
        if (s + 1 < s0 + n)
            GRID_BARRIER(arrived, (unsigned)(s + 1 - s0));
    }
}

/* The same of reset_after=False; z (B, H) and rk (B, H) are scratch. */
KERNEL steps_before(Call c, Results out, long long s0, long long n, long long units, long long tile,
                    const MATH *p, const STORE *u, const MATH *bias, STORE *h, STORE *k,
                    unsigned *arrived, MATH *z, STORE *rk) {
    SHARED(MATH, memory);
    const Share my = share_of_block(c, units, tile, u, memory);
    const long long size = c.B * c.H;
    for (long long s = s0; s < s0 + n; s++, p += 3 * size) {
        STORE *now = h + s % 2 * size, *next = h + (s + 1) % 2 * size;
        STORE *k_now = k + s % 2 * 3 * size, *k_next = k + (s + 1) % 2 * 3 * size;
        for (long long row0 = 0; row0 < c.B; row0 += tile) {
            const int rows = c.B - row0 < tile ? c.B - row0 : tile;
            if (c.recurrent_dropout)
                multiply<0, 2, 3>(c, my, k_now, row0, rows);
            else
                multiply<0, 2, 1>(c, my, now, row0, rows);
            for (int e = threadIdx.x; e < rows * my.own; e += blockDim.x) {
                const Element at = element(my, e, row0);
                const STORE *seen = c.recurrent_dropout ? k_now + 2 * size : now;
                reset_state(c, out, at.b, at.unit, s, p, bias, at.q[0], at.q[my.own],
                            load(seen + at.b * c.H + at.unit), z, rk);
            }
        }
        GRID_BARRIER(arrived, (unsigned)(2 * (s - s0) + 1));
        for (long long row0 = 0; row0 < c.B; row0 += tile) {
            const int rows = c.B - row0 < tile ? c.B - row0 : tile;
            multiply<2, 3, 1>(c, my, rk, row0, rows);
            for (int e = threadIdx.x; e < rows * my.own; e += blockDim.x) {
                const Element at = element(my, e, row0);
                const long long i = at.b * c.H + at.unit;
                const MATH before = load(now + i);
                const MATH after = new_state_of_reset(c, out, at.b, at.unit, s, p, bias,
                                                      at.q[2 * my.own], z[i], before);
                end_step(c, out, at.b, at.unit, s, before, after, next, k_next);
            }
        }
        if (s + 1 < s0 + n)
            GRID_BARRIER(arrived, (unsigned)(2 * (s - s0) + 2));
    }
}
