/* The work around cuDNN's calls: masks, directions, dropout, the layout of weights.
 *
 * fastgru/backends/cudnn_call.py launches these kernels. cuDNN's rows all begin at once and have
 * their padding at the end: its step k of a row is the row's k-th valid step in processing order,
 * which is step `first_step + k`. What cuDNN writes at padding is undefined and is never read here.
 *
 * `backwards`: cuDNN itself walked this sequence backwards, as the second direction of a pair. Its
 * k-th step is then at n - 1 - k, where n is the row's length.
 */

__device__ inline long long length_of(const Common &c, long long b) {
    return c.lengths ? c.lengths[b] : c.T;
}

/* With time reversed, the padding at the end comes first. */
__device__ inline long long first_step(const Common &c, long long b) {
    return c.reverse ? c.T - length_of(c, b) : 0;
}

/* x in the order that cuDNN takes, zeros at padding, times the dropout mask.
 *   x (B, T, I) strides x_b, x_t, x_i    dropout (B, I); NULL: none    out (n, B, I) */
KERNEL gather_x(Common c, long long n, const STORE *x, long long x_b, long long x_t, long long x_i,
                const STORE *dropout, STORE *out) {
    const long long j = THREAD, i = j % c.I, b = j / c.I % c.B, k = j / (c.I * c.B);
    if (k >= n)
        return;
    MATH value = L(0.0);
    if (k < length_of(c, b)) {
        value = load(x + b * x_b + time_of(c, first_step(c, b) + k) * x_t + i * x_i);
        if (dropout)
            value *= load(dropout + b * c.I + i);
    }
    store(out + j, value);
}

/* The reverse: dx (B, T, I) in input order, zeros where masked, from cuDNN's d (n, B, I). */
KERNEL scatter_dx(Common c, const STORE *d, const STORE *dropout, STORE *dx) {
    const long long j = THREAD, i = j % c.I, t = j / c.I % c.T, b = j / (c.I * c.T);
    if (b >= c.B)
        return;
    const long long k = time_of(c, t) - first_step(c, b);
    MATH value = L(0.0);
    if (0 <= k && k < length_of(c, b)) {
        value = load(d + (k * c.B + b) * c.I + i);
        if (dropout)
            value *= load(dropout + b * c.I + i);
    }
    store(dx + j, value);
}

/* States or outputs of all steps, or the last output alone, from cuDNN's outputs h.
 *   h       strides h_b, h_k and 1
 *   outputs 1: zeros before the first valid step, and at each masked one with zero_masked
 *           0: the state before the first valid step is h0
 *   y       (B, T, H), or (B, H) for the last output, strides y_b, y_s, y_u; other memory than h */
KERNEL spread(Common c, const STORE *h, long long h_b, long long h_k, long long backwards,
              long long outputs, STORE *y, long long y_b, long long y_s, long long y_u) {
    const bool last = outputs && !c.sequences;
    const long long j = THREAD, steps = last ? 1 : c.T, u = j % c.H, s = j / c.H % steps;
    const long long b = j / (c.H * steps);
    if (b >= c.B)
        return;
    const long long length = length_of(c, b);
    long long k = (last ? c.T - 1 : s) - first_step(c, b);
    const bool masked = k < 0 || k >= length;
    MATH value = L(0.0);
    if (k >= 0 && length > 0 && !(masked && outputs && c.zero_masked)) {
        k = masked ? length - 1 : k;
        value = load(h + b * h_b + (backwards ? length - 1 - k : k) * h_k + u);
    } else if (!outputs && c.h0) {
        value = load(c.h0 + b * c.H + u);
    }
    store(y + b * y_b + s * y_s + u * y_u, value);
}

/* The gradient of cuDNN's outputs. A masked output repeats the last valid one, so that its gradient
 * is added to that one's.
 *   dy (B, T, H) or (B, H) as sequences says    dh n steps, strides dh_b, dh_k and 1 */
KERNEL fold_dy(Common c, long long n, const STORE *dy, long long backwards, STORE *dh,
               long long dh_b, long long dh_k) {
    const long long j = THREAD, u = j % c.H, b = j / c.H % c.B, at = j / (c.H * c.B);
    if (at >= n)
        return;
    const long long length = length_of(c, b), first = first_step(c, b), end = first + length;
    const long long k = backwards ? length - 1 - at : at;
    const bool repeats = k == length - 1 && !c.zero_masked;
    MATH value = L(0.0);
    if (at < length && c.sequences) {
        value = load(dy + (b * c.T + first + k) * c.H + u);
        for (long long s = end; repeats && s < c.T; s++)
            value += load(dy + (b * c.T + s) * c.H + u);
    } else if (at < length && k == length - 1 && (repeats || end == c.T)) {
        value = load(dy + b * c.H + u);
    }
    store(dh + b * dh_b + at * dh_k + u, value);
}

/* For rows that have no step from cuDNN's step k on: `to` gets what `from` has, or zeros if that is
 * NULL. cuDNN was given one step of zeros there, whose result this replaces. Both (B, H). */
KERNEL keep_ended(Common c, long long k, const STORE *from, STORE *to) {
    const long long i = THREAD;
    if (i < c.B * c.H && length_of(c, i / c.H) <= k)
        store(to + i, from ? load(from + i) : L(0.0));
}

/* The index in cuDNN's weights of element (row, column) of Keras': kernel (I, 3H), recurrent kernel
 * (H, 3H) and bias (2, 3H), one below the other.
 *   at (4, 3)   where the matrix (H, I), the matrix (H, H) and the two biases of each gate begin */
__device__ inline long long place_of(long long I, long long H, const long long *at, long long row,
                                     long long column) {
    const long long g = column / H, u = column % H;
    if (row < I)
        return at[g] + u * I + row;
    if (row < I + H)
        return at[3 + g] + u * H + row - I;
    return at[3 * (2 + row - I - H) + g] + u;
}

/* space is full of zeros before; bias NULL: none. */
KERNEL pack_weights(long long I, long long H, const long long *at, const STORE *kernel,
                    const STORE *recurrent, const STORE *bias, STORE *space) {
    const long long j = THREAD, row = j / (3 * H);
    const STORE *from = row < I ? kernel : row < I + H ? recurrent : bias;
    if (row < I + H + 2 && from)
        space[place_of(I, H, at, row, j % (3 * H))] =
            from[j - 3 * H * (row < I ? 0 : row < I + H ? I : I + H)];
}

/* all (I + H + 2, 3H): kernel, recurrent kernel and bias, one below the other. */
KERNEL unpack_weights(long long I, long long H, const long long *at, const STORE *space,
                      STORE *all) {
    const long long j = THREAD, row = j / (3 * H);
    if (row < I + H + 2)
        all[j] = space[place_of(I, H, at, row, j % (3 * H))];
}
