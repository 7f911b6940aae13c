/* The forward loop over time for one ISA and one TYPE; included by kernels_type.h after
 * gates_type.h.
 *
 * The gates of a tile are computed right after its sums, while these are in L1: an epilogue does
 * that. Rows are listed by pointers. A row that does not take a step is not in the list of that
 * step, and h(t-1) is read where step t-1 wrote it, in the output.
 */
#include "tile_type.h"

#include "epilogues_type.h"

/* A thread's part of a call, and the pieces of its scratch. */
typedef struct {
    const gru_job *job;
    ptrdiff_t b0, n;          /* its rows */
    ptrdiff_t panel0, panel1; /* its panels */
    int team;                 /* threads that make panels of the same rows */
    ptrdiff_t u0, own;        /* the first unit of its panels, and how many units they have */
    TYPE *zeros;              /* (H) */
    TYPE *p;                  /* (chunk_rows, panels, 3, LANES): x.W and the bias */
    TYPE *start;              /* (n, H): h0, where it has 16 bits */
    TYPE *made_x;             /* (gates, chunk_rows, I): x with dropout, or from 16 bits */
    TYPE *dropped_h;          /* (3, n, H): the state with dropout */
    TYPE *z;                  /* (n, panels, LANES), reset_after=False */
    const TYPE **x_rows;      /* (gates, chunk_rows) */
    const TYPE **biases;      /* (chunk_rows) */
    TYPE **p_rows;            /* (chunk_rows) */
    const TYPE **current;     /* (n): the state of each row */
    const TYPE **previous;    /* (n): its last valid output; NULL before there is one */
    /* (n): of the rows that take the step, the active ones. */
    const TYPE **h, **k_rows; /* k_rows: (3, n) with recurrent dropout */
    TYPE **h_new, **z_rows, **rk_rows, **gate_rows;
    ptrdiff_t *index; /* which row it is */
    ptrdiff_t *slots; /* where its gates or its reset_state lie */
} PART;

#define INPUT_COPIES(job) ((job)->dropout ? (job)->dropout_gates : 1)
#define STATE_COPIES(job) ((job)->recurrent_dropout ? 3 : 1)

/* Returns the bytes of a part's scratch, and carves it unless base is NULL. */
static ptrdiff_t FN(carve_part)(PART *part, char *base) {
    const gru_job *job = part->job;
    const ptrdiff_t n = part->n, panels = part->panel1 - part->panel0, H = job->H;
    const ptrdiff_t gates = INPUT_COPIES(job), chunk = job->chunk_rows;
    size_t size = 0;
    CARVE(part->zeros, H);
    CARVE(part->p, chunk * panels * 3 * LANES);
    CARVE(part->start, HALF(job) && job->h0 ? n * H : 0);
    CARVE(part->made_x, job->dropout || HALF(job) ? gates * chunk * job->inputs : 0);
    CARVE(part->dropped_h, job->recurrent_dropout ? 3 * n * H : 0);
    CARVE(part->z, job->reset_after ? 0 : n * panels * LANES);
    CARVE(part->x_rows, gates * chunk);
    CARVE(part->biases, chunk);
    CARVE(part->p_rows, chunk);
    CARVE(part->current, n);
    CARVE(part->previous, n);
    CARVE(part->h, n);
    CARVE(part->k_rows, STATE_COPIES(job) * n);
    CARVE(part->h_new, n);
    CARVE(part->z_rows, n);
    CARVE(part->rk_rows, n);
    CARVE(part->gate_rows, n);
    CARVE(part->index, n);
    CARVE(part->slots, n);
    return (ptrdiff_t)size;
}

