/* The GRU on a GPU, any configuration: what stands between the matrix products of a step.
 *
 * fastgru/backends/cuda.py calls these kernels and the products in turn; activations.cu, which is put
 * before this text, has the number types. Symbols: B batch, T timesteps, I inputs, H units; gates
 * z (update), r (reset), n (candidate); p = x.W, q = h.U; s a step in processing order and t the
 * time it reads. k is the state as a gate sees it: h, or h times the gate's recurrent dropout mask.
 *
 * One thread makes one element (row b, unit u) in every kernel but pack_x and unpack_dx, and reads
 * and writes only there: nothing has to be synchronised, and buffers are updated in place. Arrays
 * are C-contiguous unless strides, in elements, are named; none may overlap another one unless it
 * says so. Numbers of type MATH are sums, of type STORE what products take.
 *
 * x at masked steps is replaced by zeros before any product, and what a masked step would give is
 * dropped by a choice, not by a factor 0: a NaN there changes nothing.
 */

/* What is the same in all kernels of one call; all members have 8 bytes (kernels.py has its twin). */
struct Call {
    long long B, T, I, H;
    long long reset_after, reverse, sequences, zero_masked; /* flags of the problem */
    const unsigned char *steps;    /* (B, T) in input order, 0: masked; NULL: none */
    const long long *lengths;      /* (B): row b is valid for t < lengths[b]; NULL: none */
    const unsigned char *resets;   /* (B, T) in input order; NULL: none */
    const STORE *recurrent_dropout; /* (3, B, H); NULL: none */
    const STORE *h0;               /* (B, H); NULL: zeros */
};

#define KERNEL extern "C" __global__ void
#define THREAD ((long long)blockIdx.x * blockDim.x + threadIdx.x)

__device__ inline long long time_of(const Call &c, long long s) {
    return c.reverse ? c.T - 1 - s : s;
}

__device__ inline bool valid(const Call &c, long long b, long long s) {
    const long long t = time_of(c, s);
    if (c.lengths)
        return t < c.lengths[b];
    return !c.steps || c.steps[b * c.T + t];
}

__device__ inline bool resets(const Call &c, long long b, long long s) {
    return c.resets && c.resets[b * c.T + time_of(c, s)];
}

__device__ inline MATH dropped(const Call &c, int g, long long i, MATH h) {
    return c.recurrent_dropout ? h * load(c.recurrent_dropout + g * c.B * c.H + i) : h;
}

/* The state that step s starts from; i = b * H + u. states (T, B, H): the state after each step. */
__device__ inline MATH state_before(const Call &c, const STORE *states, long long b, long long i,
                                    long long s) {
    if (resets(c, b, s))
        return L(0.0);
    if (s > 0)
        return load(states + (s - 1) * c.B * c.H + i);
    return c.h0 ? load(c.h0 + i) : L(0.0);
}

/* Hand the state to step s: h (B, H), and with recurrent dropout k (3, B, H). */
__device__ inline void start_step(const Call &c, long long b, long long i, long long s, MATH state,
                                  STORE *h, STORE *k) {
    if (s < c.T && resets(c, b, s))
        state = L(0.0);
    store(h + i, state);
    if (c.recurrent_dropout)
        for (int g = 0; g < 3; g++)
            store(k + g * c.B * c.H + i, dropped(c, g, i, state));
}

/* ---- forward ---------------------------------------------------------------------------------- */

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

/* Where a step's results go. y (B, T, H) or (B, H) with strides y_b, y_s and 1; y_s is 0 for (B, H),
 * so that y[s - 1] is the previous output either way. states (T, B, H) and kept (T, B, 4, H), which
 * is z, r, n, q_h, each as its value or as the activation's argument; NULL: not wanted. */
struct Results {
    STORE *y;
    long long y_b, y_s;
    STORE *states, *kept;
};

