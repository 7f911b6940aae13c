/* One step of a GRU for one element, (row b, unit u), forward and back, given the sums of its
 * products. All kernels use it.
 *
 * Symbols: B batch, T timesteps, I inputs, H units; gates z (update), r (reset), n (candidate);
 * p = x.W, q = k.U, where k is the state as a gate sees it: h, or h times the gate's recurrent
 * dropout mask; s a step in processing order and t the time it reads; i = b * H + u.
 *
 * Arrays are C-contiguous unless strides, in elements, are named, and overlap no other one. Numbers
 * of type MATH are sums, of type STORE what products take.
 *
 * x at masked steps is replaced by zeros before any product, and the results of a masked step are
 * dropped by a branch, not by a factor 0: a NaN there changes nothing.
 */

/* What all kernels of a call get; every member has 8 bytes. source.COMMON is the same in Python. */
struct Common {
    long long B, T, I, H;
    long long reset_after, reverse, sequences, zero_masked; /* flags of the problem */
    const unsigned char *steps;     /* (B, T) in input order, 0: masked; NULL: none */
    const long long *lengths;       /* (B): row b is valid for t < lengths[b]; NULL: none */
    const unsigned char *resets;    /* (B, T) in input order; NULL: none */
    const STORE *recurrent_dropout; /* (3, B, H); NULL: none */
    const STORE *h0;                /* (B, H); NULL: zeros */
};

#define KERNEL extern "C" __global__ void
#define THREAD ((long long)blockIdx.x * blockDim.x + threadIdx.x)

__device__ inline long long time_of(const Common &c, long long s) {
    return c.reverse ? c.T - 1 - s : s;
}

__device__ inline bool valid(const Common &c, long long b, long long s) {
    const long long t = time_of(c, s);
    if (c.lengths)
        return t < c.lengths[b];
    return !c.steps || c.steps[b * c.T + t];
}

__device__ inline bool resets(const Common &c, long long b, long long s) {
    return c.resets && c.resets[b * c.T + time_of(c, s)];
}

__device__ inline MATH dropped(const Common &c, int g, long long i, MATH h) {
    return c.recurrent_dropout ? h * load(c.recurrent_dropout + g * c.B * c.H + i) : h;
}

/* Write what step s starts from: h (B, H), and with recurrent dropout k (3, B, H). */
__device__ inline void start_step(const Common &c, long long b, long long i, long long s,
                                  MATH state, STORE *h, STORE *k) {
    if (s < c.T && resets(c, b, s))
        state = L(0.0);
    store(h + i, state);
    if (c.recurrent_dropout)
        for (int g = 0; g < 3; g++)
            store(k + g * c.B * c.H + i, dropped(c, g, i, state));
}

/* Where a step's results go; NULL: not wanted.
 *   y (B, T, H) or (B, H)   strides y_b, y_s, 1; y_s is 0 for (B, H): y - y_s is the last output
 *   states (T, B, H)
 *   kept (T, B, 4, H)       z, r, n and q_h; of z, r and n the value or its argument */
struct Results {
    STORE *y;
    long long y_b, y_s;
    STORE *states, *kept;
};

