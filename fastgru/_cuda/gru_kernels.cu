/* The kernels between the matrix products of a step, forward and back, for any configuration.
 *
 * fastgru/backends/cuda.py calls them and the products in turn. One thread makes one element, and
 * reads and writes only there: nothing has to be synchronised, and buffers are updated in place.
 */

/* Steps s0 .. s0 + n of x in processing order, zeros where masked, times each dropout mask.
 *   x (B, T, I) strides x_b, x_t, x_i    dropout (gates, B, I); NULL: none, gates is 1
 *   out (gates, n, B, I) */
KERNEL pack_x(Call c, long long s0, long long n, const STORE *x, long long x_b, long long x_t,
              long long x_i, const STORE *dropout, long long gates, STORE *out) {
    const long long j = THREAD, row = j / c.I, i = j % c.I, b = row % c.B, s = s0 + row / c.B;
    if (j >= n * c.B * c.I)
        return;
    const bool used = valid(c, b, s);
    const MATH value = used ? load(x + b * x_b + time_of(c, s) * x_t + i * x_i) : L(0.0);
    for (long long g = 0; g < gates; g++) {
        const MATH factor = dropout && used ? load(dropout + (g * c.B + b) * c.I + i) : L(1.0);
        store(out + g * n * c.B * c.I + j, value * factor);
    }
}

/* h and k of step 0, from h0. */
KERNEL start(Call c, STORE *h, STORE *k) {
    const long long i = THREAD, b = i / c.H;
    if (i < c.B * c.H)
        start_step(c, b, i, 0, c.h0 ? load(c.h0 + i) : L(0.0), h, k);
}

/* Step s of reset_after=True; p, bias as above, q (B, 3, H) = k.U.
 *   h (B, H), k (3, B, H): in what step s starts from, out s + 1 */
KERNEL step_after(Call c, Results out, long long s, const MATH *p, const MATH *q, const MATH *bias,
                  STORE *h, STORE *k) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    q += 3 * H * b + u;
    const MATH before = load(h + i);
    const MATH after = new_state(c, out, b, u, s, p, bias, q[0], q[H], q[2 * H], before);
    end_step(c, out, b, u, s, before, after, h, k);
}

/* Step s of reset_after=False, before the candidate's product: q's gates z and r. */
KERNEL step_before_zr(Call c, Results out, long long s, const MATH *p, const MATH *q,
                      const MATH *bias, const STORE *h, const STORE *k, MATH *z, STORE *rk) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    q += 3 * H * b + u;
    const MATH k_h = load(c.recurrent_dropout ? k + 2 * c.B * H + i : h + i);
    reset_state(c, out, b, u, s, p, bias, q[0], q[H], k_h, z, rk);
}

/* After it: q's third gate is rk.Uh. */
KERNEL step_before_h(Call c, Results out, long long s, const MATH *p, const MATH *q,
                     const MATH *bias, STORE *h, STORE *k, const MATH *z) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    const MATH before = load(h + i), q_h = q[3 * H * b + 2 * H + u];
    const MATH after = new_state_of_reset(c, out, b, u, s, p, bias, q_h, z[i], before);
    end_step(c, out, b, u, s, before, after, h, k);
}

/* ---- backward ---------------------------------------------------------------------------------
 *
 * Per step, for the rows that took it, with dh the gradient of h':
 *   dn = dh (1 - z)   dz = dh (h - n)   da_g = dg act'(a_g)
 *   after:   dr = da_n q                     dq_h = da_n r
 *   before:  e = da_n Uh^T   dr = e k_h      and k_h gets e r
 *   carry = dh z + sum_g dropout_g * (dq_g U_g^T)
 * A row of d is [da_n, da_z, da_r, dq_h], so that both what multiplies x and W, and what multiplies
 * h and U, is contiguous; with reset_after=False the last quarter is r k_h. d takes the place of
 * `kept`. The products dq.U^T of step s + 1 are added by the kernel of step s, which can drop those
 * of masked rows and needs no further launch.
 */

/* The state that step s starts from; i = b * H + u. states (T, B, H): the state after each step. */
__device__ inline MATH state_before(const Call &c, const STORE *states, long long b, long long i,
                                    long long s) {
    if (resets(c, b, s))
        return L(0.0);
    if (s > 0)
        return load(states + (s - 1) * c.B * c.H + i);
    return c.h0 ? load(c.h0 + i) : L(0.0);
}

/* The gradient of the state after step s - 1, complete: from the carry of step s and its products.
 * products (planes, B, H): planes is 3 with recurrent dropout, else 1. */