/* The end of step s: mask, output, state. before: the state it started from. */
__device__ inline void end_step(const Call &c, const Results &out, long long b, long long u,
                                long long s, MATH before, MATH after, STORE *h, STORE *k) {
    const long long i = b * c.H + u;
    STORE *y = out.y + b * out.y_b + s * out.y_s + u;
    if (valid(c, b, s)) {
        store(y, after);
    } else {
        after = before;
        store(y, c.zero_masked || s == 0 ? L(0.0) : load(y - out.y_s));
    }
    if (out.states)
        store(out.states + s * c.B * c.H + i, after);
    start_step(c, b, i, s + 1, after, h, k);
}

/* Step s of reset_after=True.
 *   p (B, 3, H) x.W of this step   q (B, 3, H) k.U   bias (4, H): z and r summed, h of the input,
 *   h of the recurrence            h (B, H), k (3, B, H): in what step s starts from, out s + 1 */
KERNEL step_after(Call c, Results out, long long s, const MATH *p, const MATH *q, const MATH *bias,
                  STORE *h, STORE *k) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    p += 3 * H * b + u, q += 3 * H * b + u, bias += u;
    const MATH a_z = p[0] + q[0] + bias[0];
    const MATH a_r = p[H] + q[H] + bias[H];
    const MATH q_h = q[2 * H] + bias[3 * H];
    const MATH z = gate(a_z), r = gate(a_r);
    const MATH a_n = p[2 * H] + bias[2 * H] + r * q_h, n = activation(a_n), before = load(h + i);
    if (out.kept) {
        STORE *kept = out.kept + (s * c.B + b) * 4 * H + u;
        store(kept, GATE_KEEPS_VALUE ? z : a_z);
        store(kept + H, GATE_KEEPS_VALUE ? r : a_r);
        store(kept + 2 * H, ACT_KEEPS_VALUE ? n : a_n);
        store(kept + 3 * H, q_h);
    }
    end_step(c, out, b, u, s, before, z * before + (L(1.0) - z) * n, h, k);
}

/* Step s of reset_after=False, before the candidate's product.
 *   q: gates z and r only   h, k as they stand   z (B, H) and rk (B, H) = r * k_h: written */
KERNEL step_before_zr(Call c, Results out, long long s, const MATH *p, const MATH *q,
                      const MATH *bias, const STORE *h, const STORE *k, MATH *z, STORE *rk) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    p += 3 * H * b + u, q += 3 * H * b + u, bias += u;
    const MATH a_z = p[0] + q[0] + bias[0];
    const MATH a_r = p[H] + q[H] + bias[H];
    const MATH r = gate(a_r);
    z[i] = gate(a_z);
    store(rk + i, r * load(c.recurrent_dropout ? k + 2 * c.B * H + i : h + i));
    if (out.kept) {
        STORE *kept = out.kept + (s * c.B + b) * 4 * H + u;
        store(kept, GATE_KEEPS_VALUE ? z[i] : a_z);
        store(kept + H, GATE_KEEPS_VALUE ? r : a_r);
    }
}

/* The rest of it: q's third gate is rk.U, z (B, H) from the first half; h and k as in step_after. */
KERNEL step_before_h(Call c, Results out, long long s, const MATH *p, const MATH *q,
                     const MATH *bias, STORE *h, STORE *k, const MATH *z) {
    const long long i = THREAD, b = i / c.H, u = i % c.H, H = c.H;
    if (i >= c.B * H)
        return;
    const long long j = 3 * H * b + 2 * H + u;
    const MATH a_n = p[j] + bias[2 * H + u] + q[j], n = activation(a_n), before = load(h + i);
    if (out.kept)
        store(out.kept + (s * c.B + b) * 4 * H + 2 * H + u, ACT_KEEPS_VALUE ? n : a_n);
    end_step(c, out, b, u, s, before, z[i] * before + (L(1.0) - z[i]) * n, h, k);
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
 * `kept`. The products dq.U^T of step s + 1 are added by the kernel of step s, which can drop those of
 * masked rows and needs no further launch.
 */

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
 *   carry (B, H)           in: gradient of the state after step s but for the products; out: the same
 *                          of step s - 1
 *   pending (B, H)         gradients of outputs that repeat the next valid step's, zeros at first
 *   d (T, B, 4, H)         in: step s as forward kept it; out: see above. Zeros for masked rows. With
 *                          reset_after=False da_r is still missing and the last quarter is kept r. */
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