/* The end of step s: mask, output, state. before: the state that it started from. */
__device__ inline void end_step(const Common &c, const Results &out, long long b, long long u,
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

/* The argument of gate g's activation; p and bias point to gate z of the element. */
__device__ inline MATH argument(const MATH *p, const MATH *bias, long long H, int g, MATH q) {
    return p[g * H] + q + bias[g * H];
}

/* h' of step s, reset_after=True, from q = k.U of each gate.
 *   p (B, 3, H)   x.W of this step
 *   bias (4, H)   z and r, input and recurrence summed; n of the input; n of the recurrence */
__device__ inline MATH new_state(const Common &c, const Results &out, long long b, long long u,
                                 long long s, const MATH *p, const MATH *bias, MATH q_z, MATH q_r,
                                 MATH q_h, MATH before) {
    const long long H = c.H;
    p += 3 * H * b + u, bias += u, q_h += bias[3 * H];
    const MATH a_z = argument(p, bias, H, 0, q_z), a_r = argument(p, bias, H, 1, q_r);
    const MATH z = gate(a_z), r = gate(a_r);
    const MATH a_n = argument(p, bias, H, 2, r * q_h), n = activation(a_n);
    if (out.kept) {
        STORE *kept = out.kept + (s * c.B + b) * 4 * H + u;
        store(kept, GATE_KEEPS_VALUE ? z : a_z);
        store(kept + H, GATE_KEEPS_VALUE ? r : a_r);
        store(kept + 2 * H, ACT_KEEPS_VALUE ? n : a_n);
        store(kept + 3 * H, q_h);
    }
    return z * before + (L(1.0) - z) * n;
}

/* reset_after=False, first half: z (B, H) and rk (B, H) = r * k_h, from q of z and r. */
__device__ inline void reset_state(const Common &c, const Results &out, long long b, long long u,
                                   long long s, const MATH *p, const MATH *bias, MATH q_z, MATH q_r,
                                   MATH k_h, MATH *z, STORE *rk) {
    const long long H = c.H, i = b * H + u;
    p += 3 * H * b + u, bias += u;
    const MATH a_z = argument(p, bias, H, 0, q_z), a_r = argument(p, bias, H, 1, q_r);
    const MATH r = gate(a_r);
    z[i] = gate(a_z);
    store(rk + i, r * k_h);
    if (out.kept) {
        STORE *kept = out.kept + (s * c.B + b) * 4 * H + u;
        store(kept, GATE_KEEPS_VALUE ? z[i] : a_z);
        store(kept + H, GATE_KEEPS_VALUE ? r : a_r);
    }
}

/* reset_after=False, second half: h' from q = rk.Uh. */
__device__ inline MATH new_state_of_reset(const Common &c, const Results &out, long long b,
                                          long long u, long long s, const MATH *p, const MATH *bias,
                                          MATH q_h, MATH z, MATH before) {
    const long long H = c.H;
    const MATH a_n = argument(p + 3 * H * b + u, bias + u, H, 2, q_h), n = activation(a_n);
    if (out.kept)
        store(out.kept + (s * c.B + b) * 4 * H + 2 * H + u, ACT_KEEPS_VALUE ? n : a_n);
    return z * before + (L(1.0) - z) * n;
}

/* ---- backward ---------------------------------------------------------------------------------
 *
 * Per step, for the rows that took it, with dh the gradient of h':
 *   dn = dh (1 - z)   dz = dh (h - n)   da_g = dg act'(a_g)
 *   after:   dr = da_n q                     dq_h = da_n r
 *   before:  e = da_n Uh^T   dr = e k_h      and k_h gets e r
 *   carry = dh z + sum_g dropout_g * (dq_g U_g^T)
 * A row of d is [da_n, da_z, da_r, dq_h]: the three that multiply x and W are contiguous, and so
 * are the three that multiply h and U. With reset_after=False the last quarter is r k_h. d
 * overwrites `kept`. Step s adds the products dq.U^T of step s + 1, and can so drop those of masked
 * rows: products points to the element's, one for each gate with recurrent dropout and else their
 * sum, `apart` elements from each other.
 */

/* The state that step s starts from. states (T, B, H): the state after each step. */
__device__ inline MATH state_before(const Common &c, const STORE *states, long long b, long long i,
                                    long long s) {
    if (resets(c, b, s))
        return L(0.0);
    if (s > 0)
        return load(states + (s - 1) * c.B * c.H + i);
    return c.h0 ? load(c.h0 + i) : L(0.0);
}

/* How many states k multiply U in a step: one, or with recurrent dropout one for each gate, without
 * the candidate's of reset_after=False, whose product is a separate one. */
__device__ inline int planes(const Common &c) {
    return c.recurrent_dropout ? (c.reset_after ? 3 : 2) : 1;
}

/* The whole gradient of the state after step s - 1: the carry of step s and its products, which are
 * not read for s = T. */
__device__ inline MATH whole_carry(const Common &c, MATH carry, const MATH *products,
                                   long long apart, long long b, long long i, long long s) {
    if (s == c.T)
        return carry;
    if (resets(c, b, s))
        return L(0.0);
    if (valid(c, b, s))
        for (int g = 0; g < planes(c); g++)
            carry += dropped(c, g, i, products[g * apart]);
    return carry;
}

/* Step s of the walk back, from the products of step s + 1: writes the quarters of d (T, B, 4, H),
 * and to carry (B, H) the gradient that goes to h directly, not through a product. With
 * reset_after=False da_r is still missing, and the last quarter is r as forward kept it. dy and
 * pending: see back_step. */
__device__ inline void gradient_of_step(const Common &c, long long b, long long u, long long s,
                                        const STORE *states, const STORE *dy, const MATH *products,
                                        long long apart, MATH *carry, MATH *pending, STORE *d) {
    const long long H = c.H, i = b * H + u;
    MATH dh = whole_carry(c, carry[i], products, apart, b, i, s + 1), dout = L(0.0);
    d += (s * c.B + b) * 4 * H + u;
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

/* The rest of step s with reset_after=False, from e = da_n.Uh^T: writes the third and the last
 * quarter of d and adds to the carry. */
__device__ inline void gradient_of_reset(const Common &c, long long b, long long u, long long s,
                                         const STORE *states, MATH e, MATH *carry, STORE *d) {
    const long long H = c.H, i = b * H + u;
    if (!valid(c, b, s))
        return;
    d += (s * c.B + b) * 4 * H + u;
    const Slope r = gate_of_kept(load(d + 3 * H));
    const MATH k = dropped(c, 2, i, state_before(c, states, b, i, s));
    store(d + 2 * H, e * k * r.slope);
    store(d + 3 * H, r.y * k);
    carry[i] += dropped(c, 2, i, e * r.y);
}