/* Computes x.W and the bias of the rows that take the steps s0..s1, in processing order. */
static void FN(project)(const PART *part, ptrdiff_t s0, ptrdiff_t s1) {
    const gru_job *job = part->job;
    const ptrdiff_t row = (part->panel1 - part->panel0) * 3 * LANES, I = job->inputs;
    const ptrdiff_t gates = INPUT_COPIES(job), ld = job->chunk_rows;
    ptrdiff_t count = 0;
    for (ptrdiff_t s = s0; s < s1; s++) {
        const ptrdiff_t t = TIME_OF(job, s);
        for (ptrdiff_t b = part->b0; b < part->b0 + part->n; b++) {
            if (!IS_VALID(job, b, t))
                continue;
            const TYPE *x = (const TYPE *)(job->x + b * job->x_b + t * job->x_t);
            part->p_rows[count] = part->p + count * row;
            for (ptrdiff_t g = 0; g < gates; g++) {
                TYPE *made = part->made_x + (g * ld + count) * I;
                if (HALF(job))
                    FN(from_halves)(HALF(job), I, (const char *)x, made);
                if (job->dropout)
                    FN(multiply)(I, HALF(job) ? made : x,
                                 (const TYPE *)job->dropout + (g * job->B + b) * I, made);
                part->x_rows[g * ld + count] = job->dropout || HALF(job) ? made : x;
            }
            count++;
        }
    }
    for (ptrdiff_t i = 0; i < count; i++)
        part->biases[i] = (const TYPE *)job->bias + part->panel0 * 4 * LANES;
    OPERANDS o = {.K = I,
                  .rows = part->x_rows,
                  .ld = ld,
                  .w = (const TYPE *)job->w,
                  .stride = I * 3 * LANES,
                  .start = part->biases,
                  .start_stride = 4 * LANES,
                  .out = part->p_rows};
    if (count)
        FN(multiply_panels)(gates == 3 ? FN(tiles_3s) : FN(tiles_3), 3, &o, count, part->panel0,
                            part->panel1, NULL, NULL);
}

/* Lists the rows that take step s: their states, and where the new states go. Returns their number.
 * Sets *started if the state of one of them is not the zeros that rows may begin with. */
static inline ptrdiff_t FN(list_rows)(const PART *part, ptrdiff_t s, int *started) {
    const gru_job *job = part->job;
    const ptrdiff_t t = TIME_OF(job, s), H = job->H;
    const ptrdiff_t vectors = job->reset_after ? 4 : 3; /* of gates, in a panel */
    ptrdiff_t active = 0;
    for (ptrdiff_t k = 0; k < part->n; k++) {
        const ptrdiff_t b = part->b0 + k;
        if (IS_RESET(job, b, t))
            part->current[k] = part->zeros;
        if (!IS_VALID(job, b, t))
            continue;
        TYPE *target;
        if (HALF(job) || !(job->states || job->sequences)) {
            target = (TYPE *)job->alternate + b * H;
            if (target == part->current[k] || target == part->previous[k])
                target += job->B * H;
        } else if (job->states) {
            target = (TYPE *)job->states + (b * job->T + s) * H;
        } else {
            target = (TYPE *)(job->y + b * job->y_b + s * job->y_s);
        }
        part->index[active] = k;
        part->slots[active] = b;
        if (job->gates) {
            const ptrdiff_t place = kept_place(job->B, job->T, s, b);
            const ptrdiff_t slot = job->slots ? job->slots[place] : place;
            part->slots[active] = slot;
            part->gate_rows[active] = (TYPE *)job->gates + slot * vectors * LANES;
        }
        part->h[active] = part->current[k];
        *started |= part->current[k] != part->zeros;
        part->h_new[active] = target;
        active++;
    }
    for (ptrdiff_t g = 0; g < STATE_COPIES(job); g++)
        for (ptrdiff_t a = 0; a < active; a++) {
            const TYPE **k = &part->k_rows[g * part->n + a];
            *k = part->h[a];
            if (job->recurrent_dropout) {
                const ptrdiff_t b = part->b0 + part->index[a];
                TYPE *copy = part->dropped_h + (g * part->n + a) * H;
                FN(multiply)(H, part->h[a],
                             (const TYPE *)job->recurrent_dropout + (g * job->B + b) * H, copy);
                *k = copy;
            }
        }
    return active;
}

/* Lists the rows of a plain call, all of them, for the next step: each output is the state before
 * it. */
