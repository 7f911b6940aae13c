/* Gate arithmetic of the GRU, one table of functions per instruction set and dtype.
 *
 * The code is isa_template.h, compiled once for every (ISA, TYPE) by isa_base.c, isa_avx2.c and
 * isa_avx512.c; kernels.c chooses. Nothing here knows of batches, time, masks or BLAS.
 */
#ifndef FASTGRU_KERNELS_H
#define FASTGRU_KERNELS_H

#include <stddef.h>

/* FASTGRU_NO_VECTORS builds what a compiler without GNU's vector types would. */
#if !defined(FASTGRU_NO_VECTORS) && (defined(__clang__) || defined(__GNUC__))
#    define FASTGRU_VECTORS 1
#    if defined(__x86_64__) || defined(__i386__)
#        define FASTGRU_X86_ISA 1 /* base, avx2, avx512 */
#    endif
#endif

/* What a kernel does not touch may not alias what it writes. */
#ifdef _MSC_VER
#    define RESTRICT __restrict
#else
#    define RESTRICT restrict
#endif

/* Built-in elementwise activations: X(ACT_..., the name), which is also that of its function. */
#define FASTGRU_ACTIVATIONS(X)                                                                     \
    X(LINEAR, linear)                                                                              \
    X(TANH, tanh)                                                                                  \
    X(SIGMOID, sigmoid)                                                                            \
    X(RELU, relu)                                                                                  \
    X(RELU6, relu6)                                                                                \
    X(LEAKY_RELU, leaky_relu)                                                                      \
    X(ELU, elu)                                                                                    \
    X(SELU, selu)                                                                                  \
    X(CELU, celu)                                                                                  \
    X(EXPONENTIAL, exponential)                                                                    \
    X(SOFTPLUS, softplus)                                                                          \
    X(LOG_SIGMOID, log_sigmoid)                                                                    \
    X(SOFTSIGN, softsign)                                                                          \
    X(SILU, silu)                                                                                  \
    X(MISH, mish)                                                                                  \
    X(GELU, gelu)                                                                                  \
    X(GELU_TANH, gelu_tanh)                                                                        \
    X(SQUAREPLUS, squareplus)                                                                      \
    X(TANH_SHRINK, tanh_shrink)                                                                    \
    X(SOFT_SHRINK, soft_shrink)                                                                    \
    X(HARD_SHRINK, hard_shrink)                                                                    \
    X(THRESHOLD, threshold)                                                                        \
    X(HARD_TANH, hard_tanh)                                                                        \
    X(HARD_SIGMOID, hard_sigmoid)                                                                  \
    X(HARD_SIGMOID_KERAS2, hard_sigmoid_keras2)                                                    \
    X(HARD_SILU, hard_silu)                                                                        \
    X(SPARSE_PLUS, sparse_plus)                                                                    \
    X(SPARSE_SIGMOID, sparse_sigmoid)

#define FASTGRU_ACT(NAME, name) ACT_##NAME,
enum { FASTGRU_ACTIVATIONS(FASTGRU_ACT) ACT_COUNT };
#undef FASTGRU_ACT

/* Which activations a layer has; parameters as fastgru.activations has them, None as NaN. */
typedef struct {
    int activation, recurrent_activation;
    double params[3], recurrent_params[3];
} gate_functions;

/* In all of these: one row, n of its H units; H is also the distance between the gates z, r, h.
 *   p      (3, H) x.W of this row and step, without bias
 *   q      (3, H) h.U of this row, without bias
 *   b      (4, H) biases: z, r (input and recurrent summed), h of the input, h of the recurrence
 *   h      (n)    state before the step; h_new (n) state after it, not the same memory
 *   work   (3, n) scratch
 * The arrays may not overlap each other.
 */
#define FASTGRU_KERNELS(NAME, TYPE)                                                                \
    typedef struct {                                                                               \
        /* h_new of docs/semantics.md 1, reset_after=True */                                       \
        void (*after)(ptrdiff_t n, ptrdiff_t H, const TYPE *p, const TYPE *q, const TYPE *b,       \
                      const TYPE *h, TYPE *h_new, TYPE *work, const gate_functions *f);            \
        /* reset_after=False, first half: z (n) and rk (n) = r * k, k (n) what r multiplies */     \
        void (*before_zr)(ptrdiff_t n, ptrdiff_t H, const TYPE *p, const TYPE *q, const TYPE *b,   \
                          const TYPE *k, TYPE *z, TYPE *rk, TYPE *work, const gate_functions *f);  \
        /* second half: q's last gate is rk.U, z from the first */                                 \
        void (*before_h)(ptrdiff_t n, ptrdiff_t H, const TYPE *p, const TYPE *q, const TYPE *b,    \
                         const TYPE *z, const TYPE *h, TYPE *h_new, TYPE *work,                    \
                         const gate_functions *f);                                                 \
        /* c = a * b */                                                                            \
        void (*multiply)(ptrdiff_t n, const TYPE *a, const TYPE *b, TYPE *c);                      \
        /* a (n) in place */                                                                       \
        void (*activations[ACT_COUNT])(ptrdiff_t n, const double *params, TYPE *a);                \
        /* from what forward kept, a: y its value (in place of a) and d its derivative */          \
        void (*derivatives[ACT_COUNT])(ptrdiff_t n, const double *params, TYPE *a, TYPE *d);       \
        /* The fused loop, see job.h: units in a panel (0: this compiler has no vectors), then     \
         * the whole time loop, forward and back, of some rows and panels, and its scratch. */     \
        ptrdiff_t lanes;                                                                           \
        void (*run)(const struct gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,        \
                    ptrdiff_t panel1, int team, char *scratch);                                    \
        ptrdiff_t (*run_scratch)(const struct gru_job *job, ptrdiff_t n, ptrdiff_t panels);        \
        void (*back)(const struct gru_back_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,  \
                     ptrdiff_t panel1, int team, char *scratch);                                   \
        ptrdiff_t (*back_scratch)(const struct gru_back_job *job, ptrdiff_t n);                    \
        /* dW, db and dU after the walk, and the bytes of job->factors */                          \
        void (*products)(const struct gru_back_job *job, int rank, int team);                      \
        ptrdiff_t (*product_scratch)(const struct gru_back_job *job);                              \
    } NAME;

/* Whether the derivative is a function of the value: then backward needs no argument. */
#define KEEPS_VALUE(act) ((act) == ACT_TANH || (act) == ACT_SIGMOID || (act) == ACT_LINEAR)

struct gru_job;
struct gru_back_job;

FASTGRU_KERNELS(kernels_f32, float)
FASTGRU_KERNELS(kernels_f64, double)

extern const char *const fastgru_activation_names[ACT_COUNT];

/* Instruction sets, best last; fastgru_isa_names ends with NULL. */
extern const char *const fastgru_isa_names[];
/* Nonzero when this build has the set and this machine can run it. */
int fastgru_isa_supported(int isa);
const kernels_f32 *fastgru_kernels_f32(int isa);
const kernels_f64 *fastgru_kernels_f64(int isa);

/* Of one set; those but the first with FASTGRU_X86_ISA alone. */
const kernels_f32 *fastgru_kernels_f32_base(void);
const kernels_f64 *fastgru_kernels_f64_base(void);
const kernels_f32 *fastgru_kernels_f32_avx2(void);
const kernels_f64 *fastgru_kernels_f64_avx2(void);
const kernels_f32 *fastgru_kernels_f32_avx512(void);
const kernels_f64 *fastgru_kernels_f64_avx512(void);

#endif
