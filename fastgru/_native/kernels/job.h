/* What one call of the forward and of the backward kernel reads and writes. forward_type.h runs a
 * gru_job; backward_type.h and products_type.h run a gru_back_job. Cython fills both; nothing here
 * checks them.
 *
 * B rows, T steps, I features (`inputs`), H units. Step s is the processing order, t the time: they
 * differ with `reverse`. Arrays are C-contiguous and hold floats or doubles, as the kernel does,
 * unless a comment says otherwise. Strides are in bytes. A pointer is not NULL unless its comment
 * says when it is. What is written shares no memory with anything else of the job, unless a comment
 * allows it; what is only read may.
 */
#ifndef FASTGRU_JOB_H
#define FASTGRU_JOB_H

#include "kernels.h"
#include "runtime.h"

/* The order in which the gates of all rows and steps are kept: all steps of the first ROW_GROUP
 * rows of the batch, step after step, then those of the next rows. So threads that have different
 * rows write far apart. With all rows of a step side by side, the prefetchers of each core took the
 * other cores' lines, and a walk of (16, 50, 32, 64) took 1.2 times as long. */
#define ROW_GROUP 8
/* The place of row b at step s. */
static inline ptrdiff_t kept_place(ptrdiff_t B, ptrdiff_t T, ptrdiff_t s, ptrdiff_t b) {
    const ptrdiff_t first = b / ROW_GROUP * ROW_GROUP;
    return first * T + s * (B - first < ROW_GROUP ? B - first : ROW_GROUP) + b - first;
}

/* The step of a place; *b becomes its row. */
static inline ptrdiff_t kept_step(ptrdiff_t B, ptrdiff_t T, ptrdiff_t place, ptrdiff_t *b) {
    const ptrdiff_t first = place / (ROW_GROUP * T) * ROW_GROUP;
    const ptrdiff_t rows = B - first < ROW_GROUP ? B - first : ROW_GROUP;
    *b = first + (place - first * T) % rows;
    return (place - first * T) / rows;
}

/* Of a gru_job or a gru_back_job: the time of step s; whether row b takes the step at time t;
 * whether its state is set to zeros before that step. */
#define TIME_OF(job, s) ((job)->reverse ? (job)->T - 1 - (s) : (s))
#define IS_VALID(job, b, t)                                                                        \
    ((job)->lengths ? (t) < (job)->lengths[b] : !(job)->steps || (job)->steps[(b) * (job)->T + (t)])
#define IS_RESET(job, b, t) ((job)->resets && (job)->resets[(b) * (job)->T + (t)])

typedef struct gru_job {
    ptrdiff_t B, T, inputs, H;
    int reset_after; /* where the reset gate multiplies, as in Keras */
    int reverse;     /* step s reads time T - 1 - s */
    int sequences;   /* y has the output of every step, otherwise of the last one */
    int zero_masked; /* outputs of masked steps are zeros, not the output before */
    /* HALF_FLOAT16 or HALF_BFLOAT16: the new state is rounded to these 16 bits at every step, and
     * x, y, states, state and h0 hold such numbers. 0: they hold the kernel's own. */
    int half;

    /* (B, T, I), features contiguous, rows x_b and times x_t apart. */
    const char *x;
    ptrdiff_t x_b, x_t;
    /* Output: (B, T, H) in processing order or, without `sequences`, (B, H). Units contiguous. */
    char *y;
    ptrdiff_t y_b, y_s;
    /* Output (B, T, H): the state after every step, masked or not. NULL: not wanted. */
    char *states;
    /* Output (B, H): the last state. It may be h0, which then is read first. */
    char *state;
    /* (B, H). NULL: zeros. */
    const char *h0;
    /* (B): the rows of h0 and state that belong to the rows of x, where these are rows of a larger
     * array. NULL: 0..B-1. */
    const ptrdiff_t *rows;
    /* Scratch (2, B, H): the states of a step and of the one before. With `sequences` or `states`,
     * whose arrays hold them, it is not touched and may be NULL, but not with `half`. */
    char *alternate;
    /* r * h. Scratch (B, H); with `gates` an output (rows_kept, H), which backward reads. With
     * reset_after it is not touched and may be NULL. */
    char *reset_state;

    /* Masks by time, of bytes that are 0 or 1. `steps` (B, T) or `lengths` (B): which steps a row
     * takes. NULL, both: all steps. Only one of them is not NULL. `resets` (B, T): where a row's
     * state is set to zeros before the step, whether it takes that or not. NULL: nowhere. */
    const unsigned char *steps;
    const ptrdiff_t *lengths;
    const unsigned char *resets;
    /* Factors of x, the same at all times: (dropout_gates, B, I), one mask for all gates or one for
     * each of z, r, h. NULL: none. */
    const char *dropout;
    ptrdiff_t dropout_gates; /* 1 or 3 */
    /* Factors (3, B, H) of the state in the products of the gates z, r, h. NULL: none. */
    const char *recurrent_dropout;

    /* Weights in panels of `lanes` units (see kernels.h), the last one filled up with zeros:
     *   w    (panels, I, 3, lanes), gates z, r, h
     *   u    (panels, H, 3, lanes); with reset_after=False (panels, H, 2, lanes), z and r only
     *   uh   (panels, H, 1, lanes), h of reset_after=False; otherwise NULL
     *   bias (panels, 4, lanes), as `b` in kernels.h */
    const char *w, *u, *uh, *bias;
    int u_finite; /* u and uh have no infinity and no NaN: a state of zeros needs no product */

    /* Output for backward: (panels, rows_kept, 4, lanes), z, r, n and q_h, or, with
     * reset_after=False, (panels, rows_kept, 3, lanes), z, r, n. One row for each row and step that
     * is taken. n is the candidate state and q_h = h.Uh + its bias. Where the derivative of an
     * activation is no function of its value (KEEPS_VALUE), its argument is kept instead. Lanes
     * beyond H are not written. NULL: not wanted. */
    char *gates;
    ptrdiff_t rows_kept;
    /* (B * T): the row of `gates` that each place has (kept_place). NULL: that of its number. */
    const ptrdiff_t *slots;

    gate_functions functions;
    ptrdiff_t chunk_rows; /* x.W is computed for so many rows at a time; at least a thread's rows */
    /* Of the threads that share rows, all zeros at first. It may be NULL where none do. */
    team_barrier *barrier;
    /* NULL: the call does not poll for interrupts. */
    interrupt_poll *poll;
    /* NULL: the call does not yield. */
    const thread_counts *counts;
    int granted; /* threads of this call, as `leased` of the counts has them */
} gru_job;

