/* One step of a GRU for one element, (row b, unit u), from its sums on; for all kernels.
 *
 * Symbols: B batch, T timesteps, I inputs, H units; gates z (update), r (reset), n (candidate);
 * p = x.W, q = k.U, where k is the state as a gate sees it: h, or h times the gate's recurrent
 * dropout mask; s a step in processing order and t the time it reads; i = b * H + u.
 *
 * Arrays are C-contiguous unless strides, in elements, are named, and overlap no other one. Numbers
 * of type MATH are sums, of type STORE what products take.
 *
 * x at masked steps is replaced by zeros before any product, and what a masked step would give is
 * dropped by a choice, not by a factor 0: a NaN there changes nothing.
 */

/* What is the same in all kernels of a call; every member has 8 bytes (source.py has its twin). */
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

/* Where a step's results go. y (B, T, H) or (B, H) with strides y_b, y_s and 1; y_s is 0 for
 * (B, H), so that y[s - 1] is the previous output either way. states (T, B, H) and kept
 * (T, B, 4, H), which is z, r, n, q_h, each as its value or as the activation's argument; NULL: not
 * wanted. */
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

/* The argument of gate g; p and bias point to gate z of the element. */
__device__ inline MATH argument(const MATH *p, const MATH *bias, long long H, int g, MATH q) {
    return p[g * H] + q + bias[g * H];
}

/* h' of step s, reset_after=True, from q = k.U of each gate.
 *   p (B, 3, H)   x.W of this step
 *   bias (4, H)   z and r, input and recurrence summed; n of the input; n of the recurrence */
__device__ inline MATH new_state(const Call &c, const Results &out, long long b, long long u,
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
__device__ inline void reset_state(const Call &c, const Results &out, long long b, long long u,
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

/* The rest of it: h' from q = rk.Uh. */
__device__ inline MATH new_state_of_reset(const Call &c, const Results &out, long long b,
                                          long long u, long long s, const MATH *p, const MATH *bias,
                                          MATH q_h, MATH z, MATH before) {
    const long long H = c.H;
    const MATH a_n = argument(p + 3 * H * b + u, bias + u, H, 2, q_h), n = activation(a_n);
    if (out.kept)
        store(out.kept + (s * c.B + b) * 4 * H + 2 * H + u, ACT_KEEPS_VALUE ? n : a_n);
    return z * before + (L(1.0) - z) * n;
}
