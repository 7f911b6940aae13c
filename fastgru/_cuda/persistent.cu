/* Many steps in one launch: U stays in shared memory, what blocks exchange goes through global.
 *
 * Every block owns the units u0 .. u0 + own of all rows, with the columns of U that make them, or
 * on the way back the rows. A step: what all blocks made is read, `tile` rows of the batch at a
 * time; warps make the sums, their lanes share the products of one; threads make gates and the new
 * state as in gru_kernels.cu; then all blocks wait for each other. With reset_after=False they do
 * all that twice.
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
 *   us (own, 3, H)   what of U multiplies, for each of its units
 *   hs (planes, tile, H)   what it is multiplied with   sums (tile, 3, own) */
struct Share {
    int u0, own, tile, H;
    unsigned long long per_row; /* i / H is i * per_row >> 32 where i * H < 2^32, as in any hs */
    MATH *us, *hs, *sums;
};

/* u (H, 3, H): columns are taken, or with BACK rows. */
template <bool BACK>
__device__ inline Share share_of_block(const Call &c, long long units, long long tile,
                                       const STORE *u, MATH *memory) {
    Share my;
    my.H = c.H;
    my.u0 = blockIdx.x * units;
    my.own = my.H - my.u0 < units ? my.H - my.u0 : units;
    my.tile = tile;
    my.per_row = (1ull << 32) / my.H + 1;
    my.us = memory;
    my.sums = my.us + 3 * units * c.H;
    my.hs = my.sums + 3 * units * tile;
    for (int e = threadIdx.x; e < 3 * my.own * my.H; e += blockDim.x) {
        if (BACK) {
            my.us[e] = load(u + my.u0 * 3 * c.H + e);
        } else {
            const int j = e % my.own, g = e / my.own % 3, k = e / (3 * my.own);
            my.us[(3 * j + g) * my.H + k] = load(u + k * 3 * c.H + g * c.H + my.u0 + j);
        }
    }
    return my;
}

/* What U is multiplied with: rows of H elements of each row of the batch and of each gate; with a
 * step of 0 from gate to gate all gates have the same. */
struct Factors {
    const STORE *from;
    long long row_step, gate_step;
};

/* sums of the gates FIRST .. END for rows row0 .. row0 + rows; from: of gate FIRST. With ONE_ROW
 * all gates multiply the same, with ONE_SUM their sums are added up, and are gate FIRST's. */
template <int FIRST, int END, bool ONE_ROW, bool ONE_SUM>
__device__ inline void multiply(const Share &my, const Factors &factors, long long row0, int rows) {
    constexpr int GATES = END - FIRST, SUMS = ONE_SUM ? 1 : GATES;
    const int H = my.H, lane = threadIdx.x % 32, groups = (rows + ROWS - 1) / ROWS;
    for (int g = 0; g < (ONE_ROW ? 1 : GATES); g++) {
        const STORE *from = factors.from + row0 * factors.row_step + g * factors.gate_step;
        for (int i = threadIdx.x; i < rows * H; i += blockDim.x) {
            const long long row = i * my.per_row >> 32;
            my.hs[g * my.tile * H + i] = fresh(from + row * (factors.row_step - H) + i);
        }
    }
    __syncthreads();
    for (int job = threadIdx.x / 32; job < my.own * groups; job += blockDim.x / 32) {
        const int j = job % my.own, first = job / my.own * ROWS;
        const MATH *us = my.us + (3 * j + FIRST) * H;
        MATH sums[ROWS][SUMS] = {};
        for (int k = lane; k < H; k += 32)
            for (int r = 0; r < ROWS; r++) {
                /* a row too many is multiplied again and not kept */
                const int row = first + r < rows ? first + r : rows - 1;
                for (int g = 0; g < GATES; g++)
                    sums[r][ONE_SUM ? 0 : g] +=
                        us[g * H + k] * my.hs[((ONE_ROW ? 0 : g) * my.tile + row) * H + k];
            }
        for (int r = 0; r < ROWS; r++)
            for (int g = 0; g < SUMS; g++) {
                MATH sum = sums[r][g];
                for (int apart = 16; apart > 0; apart /= 2)
                    sum += __shfl_xor_sync(ALL_LANES, sum, apart);
                if (lane == 0 && first + r < rows)
                    my.sums[((first + r) * 3 + FIRST + g) * my.own + j] = sum;
            }
    }
    __syncthreads();
}

