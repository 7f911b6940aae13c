/* The gates of the fused loops for one ISA and one TYPE; included by kernels_type.h, with vector
 * types only, after activations_type.h.
 */

/* z h + (1 - z) n. The code says which product is rounded before the sum. If the compiler chose,
 * its choice would depend on the code around, and the bits of a row on the number of panels in its
 * tile. */
static inline TYPE FN(mix)(TYPE z, TYPE h, TYPE n) {
#if FUSED_MULTIPLY_ADD
    return M(__builtin_fma)(z, h, (C(1.0) - z) * n);
#else
    return z * h + (C(1.0) - z) * n;
#endif
}

#define VECTOR_UNITS ((ptrdiff_t)(VECTOR_BYTES / sizeof(TYPE)))
/* With tanh and sigmoid, from sums that have their biases: z and r in place. n is a multiple of
 * VECTOR_UNITS. */
static inline void FN(sigmoids)(ptrdiff_t n, TYPE *a) {
    for (ptrdiff_t i = 0; i < n; i += VECTOR_UNITS)
        for (ptrdiff_t j = i; j < i + VECTOR_UNITS; j++)
            a[j] = FN(sigmoid_1)(a[j]);
}

/* Then the new state, from q = h.Uh and c = x.Wh. */
static inline void FN(new_state)(ptrdiff_t n, const TYPE *RESTRICT z, const TYPE *RESTRICT r,
                                 const TYPE *RESTRICT c, const TYPE *RESTRICT q,
                                 const TYPE *RESTRICT h, TYPE *RESTRICT h_new) {
    for (ptrdiff_t i = 0; i < n; i += VECTOR_UNITS)
        for (ptrdiff_t j = i; j < i + VECTOR_UNITS; j++)
            h_new[j] = FN(mix)(z[j], h[j], FN(tanh_1)(c[j] + r[j] * q[j]));
}

/* new_state that also keeps z, r, n and q, ld apart. */
static inline void FN(new_state_kept)(ptrdiff_t n, const TYPE *RESTRICT z, const TYPE *RESTRICT r,
                                      const TYPE *RESTRICT c, const TYPE *RESTRICT q,
                                      const TYPE *RESTRICT h, TYPE *RESTRICT h_new,
                                      TYPE *RESTRICT kept, ptrdiff_t ld) {
    for (ptrdiff_t i = 0; i < n; i += VECTOR_UNITS)
        for (ptrdiff_t j = i; j < i + VECTOR_UNITS; j++) {
            const TYPE new = FN(tanh_1)(c[j] + r[j] * q[j]);
            kept[j] = z[j];
            kept[ld + j] = r[j];
            kept[2 * ld + j] = new;
            kept[3 * ld + j] = q[j];
            h_new[j] = FN(mix)(z[j], h[j], new);
        }
}

/* The same with any activations. Of those without KEEPS_VALUE the argument is kept. */
static void FN(gates_any)(ptrdiff_t n, TYPE *RESTRICT z, TYPE *RESTRICT r, const TYPE *RESTRICT c,
                          const TYPE *RESTRICT q, const TYPE *RESTRICT h, TYPE *RESTRICT h_new,
                          TYPE *RESTRICT kept, ptrdiff_t ld, const gate_functions *f) {
    const size_t bytes = (size_t)n * sizeof(TYPE);
    memcpy(kept, z, bytes);
    memcpy(kept + ld, r, bytes);
    memcpy(kept + 3 * ld, q, bytes);
    FN(kernels).activations[f->recurrent_activation](n, f->recurrent_params, z);
    FN(kernels).activations[f->recurrent_activation](n, f->recurrent_params, r);
    for (ptrdiff_t j = 0; j < n; j++)
        h_new[j] = kept[2 * ld + j] = c[j] + r[j] * q[j];
    FN(kernels).activations[f->activation](n, f->params, h_new);
    if (KEEPS_VALUE(f->activation))
        memcpy(kept + 2 * ld, h_new, bytes);
    if (KEEPS_VALUE(f->recurrent_activation)) {
        memcpy(kept, z, bytes);
        memcpy(kept + ld, r, bytes);
    }
    for (ptrdiff_t j = 0; j < n; j++)
        h_new[j] = FN(mix)(z[j], h[j], h_new[j]);
}

#undef VECTOR_UNITS

/* c may be a. */
static void FN(multiply)(ptrdiff_t n, const TYPE *a, const TYPE *b, TYPE *c) {
    for (ptrdiff_t j = 0; j < n; j++)
        c[j] = a[j] * b[j];
}
