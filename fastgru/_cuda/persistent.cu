/* What persistent_forward.cu and persistent_back.cu have in common. A persistent kernel makes many
 * steps in one launch: U stays in shared memory, and the blocks exchange states or gradients
 * through global memory.
 *
 * Every block owns the units u0 .. u0 + own of all rows of the batch, and has their columns of U,
 * or in the walk back their rows. In a step a block reads what all blocks made, `tile` rows of the
 * batch at a time. The lanes of a warp divide the products of a sum among them. Threads then make
 * gates and the new state as in gru_kernels.cu, and all blocks wait for each other. With
 * reset_after=False each step has two such rounds.
 *
 * All blocks have to be resident at once, so that the launch is cooperative. The same thread makes
 * an element (b, u) in every step, and reads what it wrote in the step before.
 */

#ifndef EMULATED
#define SHARED(type, name)                                                                         \
    extern __shared__ double shared_bytes[];                                                       \
    type *name = (type *)shared_bytes
__device__ inline unsigned counted(const unsigned *at) { return *(const volatile unsigned *)at; }
#endif

/* Wait for all blocks, for the round-th time. arrived is 0 before the launch and may overflow.
 *
 * That a block sees what others wrote before the barrier follows from PTX's memory model (chapter
 * "Memory Consistency Model"). A thread's writes come before its block's first __syncthreads, and
 * that before thread 0's fence: bar.sync orders the threads of a block, and order is transitive.
 * The first fence and the atomicAdd are a release; a volatile load that sees this sum or a later
 * one and the second fence are an acquire: both accesses are strong, each in a scope that has all
 * threads of the device, and the atomics in between pass a release on. The last __syncthreads
 * passes the order on to the other threads. What is ordered so must be seen, by plain loads too:
 * for sm_90 the fence is compiled to MEMBAR.SC.GPU and CCTL.IVALL, which empties the
 * multiprocessor's first-level cache.
 *
 * In the same way reads before the barrier are done before the others' writes after it: buffers
 * that alternate need no second barrier. */
__device__ inline void grid_barrier(unsigned *arrived, unsigned round) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1u);
        while ((int)(counted(arrived) - round * gridDim.x) < 0)
            ;
        __threadfence();
    }
    __syncthreads();
}

#define ROWS 4 /* rows of a tile that a warp multiplies at a time, for one read of U */
#define LOADS 8 /* of a thread at a time: the compiler moves no volatile load past a store */
#define ALL_LANES 0xffffffffu

/* Read what another block wrote before the last barrier. A volatile load (on sm_90 LDG.STRONG.SYS)
 * bypasses the first-level cache, so that the numbers do not depend on the fence alone. A block
 * reads nothing twice. */
__device__ inline MATH fresh(const STORE *at) {
#if FLOAT_BITS == 16
    const STORE value = {*(const volatile unsigned short *)&at->bits};
    return load(&value);
#else
    return *(const volatile STORE *)at;
#endif
}

/* A block's units, and its shared memory:
 *   us (own, 3, H)         the columns or rows of U of its units
 *   hs (planes, tile, H)   what they are multiplied with
 *   sums (tile, 3, own) */
struct Share {
    int u0, own, tile, H;
    unsigned long long per_row; /* i / H is i * per_row >> 32 if i * H < 2^32, as in all hs */
    MATH *us, *hs, *sums;
};

/* Fill us from u (H, 3, H): with the columns of the block's units, or with BACK their rows. */
template <bool BACK>
__device__ inline Share share_of_block(const Common &c, long long units, long long tile,
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

/* What U is multiplied with: H elements for each row of the batch and each gate; with gate_step 0
 * all gates have the same. */
struct Factors {
    const STORE *from;
    long long row_step, gate_step;
};

/* Make my.sums of the gates FIRST .. END for rows row0 .. row0 + rows; factors: of gate FIRST. With
 * ONE_ROW all gates multiply the same elements. With ONE_SUM their sums are added up, in the place
 * of gate FIRST. */
template <int FIRST, int END, bool ONE_ROW, bool ONE_SUM>
__device__ inline void multiply(const Share &my, const Factors &factors, long long row0, int rows) {
    constexpr int GATES = END - FIRST, SUMS = ONE_SUM ? 1 : GATES;
    const int H = my.H, lane = threadIdx.x % 32, groups = (rows + ROWS - 1) / ROWS;
    for (int g = 0; g < (ONE_ROW ? 1 : GATES); g++) {
        const STORE *from = factors.from + row0 * factors.row_step + g * factors.gate_step;
        const int count = rows * H, width = blockDim.x;
        for (int first = threadIdx.x; first < count; first += LOADS * width) {
            MATH values[LOADS];
            for (int n = 0, i = first; n < LOADS; n++, i += width)
                if (i < count) {
                    const long long row = i * my.per_row >> 32;
                    values[n] = fresh(from + row * (factors.row_step - H) + i);
                }
            for (int n = 0, i = first; n < LOADS; n++, i += width)
                if (i < count)
                    my.hs[g * my.tile * H + i] = values[n];
        }
    }
    __syncthreads();
    for (int job = threadIdx.x / 32; job < my.own * groups; job += blockDim.x / 32) {
        const int j = job % my.own, first = job / my.own * ROWS;
        const MATH *us = my.us + (3 * j + FIRST) * H;
        MATH sums[ROWS][SUMS] = {};
        for (int k = lane; k < H; k += 32)
            for (int r = 0; r < ROWS; r++) {
                /* past the tile, the last row is multiplied again and its sum is not kept */
                const int row = first + r < rows ? first + r : rows - 1;
                for (int g = 0; g < GATES; g++)
                    sums[r][ONE_SUM ? 0 : g] +=
                        us[g * H + k] * my.hs[((ONE_ROW ? 0 : g) * my.tile + row) * H + k];
            }
        for (int r = 0; r < ROWS && first + r < rows; r++)
            for (int g = 0; g < SUMS; g++) {
                MATH sum = sums[r][g];
                for (int apart = 16; apart > 0; apart /= 2)
                    sum += __shfl_xor_sync(ALL_LANES, sum, apart);
                if (lane == 0)
                    my.sums[((first + r) * 3 + FIRST + g) * my.own + j] = sum;
            }
    }
    __syncthreads();
}

/* Tile by tile, call product(row0, rows) and then element(b, u, q) for all elements of the block; q
 * points to the element's sums, my.own apart. product ends with a __syncthreads. */
template <class Product, class Element>
__device__ inline void each_tile(const Common &c, const Share &my, Product product,
                                 Element element) {
    for (long long row0 = 0; row0 < c.B; row0 += my.tile) {
        const int rows = c.B - row0 < my.tile ? c.B - row0 : my.tile;
        product(row0, rows);
        for (int e = threadIdx.x; e < rows * my.own; e += blockDim.x) {
            const int row = e / my.own, j = e % my.own;
            element(row0 + row, my.u0 + j, my.sums + row * 3 * my.own + j);
        }
    }
}
