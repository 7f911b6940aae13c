/* One GRU call as the fused loop sees it; loop_type.h runs it.
 *
 * Pointers are C-contiguous unless strides are named; strides are in bytes. Nothing that is
 * written may overlap anything else.
 */
#ifndef FASTGRU_LOOP_H
#define FASTGRU_LOOP_H

#include "gates.h"
#include "runtime.h"

typedef struct gru_job {
    ptrdiff_t B, T, inputs, H;
    int reset_after, reverse, sequences, zero_masked;
    /* x (B, T, I), last axis contiguous; y (B, T, H) or (B, H), last axis contiguous */
    const char *x;
    ptrdiff_t x_b, x_t;
    char *y;
    ptrdiff_t y_b, y_s;
    char *states;      /* (B, T, H), the state after every step; NULL: not wanted */
    char *state;       /* (B, H), the last state; it may be h0 itself */
    const char *h0;    /* (B, H); NULL: zeros */
    const ptrdiff_t *rows; /* which rows of h0 and state are this call's; NULL: 0..B */
    char *alternate;   /* (2, B, H) scratch; NULL with sequences or states */
    char *reset_state; /* (B, H) scratch, r * h of reset_after=False; NULL with reset_after */
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
     *   bias (panels, 4, lanes), see gates.h */
    const char *w, *u, *uh, *bias;
    int u_finite; /* no infinity and no NaN in u and uh: zero rows need no product */
    /* For backward; NULL: not wanted. Of each row and step that is valid, in processing order:
     * (rows, 4, H) of z, r, n, q_h, of reset_after=False z, r, n. Where the derivative of an
     * activation is not a function of its value, its argument stands instead. */
    char *gates;
    const ptrdiff_t *slots; /* (T, B): the row of `gates` of each step and row; NULL: b * T + t */
    gate_functions functions;
    ptrdiff_t chunk_rows; /* rows of x.W that are made at a time */
    team_barrier *barrier;
} gru_job;

/* The walk back through time; loop_back_type.h runs it. What forward has too means the same. */
typedef struct gru_back_job {
    ptrdiff_t B, T, H;
    int reset_after, reverse, sequences, zero_masked;
    const char *states;        /* (B, T, H) */
    const char *h0;            /* (B, H) or NULL */
    const char *dy;            /* (B, T, H) or (B, H), last axis contiguous; NULL: zeros */
    ptrdiff_t dy_b, dy_s;      /* bytes */
    char *carry;               /* (B, H): in the gradient of the last state, out that of h0 */
    char *pending;             /* (B, H) scratch: gradients of outputs that repeat a step's */
    char *d;                   /* (rows, 4, H) in: the gates as forward kept them; out: da_h, da_z,
                                * da_r, and dq_h, or with reset_after=False r * k */
    const unsigned char *steps;
    const ptrdiff_t *lengths;
    const unsigned char *resets;
    const ptrdiff_t *slots;    /* (T, B) as in gru_job */
    const char *recurrent_dropout; /* (3, B, H) or NULL */
    /* U^T packed in panels of 2 * lanes units: (panels, 3H, 2, lanes); its rows z, r, h */
    const char *ut;
    gate_functions functions;
    team_barrier *barrier;
} gru_back_job;

#endif