static inline void FN(list_next)(const PART *part) {
    for (ptrdiff_t k = 0; k < part->n; k++) {
        part->k_rows[k] = part->h[k] = part->h_new[k];
        part->h_new[k] = (TYPE *)((char *)part->h_new[k] + part->job->y_s);
    }
}

/* Computes one step of the rows listed. K: H, or 0 if all states, and so the products, are 0. */
static inline void FN(advance)(const PART *part, const STEP *step, ptrdiff_t active, ptrdiff_t K,
                               int descending) {
    const gru_job *job = part->job;
    const ptrdiff_t H = job->H, panel0 = part->panel0, panel1 = part->panel1;
    const int split = job->recurrent_dropout != NULL;
    OPERANDS o = {.K = K,
                  .rows = part->k_rows,
                  .ld = part->n,
                  .w = (const TYPE *)job->u,
                  .stride = H * 3 * LANES,
                  .descending = descending,
                  .start = step->p,
                  .start_stride = 3 * LANES};
    if (job->reset_after) {
        o.last = (const TYPE *)job->bias + 3 * LANES;
        o.last_stride = 4 * LANES;
        if (active)
            FN(multiply_panels)(split ? FN(tiles_3s) : FN(tiles_3), 3, &o, active, panel0, panel1,
                                FN(epilogue_after), step);
        return;
    }
    for (ptrdiff_t a = 0; a < active; a++) {
        part->z_rows[a] = part->z + a * (panel1 - panel0) * LANES;
        part->rk_rows[a] = (TYPE *)job->reset_state + part->slots[a] * H;
    }
    o.stride = H * 2 * LANES;
    if (active)
        FN(multiply_panels)(split ? FN(tiles_2s) : FN(tiles_2), 2, &o, active, panel0, panel1,
                            FN(epilogue_zr), step);
    barrier_wait(job->barrier, part->team);
    o.rows = (const TYPE *const *)part->rk_rows;
    o.w = (const TYPE *)job->uh;
    o.K = H; /* r may be NaN, and NaN times a zero state is no zero */
    o.stride = H * LANES;
    o.start_offset = 2 * LANES;
    if (active)
        FN(multiply_panels)(FN(tiles_1), 1, &o, active, panel0, panel1, FN(epilogue_h), step);
}

/* Writes the thread's units of row k of y, for the time t: the last valid output, or zeros. */
static inline void FN(write_output)(const PART *part, char *y, ptrdiff_t k, ptrdiff_t t) {
    const gru_job *job = part->job;
    char *to = y + part->u0 * ITEM(job);
    if (!part->previous[k] || (job->zero_masked && !IS_VALID(job, part->b0 + k, t)))
        memset(to, 0, (size_t)(part->own * ITEM(job)));
    else
        FN(store)(job, part->own, part->previous[k] + part->u0, to);
}

/* Writes the outputs and states that the tiles of step s have not written: those of masked rows,
 * and with `states` all outputs, because the tiles write there instead of to y. Where they have 16
 * bits the tiles write neither. */
static inline void FN(write_step)(const PART *part, ptrdiff_t s) {
    const gru_job *job = part->job;
    const ptrdiff_t t = TIME_OF(job, s), u0 = part->u0;
    for (ptrdiff_t k = 0; k < part->n; k++) {
        const ptrdiff_t b = part->b0 + k;
        const int valid = IS_VALID(job, b, t);
        if (job->states && (!valid || HALF(job)))
            FN(store)(job, part->own, part->current[k] + u0,
                      job->states + ((b * job->T + s) * job->H + u0) * ITEM(job));
        if (job->sequences && (!valid || job->states || HALF(job)))
            FN(write_output)(part, job->y + b * job->y_b + s * job->y_s, k, t);
    }
}

