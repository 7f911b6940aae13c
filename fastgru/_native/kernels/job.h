/* One GRU call as the fused loop sees it; forward_type.h runs it.
 *
 * Pointers are C-contiguous unless strides are named; strides are in bytes. Nothing that is
 * written may overlap anything else.
 */
#ifndef FASTGRU_JOB_H
#define FASTGRU_JOB_H

#include "kernels.h"
#include "runtime.h"

/* The order in which the gates of all rows and steps are kept: step after step of ROW_GROUP rows of
 * the batch, then the next rows. So threads that own rows write far apart: were all rows of a step
 * side by side, the prefetchers of each core would take the others' lines away, for 1.2 times the
 * time of a walk of (16, 50, 32, 64). */
#define ROW_GROUP 8
static inline ptrdiff_t kept_place(ptrdiff_t B, ptrdiff_t T, ptrdiff_t s, ptrdiff_t b) {
    const ptrdiff_t first = b / ROW_GROUP * ROW_GROUP;
    return first * T + s * (B - first < ROW_GROUP ? B - first : ROW_GROUP) + b - first;
}
/* The step of a place; its row goes to b. */
static inline ptrdiff_t kept_step(ptrdiff_t B, ptrdiff_t T, ptrdiff_t place, ptrdiff_t *b) {
    const ptrdiff_t first = place / (ROW_GROUP * T) * ROW_GROUP;
    const ptrdiff_t rows = B - first < ROW_GROUP ? B - first : ROW_GROUP;
    *b = first + (place - first * T) % rows;
    return (place - first * T) / rows;
}

/* Of a gru_job or a gru_back_job: the time that step s of the processing order reads, and what the
 * masks say of row b at time t. */
#define TIME_OF(job, s) ((job)->reverse ? (job)->T - 1 - (s) : (s))
#define IS_VALID(job, b, t)                                                                        \
    ((job)->lengths ? (t) < (job)->lengths[b] : !(job)->steps || (job)->steps[(b) * (job)->T + (t)])
#define IS_RESET(job, b, t) ((job)->resets && (job)->resets[(b) * (job)->T + (t)])

typedef struct gru_job {
    ptrdiff_t B, T, inputs, H;
    int reset_after, reverse, sequences, zero_masked;
    /* x (B, T, I), last axis contiguous; y (B, T, H) or (B, H), last axis contiguous */
    const char *x;
    ptrdiff_t x_b, x_t;
    char *y;
    ptrdiff_t y_b, y_s;
    char *states;          /* (B, T, H), the state after every step; NULL: not wanted */
    char *state;           /* (B, H), the last state; it may be h0 itself */
    const char *h0;        /* (B, H); NULL: zeros */
    const ptrdiff_t *rows; /* which rows of h0 and state are this call's; NULL: 0..B */
    char *alternate;       /* (2, B, H) scratch; NULL with sequences or states */
    /* r * h of reset_after=False: (B, H) scratch, or with `gates` (rows, H), which backward reads
     * too; NULL with reset_after */
    char *reset_state;
    /* Masks in input order: (B, T), (B), (B, T). NULL: none. */
    const unsigned char *steps;
    const ptrdiff_t *lengths;
    const unsigned char *resets;
    const char *dropout;           /* (dropout_gates, B, I); NULL: none */
    ptrdiff_t dropout_gates;       /* 1 or 3 */
    const char *recurrent_dropout; /* (3, B, H); NULL: none */
    /* Packed: panels of `lanes` units, the last one padded with zeros.
     *   w    (panels, I, 3, lanes)
     *   u    (panels, H, 3, lanes), or reset_after=False: (panels, H, 2, lanes) of z and r
     *   uh   reset_after=False: (panels, H, 1, lanes)
     *   bias (panels, 4, lanes), see kernels.h */
    const char *w, *u, *uh, *bias;
    int u_finite; /* no infinity and no NaN in u and uh: zero rows need no product */
    /* For backward; NULL: not wanted. z, r, n and q_h, of reset_after=False z, r, n, of each row
     * and step that is valid: (panels, rows, 4 or 3, lanes), so that the products of backward read
     * them in order. Where the derivative of an activation is not a function of its value, its
     * argument stands instead. Lanes beyond H are not written. */
    char *gates;
    ptrdiff_t rows_kept;    /* `rows` in the line above */
    const ptrdiff_t *slots; /* (B * T) by place: the row of `gates`; NULL: the place itself */
    gate_functions functions;
    ptrdiff_t chunk_rows; /* rows of x.W that are made at a time */
    team_barrier *barrier;
    interrupt_poll *poll;        /* of a long call; NULL: it runs to its end */
    const thread_counts *counts; /* of the process; NULL: it has nothing else to do */
    int granted;                 /* threads of this call */
} gru_job;

/* The way back: backward_type.h walks through time, products_type.h makes the gradients of the
 * weights. What forward has too means the same. */
typedef struct gru_back_job {
    ptrdiff_t B, T, inputs, H;
    int reset_after, reverse, sequences, zero_masked;
    const char *x; /* (B, T, I), last axis contiguous */
    ptrdiff_t x_b, x_t;
    const char *states; /* (B, T, H) */
    const char *h0;     /* (B, H) or NULL */
    const char *dy;     /* (B, T, H) or (B, H), last axis contiguous; NULL: zeros */
    ptrdiff_t dy_b, dy_s;
    char *carry;             /* (B, H): in the gradient of the last state, out that of h0 */
    char *pending;           /* (B, H) scratch: gradients of outputs that repeat a step's */
    char *gates;             /* as in gru_job, 64-byte aligned; the walk leaves d there: da_h, da_z,
                              * da_r, and with reset_after dq_h; zeros in the lanes beyond H */
    ptrdiff_t rows;          /* ... of so many rows and steps */
    const char *reset_state; /* (rows, H) as forward kept it; NULL with reset_after */
    const unsigned char *steps;
    const ptrdiff_t *lengths;
    const unsigned char *resets;
    const ptrdiff_t *slots;  /* (B * T) as in gru_job */
    const ptrdiff_t *taken;  /* (rows): the place of each row of gates; NULL: the row itself */
    const char *dropout;     /* (dropout_gates, B, I) or NULL */
    ptrdiff_t dropout_gates; /* 1 or 3 */
    const char *recurrent_dropout; /* (3, B, H) or NULL */
    /* Packed in panels of 2 * lanes: U^T (panels, 3H, 2, lanes), its rows z, r, h, and W^T, whose
     * rows are h, z, r: the order of d. */
    const char *ut, *wt;
    char *d;               /* (B, d_steps, 4, H) scratch: d of the last steps, of whole rows */
    ptrdiff_t d_steps;     /* at least input_steps, one more where threads share rows */
    ptrdiff_t input_steps; /* of so many steps dX is made at once */
    char *dx;              /* (B, T, I); what no step has taken is not written */
    char *factors;         /* scratch of run_products, 64-byte aligned; see carve_factors */
    char *dw;              /* (I + 2 + H, 3H), of reset_after=False (I + 1 + H, 3H): dW, db, dU */
    gate_functions functions;
    team_barrier *barrier;
    interrupt_poll *poll;        /* of a long call; NULL: it runs to its end */
    const thread_counts *counts; /* of the process; NULL: it has nothing else to do */
    int granted;                 /* threads of this call */
} gru_back_job;

#endif