/* Fields that have a name of gru_job mean the same. Two kernels run this job, one after the other:
 * the walk back through time (backward_type.h), then the gradients of the weights
 * (products_type.h). */
typedef struct gru_back_job {
    ptrdiff_t B, T, inputs, H;
    int reset_after, reverse, sequences, zero_masked;
    const char *x;
    ptrdiff_t x_b, x_t;
    /* (B, T, H): the state after every step. It may be y, where no step was masked. */
    const char *states;
    const char *h0;
    /* The gradient of y: (B, T, H), or (B, H) without `sequences`; units contiguous. NULL: 0. */
    const char *dy;
    ptrdiff_t dy_b, dy_s;
    /* Input and output (B, H): the gradient of the last state, replaced by that of h0. */
    char *carry;
    /* Scratch (B, H): gradients of outputs at masked steps, which repeat the output of an earlier
     * step, until the walk reaches that step. */
    char *pending;
    /* Input and output, `rows` rows, as forward wrote it, 64-byte aligned. The walk replaces the
     * gates by their gradients d: da_h, da_z, da_r, and with reset_after dq_h. Lanes beyond H
     * become zeros. */
    char *gates;
    ptrdiff_t rows;
    /* (rows, H), as forward wrote it. NULL with reset_after. */
    const char *reset_state;
    const unsigned char *steps;
    const ptrdiff_t *lengths;
    const unsigned char *resets;
    const ptrdiff_t *slots;
    /* (rows): the place of each row of `gates`. NULL, as `slots` is: that of its number. */
    const ptrdiff_t *taken;
    const char *dropout;
    ptrdiff_t dropout_gates;
    const char *recurrent_dropout;
    /* Weights transposed, in panels of 2 * lanes columns: ut = U^T (panels, 3H, 2, lanes), its rows
     * those of z, r, h; wt = W^T likewise, its rows those of h, z, r, the order of d. */
    const char *ut, *wt;
    /* Scratch of the walk (B, d_steps, 4, H): d of the last steps, as whole rows. It may share
     * memory with `factors`. */
    char *d;
    ptrdiff_t d_steps;     /* input_steps or more; one more where threads share rows */
    ptrdiff_t input_steps; /* dX is computed for so many steps at a time */
    /* Output (B, T, I), by time: the gradient of x. Not written where a row is masked. */
    char *dx;
    /* Scratch of the gradients of the weights, product_scratch bytes, 64-byte aligned. */
    char *factors;
    /* Output (I + 2 + H, 3H): dW, db (input, recurrent), dU. One row of db if not reset_after. */
    char *dw;
    gate_functions functions;
    team_barrier *barrier;
    interrupt_poll *poll;
    const thread_counts *counts;
    int granted;
} gru_back_job;

#endif