/* product(row0, rows) and then element(b, u, q) for all elements of the block, tile by tile; q: the
 * element's sums, my.own apart. Threads come from the first part to the second together. */
template <class Product, class Element>
__device__ inline void each_tile(const Call &c, const Share &my, Product product, Element element) {
    for (long long row0 = 0; row0 < c.B; row0 += my.tile) {
        const int rows = c.B - row0 < my.tile ? c.B - row0 : my.tile;
        product(row0, rows);
        for (int e = threadIdx.x; e < rows * my.own; e += blockDim.x) {
            const int row = e / my.own, j = e % my.own;
            element(row0 + row, my.u0 + j, my.sums + row * 3 * my.own + j);
        }
    }
}

/* ---- forward -----------------------------------------------------------------------------------
 *
 * n steps from s0 on; steps_after with reset_after=True, steps_before with False.
 *   units, tile         of a block, of a tile; blocks = ceil(H / units), whole warps
 *   p (n, B, 3, H)      x.W of these steps   u (H, 3, H)   bias (4, H)
 *   h (2, B, H), k (2, 3, B, H) or NULL: step s reads buffer s % 2 and writes the other, so that
 *                       one wait a step is enough
 *   arrived             one 0
 *   z (B, H), rk (B, H) scratch
 */

/* k.U of the gates 0 .. END of step s; k (3, B, H), or h (B, H) where k is NULL. */
template <int END>
__device__ inline void state_product(const Call &c, const Share &my, const STORE *h, const STORE *k,
                                     long long row0, int rows) {
    if (c.recurrent_dropout)
        multiply<0, END, false, false>(my, {k, c.H, c.B * c.H}, row0, rows);
    else
        multiply<0, END, true, false>(my, {h, c.H, 0}, row0, rows);
}

KERNEL steps_after(Call c, Results out, long long s0, long long n, long long units, long long tile,
                   const MATH *p, const STORE *u, const MATH *bias, STORE *h, STORE *k,
                   unsigned *arrived) {
    SHARED(MATH, memory);
    const Share my = share_of_block<false>(c, units, tile, u, memory);
    const long long size = c.B * c.H;
    for (long long s = s0; s < s0 + n; s++, p += 3 * size) {
        STORE *now = h + s % 2 * size, *next = h + (s + 1) % 2 * size;
        STORE *k_now = k + s % 2 * 3 * size, *k_next = k + (s + 1) % 2 * 3 * size;
        if (s > s0)
            GRID_BARRIER(arrived, (unsigned)(s - s0));
        each_tile(
            c, my,
            [&](long long row0, int rows) { state_product<3>(c, my, now, k_now, row0, rows); },
            [&](long long b, long long unit, const MATH *q) {
                const MATH before = load(now + b * c.H + unit);
                const MATH after = new_state(c, out, b, unit, s, p, bias, q[0], q[my.own],
                                             q[2 * my.own], before);
                end_step(c, out, b, unit, s, before, after, next, k_next);
            });
    }
}