/* Writes the last states, and y if only the last outputs are wanted. */
static inline void FN(write_last)(const PART *part) {
    const gru_job *job = part->job;
    for (ptrdiff_t k = 0; k < part->n; k++) {
        const ptrdiff_t b = part->b0 + k, row = job->rows ? job->rows[b] : b;
        FN(store)(job, part->own, part->current[k] + part->u0,
                  job->state + (row * job->H + part->u0) * ITEM(job));
        if (!job->sequences)
            FN(write_output)(part, job->y + b * job->y_b, k, TIME_OF(job, job->T - 1));
    }
}

/* The kernel `run` (kernels.h) where units are in the lanes. A call that is stopped leaves its
 * outputs incomplete. */
static void FN(run_block)(const gru_job *job, ptrdiff_t b0, ptrdiff_t n, ptrdiff_t panel0,
                          ptrdiff_t panel1, int team, char *scratch) {
    const ptrdiff_t T = job->T, H = job->H;
    const ptrdiff_t u0 = panel0 * LANES < H ? panel0 * LANES : H;
    const ptrdiff_t u1 = panel1 * LANES < H ? panel1 * LANES : H;
    const int half = HALF(job);
    const int elsewhere = job->steps || job->lengths || job->states || half; /* see write_step */
    const int plain =
        job->sequences && !(elsewhere || job->resets || job->recurrent_dropout || job->gates);
    PART part = {.job = job,
                 .b0 = b0,
                 .n = n,
                 .panel0 = panel0,
                 .panel1 = panel1,
                 .team = team,
                 .u0 = u0,
                 .own = u1 - u0};
    FN(carve_part)(&part, scratch);
    STEP step = {.job = job,
                 .panel0 = panel0,
                 .h = part.h,
                 .k = part.k_rows + (STATE_COPIES(job) - 1) * n,
                 .h_new = part.h_new,
                 .rk = part.rk_rows,
                 .z = part.z_rows,
                 .gates = job->gates ? part.gate_rows : NULL,
                 .gates_stride = job->rows_kept * (job->reset_after ? 4 : 3) * LANES};

    memset(part.zeros, 0, (size_t)H * sizeof(TYPE));
    for (ptrdiff_t k = 0; k < n; k++) {
        const ptrdiff_t b = job->rows ? job->rows[b0 + k] : b0 + k;
        part.current[k] = job->h0 ? (const TYPE *)job->h0 + b * H : part.zeros;
        if (HALF(job) && job->h0) {
            FN(from_halves)(HALF(job), H, job->h0 + b * H * ITEM(job), part.start + k * H);
            part.current[k] = part.start + k * H;
        }
        part.previous[k] = NULL;
    }
    const ptrdiff_t chunk = job->chunk_rows / n > 0 ? job->chunk_rows / n : 1;
    double yielded = 0;
    for (ptrdiff_t s0 = 0; s0 < T; s0 += chunk) {
        const ptrdiff_t s1 = s0 + chunk < T ? s0 + chunk : T;
        if (job->poll && poll_stops(job->poll, s0, s1))
            return;
        if (team == 1)
            yield_if_due(job->counts, job->granted, &yielded);
        FN(project)(&part, s0, s1);
        step.p = (const TYPE *const *)part.p_rows;
        for (ptrdiff_t s = s0; s < s1; s++) {
            const int again = plain && s > 0;
            int started = again;
            ptrdiff_t active = n;
            if (again)
                FN(list_next)(&part);
            else
                active = FN(list_rows)(&part, s, &started);
            /* zero states times finite weights are zero: the first step often needs no product */
            FN(advance)(&part, &step, active, started || !job->u_finite ? H : 0, s & 1);
            step.p += active;
            if (half)
                for (ptrdiff_t a = 0; a < active; a++)
                    FN(round)(half, u1 - u0, part.h_new[a] + u0);
            if (!plain || s == T - 1)
                for (ptrdiff_t a = 0; a < active; a++) {
                    const ptrdiff_t k = part.index[a];
                    part.current[k] = part.previous[k] = part.h_new[a];
                }
            if (elsewhere)
                FN(write_step)(&part, s);
            barrier_wait(job->barrier, team);
        }
    }
    FN(write_last)(&part);
}

#undef INPUT_COPIES
#undef STATE_COPIES
