/* The kernel table: what the C templates offer to Cython, one table for each instruction set and
 * dtype.
 *
 * isa_base.c, isa_avx2.c and isa_avx512.c compile the templates, each for one instruction set;
 * kernels.c says which of them this machine can run. A kernel allocates nothing, starts no threads,
 * and knows nothing of Python or BLAS.
 */
#ifndef FASTGRU_KERNELS_H
#define FASTGRU_KERNELS_H

#include <stddef.h>

/* The fused loops need the vector types of gcc and clang. FASTGRU_NO_VECTORS builds what other
 * compilers get. */
#if !defined(FASTGRU_NO_VECTORS) && (defined(__clang__) || defined(__GNUC__))
#    define FASTGRU_VECTORS 1
#    if defined(__x86_64__) || defined(__i386__)
#        define FASTGRU_X86_ISA 1 /* base, avx2, avx512 */
#    endif
#endif

/* The memory behind such a pointer is used through no other pointer of the function. */
#ifdef _MSC_VER
#    define RESTRICT __restrict
#else
#    define RESTRICT restrict
#endif

/* Built-in elementwise activations, X(NAME, name): of ACT_NAME, and of users and the function. */
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

/* The 16-bit floats that a kernel of floats reads and writes; 0: none. */
enum { HALF_FLOAT16 = 1, HALF_BFLOAT16 };

/* A layer's activations. Parameters are those of fastgru/activations.py; NaN stands for None. */
typedef struct {
    int activation, recurrent_activation;
    double params[3], recurrent_params[3];
} gate_functions;

/* The fused loops compute what one thread has of a call: rows b0..b0+n of the batch, and the panels
 * panel0..panel1 of units. `team` threads have the same rows and meet at every step. `scratch` is
 * of this thread alone, 64-byte aligned, as many bytes as run_scratch or back_scratch say. Without
 * vector types `lanes` is 0 and the pointers after it are NULL.
 */
#define FASTGRU_KERNELS(NAME, TYPE)                                                                \
    typedef struct {                                                                               \
        /* a (n) becomes its activation */                                                         \
        void (*activations[ACT_COUNT])(ptrdiff_t n, const double *params, TYPE *a);                \
        /* a (n), value or argument, becomes the value; output d (n): the derivative */            \
        void (*derivatives[ACT_COUNT])(ptrdiff_t n, const double *params, TYPE *a, TYPE *d);       \
        /* a (n) is rounded to 16 bits, HALF_FLOAT16 or HALF_BFLOAT16; doubles are not */          \
        void (*round)(int half, ptrdiff_t n, TYPE *a);                                             \
        ptrdiff_t lanes; /* units in a panel: those of a vector */                                 \
        /* forward */                                                                              \
        void (*run)(const struct gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,        \
                    ptrdiff_t panel1, int team, char *scratch);                                    \
        ptrdiff_t (*run_scratch)(const struct gru_job *job, ptrdiff_t n, ptrdiff_t panels);        \
        /* backward: the walk through time; a panel has 2 * lanes units here */                    \
        void (*back)(const struct gru_back_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,  \
                     ptrdiff_t panel1, int team, char *scratch);                                   \
        ptrdiff_t (*back_scratch)(const struct gru_back_job *job, ptrdiff_t n);                    \
        /* backward: dW, db and dU, after the whole walk; the share of thread `rank` of `team` */  \
        void (*products)(const struct gru_back_job *job, int rank, int team);                      \
        ptrdiff_t (*product_scratch)(const struct gru_back_job *job); /* of job->factors */        \
    } NAME;

/* Whether backward gets the value of an activation, of which its derivative is a function, or else
 * its argument. */
#define KEEPS_VALUE(act) ((act) == ACT_TANH || (act) == ACT_SIGMOID || (act) == ACT_LINEAR)

struct gru_job;
struct gru_back_job;

FASTGRU_KERNELS(kernels_f32, float)
FASTGRU_KERNELS(kernels_f64, double)

extern const char *const fastgru_activation_names[ACT_COUNT];

/* Instruction sets by number, the best one last. The names end with NULL. */
extern const char *const fastgru_isa_names[];
/* Nonzero: this build has the set, and this machine can run it. */
int fastgru_isa_supported(int isa);
const kernels_f32 *fastgru_kernels_f32(int isa);
const kernels_f64 *fastgru_kernels_f64(int isa);

/* The tables of one set. Without FASTGRU_X86_ISA only base exists. */
const kernels_f32 *fastgru_kernels_f32_base(void);
const kernels_f64 *fastgru_kernels_f64_base(void);
const kernels_f32 *fastgru_kernels_f32_avx2(void);
const kernels_f64 *fastgru_kernels_f64_avx2(void);
const kernels_f32 *fastgru_kernels_f32_avx512(void);
const kernels_f64 *fastgru_kernels_f64_avx512(void);

#endif