KERNEL steps_before(Call c, Results out, long long s0, long long n, long long units, long long tile,
                    const MATH *p, const STORE *u, const MATH *bias, STORE *h, STORE *k,
                    unsigned *arrived, MATH *z, STORE *rk) {
    SHARED(MATH, memory);
    const Share my = share_of_block<false>(c, units, tile, u, memory);
    const long long size = c.B * c.H;
    unsigned round = 0;
    for (long long s = s0; s < s0 + n; s++, p += 3 * size) {
        STORE *now = h + s % 2 * size, *next = h + (s + 1) % 2 * size;
        STORE *k_now = k + s % 2 * 3 * size, *k_next = k + (s + 1) % 2 * 3 * size;
        const STORE *seen = c.recurrent_dropout ? k_now + 2 * size : now;
        if (s > s0)
            GRID_BARRIER(arrived, ++round);
        each_tile(
            c, my,
            [&](long long row0, int rows) { state_product<2>(c, my, now, k_now, row0, rows); },
            [&](long long b, long long unit, const MATH *q) {
                reset_state(c, out, b, unit, s, p, bias, q[0], q[my.own],
                            load(seen + b * c.H + unit), z, rk);
            });
        GRID_BARRIER(arrived, ++round);
        each_tile(
            c, my,
            [&](long long row0, int rows) {
                multiply<2, 3, true, false>(my, {rk, c.H, 0}, row0, rows);
            },
            [&](long long b, long long unit, const MATH *q) {
                const long long i = b * c.H + unit;
                const MATH before = load(now + i);
                const MATH after = new_state_of_reset(c, out, b, unit, s, p, bias, q[2 * my.own],
                                                      z[i], before);
                end_step(c, out, b, unit, s, before, after, next, k_next);
            });
    }
}

/* ---- backward ----------------------------------------------------------------------------------
 *
 * All steps, from the last to the first, and dh0. What a step makes of d is read by all blocks in
 * the next, and has its own place in d.
 *   states, dy, d       as in back_step
 *   carry (B, H)        in: the gradient of the last state; overwritten
 *   pending (B, H)      zeros; overwritten
 *   dh0 (B, H)          out
 */
template <bool AFTER>
__device__ inline void walk_back(const Call &c, const Share &my, const STORE *states,
                                 const STORE *dy, MATH *carry, MATH *pending, STORE *d, STORE *dh0,
                                 unsigned *arrived) {
    constexpr int GATES = AFTER ? 3 : 2;
    const long long H = c.H;
    unsigned round = 0;
    for (long long s = c.T - 1; s >= -1; s--) {
        const STORE *later = d + (s + 1) * c.B * 4 * H;
        each_tile(
            c, my,
            [&](long long row0, int rows) {
                if (s + 1 == c.T)
                    return;
                if (c.recurrent_dropout)
                    multiply<0, GATES, false, false>(my, {later + H, 4 * H, H}, row0, rows);
                else
                    multiply<0, GATES, false, true>(my, {later + H, 4 * H, H}, row0, rows);
            },
            [&](long long b, long long unit, const MATH *q) {
                const long long i = b * H + unit;
                if (s >= 0)
                    gradient_of_step(c, b, unit, s, states, dy, q, my.own, carry, pending, d);
                else
                    store(dh0 + i, whole_carry(c, carry[i], q, my.own, b, i, 0));
            });
        if (s >= 0)
            GRID_BARRIER(arrived, ++round);
        if (AFTER || s < 0)
            continue;
        each_tile(
            c, my,
            [&](long long row0, int rows) {
                multiply<2, 3, true, false>(my, {later - c.B * 4 * H, 4 * H, 0}, row0, rows);
            },
            [&](long long b, long long unit, const MATH *q) {
                gradient_of_reset(c, b, unit, s, states, q[2 * my.own], carry, d);
            });
        GRID_BARRIER(arrived, ++round);
    }
}

KERNEL back_after(Call c, long long units, long long tile, const STORE *u, const STORE *states,
                  const STORE *dy, MATH *carry, MATH *pending, STORE *d, STORE *dh0,
                  unsigned *arrived) {
    SHARED(MATH, memory);
    const Share my = share_of_block<true>(c, units, tile, u, memory);
    walk_back<true>(c, my, states, dy, carry, pending, d, dh0, arrived);
}

KERNEL back_before(Call c, long long units, long long tile, const STORE *u, const STORE *states,
                   const STORE *dy, MATH *carry, MATH *pending, STORE *d, STORE *dh0,
                   unsigned *arrived) {
    SHARED(MATH, memory);
    const Share my = share_of_block<true>(c, units, tile, u, memory);
    walk_back<false>(c, my, states, dy, carry, pending, d, dh0, arrived);
}