__device__ inline MATH whole_carry(const Call &c, const MATH *carry, const MATH *products,
                                   long long b, long long i, long long s) {
    MATH sum = carry[i];
    if (s == c.T)
        return sum;
    if (resets(c, b, s))
        return L(0.0);
    if (valid(c, b, s))
        for (int g = 0; g < (c.recurrent_dropout ? 3 : 1); g++)
            sum += dropped(c, g, i, products[g * c.B * c.H + i]);
    return sum;
}

/* Step s, on the way back.
 *   states (T, B, H)       dy (B, T, H) or (B, H); NULL: zeros
 *   products               of step s + 1; not read in step T - 1
 *   carry (B, H)           in: gradient of the state after step s but for the products; out: the
 *                          same of step s - 1
 *   pending (B, H)         gradients of later outputs that repeat an earlier one; zeros at first
 *   d (T, B, 4, H)         in: step s as forward kept it; out: see above, zeros for masked rows.
 *                          With reset_after=False da_r is still missing, and the last quarter is r
 *                          as it was kept */
KERNEL back_step(Call c, long long s, const STORE *states, const STORE *dy, const MATH *products,
                 MATH *carry, MATH *pending, STORE *d) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    d += (s * c.B + b) * 4 * H + u;
    MATH dh = whole_carry(c, carry, products, b, i, s + 1), dout = L(0.0);
    if (dy && c.sequences)
        dout = load(dy + (b * c.T + s) * H + u);
    else if (dy && s == c.T - 1)
        dout = load(dy + i);
    if (!valid(c, b, s)) {
        carry[i] = dh;
        if (!c.zero_masked)
            pending[i] += dout;
        for (int g = 0; g < 4; g++)
            store(d + g * H, L(0.0));
        return;
    }
    dh += dout + pending[i];
    pending[i] = L(0.0);
    const Slope z = gate_of_kept(load(d)), n = activation_of_kept(load(d + 2 * H));
    const MATH kept_r = load(d + H), da_n = dh * (L(1.0) - z.y) * n.slope;
    if (c.reset_after) {
        const Slope r = gate_of_kept(kept_r);
        store(d + 2 * H, da_n * load(d + 3 * H) * r.slope);
        store(d + 3 * H, da_n * r.y);
    } else {
        store(d + 3 * H, kept_r);
    }
    store(d, da_n);
    store(d + H, dh * (state_before(c, states, b, i, s) - n.y) * z.slope);
    carry[i] = dh * z.y;
}

/* Step s of reset_after=False after the product: e (B, H) = da_n.Uh^T; gives d its third and last
 * quarter and the carry its share. */
KERNEL back_reset(Call c, long long s, const STORE *states, const MATH *e, MATH *carry, STORE *d) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H || !valid(c, b, s))
        return;
    d += (s * c.B + b) * 4 * H + u;
    const Slope r = gate_of_kept(load(d + 3 * H));
    const MATH k = dropped(c, 2, i, state_before(c, states, b, i, s));
    store(d + 2 * H, e[i] * k * r.slope);
    store(d + 3 * H, r.y * k);
    carry[i] += dropped(c, 2, i, e[i] * r.y);
}

/* dh0 (B, H) from the carry and the products of step 0. */
KERNEL back_end(Call c, const MATH *carry, const MATH *products, STORE *dh0) {
    const long long i = THREAD;
    if (i < c.B * c.H)
        store(dh0 + i, whole_carry(c, carry, products, i / c.H, i, 0));
}

/* What multiplied U, for its gradient: k (planes, T, B, H) of each step, zeros where masked. */
KERNEL recurrent_inputs(Call c, const STORE *states, STORE *k) {
    const long long j = THREAD, size = c.B * c.H, s = j / size, i = j % size, b = i / c.H;
    if (j >= c.T * size)
        return;
    const MATH h = valid(c, b, s) ? state_before(c, states, b, i, s) : L(0.0);
    for (int g = 0; g < (c.recurrent_dropout ? 3 : 1); g++)
        store(k + g * c.T * size + j, dropped(c, g, i, h));
}

/* dx (B, T, I) in input order, from its share of each gate, products (gates, T, B, I) in processing
 * order; dropout as in pack_x. */
KERNEL unpack_dx(Call c, const MATH *products, const STORE *dropout, long long gates, STORE *dx) {
    const long long j = THREAD, row = j / c.I, i = j % c.I, b = row % c.B, s = row / c.B;
    if (j >= c.T * c.B * c.I)
        return;
    MATH sum = L(0.0);
    if (valid(c, b, s))
        for (long long g = 0; g < gates; g++) {
            const MATH share = products[g * c.T * c.B * c.I + j];
            sum += dropout ? share * load(dropout + (g * c.B + b) * c.I + i) : share;
        }
    store(dx + (b * c.T + time_of(c, s)) * c.I + i, sum);
}
