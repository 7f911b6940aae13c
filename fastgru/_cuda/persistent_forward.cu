/* Forward: a chunk of n steps from s0 on, with the columns of U in shared memory.
 *
 *   units, tile         units of a block, rows of a tile; blocks = ceil(H / units), whole warps
 *   p (n, B, 3, H)      x.W of these steps   u (H, 3, H)   bias (4, H)
 *   h (2, B, H), k (2, 3, B, H) or NULL: step s reads buffer s % 2 and writes the other one, so
 *                       that blocks do not have to wait between reading and writing
 *   arrived             one 0
 *   z (B, H), rk (B, H) scratch
 */

/* k.U of the gates 0 .. END of step s; k (3, B, H), or h (B, H) where k is NULL. */
template <int END>
__device__ inline void state_product(const Common &c, const Share &my, const STORE *h,
                                     const STORE *k, long long row0, int rows) {
    if (c.recurrent_dropout)
        multiply<0, END, false, false>(my, {k, c.H, c.B * c.H}, row0, rows);
    else
        multiply<0, END, true, false>(my, {h, c.H, 0}, row0, rows);
}

/* reset_after=True. */
KERNEL steps_after(Common c, Results out, long long s0, long long n, long long units,
                   long long tile, const MATH *p, const STORE *u, const MATH *bias, STORE *h,
                   STORE *k, unsigned *arrived) {
    SHARED(MATH, memory);
    const Share my = share_of_block<false>(c, units, tile, u, memory);
    const long long size = c.B * c.H;
    unsigned round = 0;
    for (long long s = s0; s < s0 + n; s++, p += 3 * size) {
        STORE *now = h + s % 2 * size, *next = h + (s + 1) % 2 * size;
        STORE *k_now = k + s % 2 * 3 * size, *k_next = k + (s + 1) % 2 * 3 * size;
        if (s > s0)
            grid_barrier(arrived, ++round);
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

/* reset_after=False. */
KERNEL steps_before(Common c, Results out, long long s0, long long n, long long units,
                    long long tile, const MATH *p, const STORE *u, const MATH *bias, STORE *h,
                    STORE *k, unsigned *arrived, MATH *z, STORE *rk) {
    SHARED(MATH, memory);
    const Share my = share_of_block<false>(c, units, tile, u, memory);
    const long long size = c.B * c.H;
    unsigned round = 0;
    for (long long s = s0; s < s0 + n; s++, p += 3 * size) {
        STORE *now = h + s % 2 * size, *next = h + (s + 1) % 2 * size;
        STORE *k_now = k + s % 2 * 3 * size, *k_next = k + (s + 1) % 2 * 3 * size;
        const STORE *seen = c.recurrent_dropout ? k_now + 2 * size : now;
        if (s > s0)
            grid_barrier(arrived, ++round);
        each_tile(
            c, my,
            [&](long long row0, int rows) { state_product<2>(c, my, now, k_now, row0, rows); },
            [&](long long b, long long unit, const MATH *q) {
                reset_state(c, out, b, unit, s, p, bias, q[0], q[my.own],
                            load(seen + b * c.H + unit), z, rk);
            });
        grid_barrier(arrived, ++round);
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
