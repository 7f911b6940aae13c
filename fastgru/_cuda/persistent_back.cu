/* Backward: all steps, with the rows of U in shared memory; gru_step.cu has the equations. In a
 * step all blocks read what the step before wrote to d, where every step has its own place.
 *
 *   units, tile         units of a block, rows of a tile; blocks = ceil(H / units), whole warps
 *   u (H, 3, H)         states, dy, d   as in back_step
 *   carry (B, H)        in: the gradient of the last state; overwritten
 *   pending (B, H)      zeros; overwritten
 *   dh0 (B, H)          out
 *   arrived             one 0
 */

/* The products of step s + 1, and then of the block's elements step s up to the candidate's
 * product, or dh0 for step -1. Then all blocks wait. GATES: how many multiply k. */
template <int GATES>
__device__ inline void step_back(const Common &c, const Share &my, long long s, const STORE *states,
                                 const STORE *dy, MATH *carry, MATH *pending, STORE *d, STORE *dh0,
                                 unsigned *arrived, unsigned round) {
    const long long H = c.H;
    const Factors later = {d + (s + 1) * c.B * 4 * H + H, 4 * H, H};
    each_tile(
        c, my,
        [&](long long row0, int rows) {
            if (s + 1 == c.T)
                return;
            if (c.recurrent_dropout)
                multiply<0, GATES, false, false>(my, later, row0, rows);
            else
                multiply<0, GATES, false, true>(my, later, row0, rows);
        },
        [&](long long b, long long unit, const MATH *q) {
            const long long i = b * H + unit;
            if (s >= 0)
                gradient_of_step(c, b, unit, s, states, dy, q, my.own, carry, pending, d);
            else
                store(dh0 + i, whole_carry(c, carry[i], q, my.own, b, i, 0));
        });
    if (s >= 0)
        grid_barrier(arrived, round);
}

/* reset_after=True. */
KERNEL back_after(Common c, long long units, long long tile, const STORE *u, const STORE *states,
                  const STORE *dy, MATH *carry, MATH *pending, STORE *d, STORE *dh0,
                  unsigned *arrived) {
    SHARED(MATH, memory);
    const Share my = share_of_block<true>(c, units, tile, u, memory);
    unsigned round = 0;
    for (long long s = c.T - 1; s >= -1; s--)
        step_back<3>(c, my, s, states, dy, carry, pending, d, dh0, arrived, ++round);
}

/* reset_after=False. */
KERNEL back_before(Common c, long long units, long long tile, const STORE *u, const STORE *states,
                   const STORE *dy, MATH *carry, MATH *pending, STORE *d, STORE *dh0,
                   unsigned *arrived) {
    SHARED(MATH, memory);
    const Share my = share_of_block<true>(c, units, tile, u, memory);
    unsigned round = 0;
    for (long long s = c.T - 1; s >= -1; s--) {
        step_back<2>(c, my, s, states, dy, carry, pending, d, dh0, arrived, ++round);
        if (s < 0)
            break;
        each_tile(
            c, my,
            [&](long long row0, int rows) {
                const Factors da_n = {d + s * c.B * 4 * c.H, 4 * c.H, 0};
                multiply<2, 3, true, false>(my, da_n, row0, rows);
            },
            [&](long long b, long long unit, const MATH *q) {
                gradient_of_reset(c, b, unit, s, states, q[2 * my.own], carry, d);
            });
        grid_barrier(arrived, ++round);
    }
}
