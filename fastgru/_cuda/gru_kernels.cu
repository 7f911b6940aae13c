/* The kernels between the matrix products of a step, forward and back, for any configuration.
 *
 * fastgru/backends/cuda_call.py and cuda_steps.py launch them. One thread makes one element. Of the
 * arrays that a kernel writes, it reads and writes that element only: nothing has to be
 * synchronised, and buffers are updated in place.
 */

/* Steps s0 .. s0 + n of x in processing order, zeros where masked, times each dropout mask.
 *   x (B, T, I) strides x_b, x_t, x_i    dropout (gates, B, I); NULL: none, gates is 1
 *   out (gates, n, B, I) */
KERNEL pack_x(Common c, long long s0, long long n, const STORE *x, long long x_b, long long x_t,
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
KERNEL start(Common c, STORE *h, STORE *k) {
    const long long i = THREAD, b = i / c.H;
    if (i < c.B * c.H)
        start_step(c, b, i, 0, c.h0 ? load(c.h0 + i) : L(0.0), h, k);
}

/* Step s of reset_after=True; p and bias as in gru_step.cu, q (B, 3, H) = k.U.
 *   h (B, H), k (3, B, H)   in: what step s starts from; out: what step s + 1 starts from */
KERNEL step_after(Common c, Results out, long long s, const MATH *p, const MATH *q,
                  const MATH *bias, STORE *h, STORE *k) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    q += 3 * H * b + u;
    const MATH before = load(h + i);
    const MATH after = new_state(c, out, b, u, s, p, bias, q[0], q[H], q[2 * H], before);
    end_step(c, out, b, u, s, before, after, h, k);
}

/* Step s of reset_after=False, before the candidate's product: q's gates z and r. */
KERNEL step_before_zr(Common c, Results out, long long s, const MATH *p, const MATH *q,
                      const MATH *bias, const STORE *h, const STORE *k, MATH *z, STORE *rk) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    q += 3 * H * b + u;
    const MATH k_h = load(c.recurrent_dropout ? k + 2 * c.B * H + i : h + i);
    reset_state(c, out, b, u, s, p, bias, q[0], q[H], k_h, z, rk);
}

/* The same step after the candidate's product: q's third gate is rk.Uh. */
KERNEL step_before_h(Common c, Results out, long long s, const MATH *p, const MATH *q,
                     const MATH *bias, STORE *h, STORE *k, const MATH *z) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    const MATH before = load(h + i), q_h = q[3 * H * b + 2 * H + u];
    const MATH after = new_state_of_reset(c, out, b, u, s, p, bias, q_h, z[i], before);
    end_step(c, out, b, u, s, before, after, h, k);
}

/* ---- backward: gru_step.cu has the equations ------------------------------------------------- */

/* Step s of the walk back.
 *   states (T, B, H)       dy (B, T, H) or (B, H); NULL: zeros
 *   products (planes, B, H)   of step s + 1; not read in step T - 1
 *   carry (B, H)           in: gradient of the state after step s but for the products; out: the
 *                          same of step s - 1
 *   pending (B, H)         gradients of later outputs that repeat an earlier one; zeros at first
 *   d (T, B, 4, H)         in: step s as forward kept it; out: its gradients, zeros for masked
 *                          rows */
KERNEL back_step(Common c, long long s, const STORE *states, const STORE *dy, const MATH *products,
                 MATH *carry, MATH *pending, STORE *d) {
    const long long i = THREAD, size = c.B * c.H;
    if (i < size)
        gradient_of_step(c, i / c.H, i % c.H, s, states, dy, products + i, size, carry, pending, d);
}

/* Step s of reset_after=False after the product e (B, H). */
KERNEL back_reset(Common c, long long s, const STORE *states, const MATH *e, MATH *carry,
                  STORE *d) {
    const long long i = THREAD;
    if (i < c.B * c.H)
        gradient_of_reset(c, i / c.H, i % c.H, s, states, e[i], carry, d);
}

/* dh0 (B, H) from the carry and the products of step 0. */
KERNEL back_end(Common c, const MATH *carry, const MATH *products, STORE *dh0) {
    const long long i = THREAD, size = c.B * c.H;
    if (i < size)
        store(dh0 + i, whole_carry(c, carry[i], products + i, size, i / c.H, i, 0));
}

/* What U was multiplied with, for its gradient: k (planes, T, B, H), zeros where masked. */
KERNEL recurrent_inputs(Common c, const STORE *states, STORE *k) {
    const long long j = THREAD, size = c.B * c.H, s = j / size, i = j % size, b = i / c.H;
    if (j >= c.T * size)
        return;
    const MATH h = valid(c, b, s) ? state_before(c, states, b, i, s) : L(0.0);
    for (int g = 0; g < planes(c); g++)
        store(k + g * c.T * size + j, dropped(c, g, i, h));
}

/* dx (B, T, I) in input order, from each gate's share of it: products (gates, T, B, I), in
 * processing order; dropout as in pack_x. */
KERNEL unpack_dx(Common c, const MATH *products, const STORE *dropout, long long gates, STORE *dx) {
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
