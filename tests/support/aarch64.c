/* The baseline's fused loop on one problem from standard input, forward and back: test_aarch64.py
 * compiles it for another machine than this one, and says what is read and written. */
#include "kernels.h"
#include "job.h"
#include <stdio.h>
#include <stdlib.h>

static char *take(size_t bytes) {
    char *memory = allocate_aligned(bytes + 64);
    if (!memory || fread(memory, 1, bytes, stdin) != bytes)
        exit(2);
    return memory;
}

static char *make(size_t bytes) {
    char *memory = allocate_aligned(bytes + 64);
    return memory ? memory : (exit(2), NULL);
}

static void give(const char *memory, size_t bytes) { fwrite(memory, 1, bytes, stdout); }

int main(int argc, char **argv) {
    if (argc > 1) { /* the lanes of float32 and float64 */
        printf("%s %d %d\n", fastgru_isa_names[0], (int)fastgru_kernels_f32(0)->lanes,
               (int)fastgru_kernels_f64(0)->lanes);
        return 0;
    }
    const ptrdiff_t *n = (const ptrdiff_t *)take(6 * sizeof(ptrdiff_t));
    const ptrdiff_t size = n[0], B = n[1], T = n[2], I = n[3], H = n[4], after = n[5];
    const kernels_f32 *f32 = fastgru_kernels_f32(0);
    const kernels_f64 *f64 = fastgru_kernels_f64(0);
    const ptrdiff_t lanes = size == 4 ? f32->lanes : f64->lanes;
    const ptrdiff_t units = (H + lanes - 1) / lanes * lanes,
                    rest = (H + 2 * lanes - 1) / (2 * lanes);
    const size_t y_bytes = (size_t)(B * T * H * size), row_bytes = (size_t)(B * H * size);
    const ptrdiff_t panels = units / lanes, rows = I + (after ? 2 : 1) + H;
    team_barrier barrier = {0};
    gru_job job = {.B = B, .T = T, .inputs = I, .H = H, .reset_after = (int)after, .sequences = 1};
    gru_back_job back = {.B = B,
                         .T = T,
                         .inputs = I,
                         .H = H,
                         .reset_after = (int)after,
                         .sequences = 1,
                         .rows = B * T,
                         .input_steps = 1,
                         .d_steps = 1};
    job.x = back.x = take((size_t)(B * T * I * size));
    job.x_b = back.x_b = T * I * size;
    job.x_t = back.x_t = I * size;
    job.h0 = back.h0 = take(row_bytes);
    job.w = take((size_t)(units * I * 3 * size));
    job.u = take((size_t)(units * H * (after ? 3 : 2) * size));
    job.uh = after ? NULL : take((size_t)(units * H * size));
    job.bias = take((size_t)(units * 4 * size));
    back.ut = take((size_t)(rest * 2 * lanes * 3 * H * size));
    back.wt = take((size_t)((I + 2 * lanes - 1) / (2 * lanes) * 2 * lanes * 3 * H * size));
    back.dy = take(y_bytes);
    back.dy_b = job.y_b = T * H * size;
    back.dy_s = job.y_s = H * size;
    back.carry = take(row_bytes);
    job.y = make(y_bytes);
    job.state = make(row_bytes);
    job.reset_state = after ? NULL : make(y_bytes);
    job.chunk_rows = B * T;
    job.barrier = back.barrier = &barrier;
    job.functions.activation = back.functions.activation = ACT_TANH;
    job.functions.recurrent_activation = back.functions.recurrent_activation = ACT_SIGMOID;

    char *scratch = make((size_t)(size == 4 ? f32->run_scratch(&job, B, panels)
                                            : f64->run_scratch(&job, B, panels)));
    (size == 4 ? f32->run : f64->run)(&job, 0, B, 0, panels, 1, scratch);
    give(job.y, y_bytes); /* plain: with few units, the narrow loop's */
    job.gates = back.gates = make((size_t)(panels * B * T * (after ? 4 : 3) * lanes * size));
    job.rows_kept = B * T;
    (size == 4 ? f32->run : f64->run)(&job, 0, B, 0, panels, 1, scratch);
    give(job.y, y_bytes);

    back.states = job.y;
    back.reset_state = job.reset_state;
    back.pending = make(row_bytes);
    back.d = make(4 * row_bytes);
    back.dx = make((size_t)(B * T * I * size));
    back.dw = make((size_t)(rows * 3 * H * size));
    back.factors =
        make((size_t)(size == 4 ? f32->product_scratch(&back) : f64->product_scratch(&back)));
    scratch = make((size_t)(size == 4 ? f32->back_scratch(&back, B) : f64->back_scratch(&back, B)));
    (size == 4 ? f32->back : f64->back)(&back, 0, B, 0, rest, 1, scratch);
    (size == 4 ? f32->products : f64->products)(&back, 0, 1);
    give(back.carry, row_bytes);
    give(back.dx, (size_t)(B * T * I * size));
    give(back.dw, (size_t)(rows * 3 * H * size));
    return 0;
}
