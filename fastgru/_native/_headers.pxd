# The C headers of kernels/, as Cython sees them.

cdef extern from "kernels.h" nogil:
    enum: ACT_COUNT
    enum: HALF_FLOAT16
    enum: HALF_BFLOAT16
    ctypedef struct gate_functions:
        int activation, recurrent_activation
        double params[3]
        double recurrent_params[3]

cdef extern from "runtime.h" nogil:
    bint FASTGRU_OPENMP
    bint FASTGRU_TEAM_BARRIER
    Py_ssize_t PTRDIFF_MAX
    ctypedef struct team_barrier:
        pass
    int openmp_threads()
    bint end_idle_threads()
    int team_rank()
    int team_size()
    double microseconds()
    ctypedef struct thread_counts:
        int leased, processors, brief_calls
    int leased_threads(const thread_counts *counts)
    int lease(thread_counts *counts, int wanted, int limit)
    void give_back(thread_counts *counts, int granted)
    void atomic_add(int *count, int change)
    bint oversubscribed(const thread_counts *counts)
    void yield_if_due(const thread_counts *counts, int granted, double *since)
    long cache_bytes(int level)
    unsigned long long denormals_off()
    void denormals_restore(unsigned long long old)
    void barrier_wait(team_barrier *b, int size)
    ctypedef struct interrupt_poll:
        int (*ask)() noexcept nogil
        double asked
        Py_ssize_t end
        int together, finished
    bint poll_stops(interrupt_poll *poll, Py_ssize_t done, Py_ssize_t next)
    void poll_join(interrupt_poll *poll, int rank, int team)
    void *allocate_aligned(size_t bytes)
    void free_aligned(void *memory)


cdef extern from "job.h" nogil:
    enum: ROW_GROUP
    ctypedef struct gru_job:
        Py_ssize_t B, T
        Py_ssize_t inputs
        Py_ssize_t H
        int reset_after, reverse, sequences, zero_masked, half
        const char *x
        Py_ssize_t x_b, x_t
        char *y
        Py_ssize_t y_b, y_s
        char *states
        char *state
        const char *h0
        const Py_ssize_t *rows
        char *alternate
        char *reset_state
        const unsigned char *steps
        const Py_ssize_t *lengths
        const unsigned char *resets
        const char *dropout
        Py_ssize_t dropout_gates
        const char *recurrent_dropout
        const char *w
        const char *u
        const char *uh
        const char *bias
        int u_finite
        char *gates
        Py_ssize_t rows_kept
        const Py_ssize_t *slots
        gate_functions functions
        Py_ssize_t chunk_rows
        team_barrier *barrier
        interrupt_poll *poll
        const thread_counts *counts
        int granted
    ctypedef struct gru_back_job:
        Py_ssize_t B, T
        Py_ssize_t inputs
        Py_ssize_t H
        int reset_after, reverse, sequences, zero_masked
        const char *x
        Py_ssize_t x_b, x_t
        const char *states
        const char *h0
        const char *dy
        Py_ssize_t dy_b, dy_s
        char *carry
        char *pending
        char *gates
        Py_ssize_t rows
        const char *reset_state
        const unsigned char *steps
        const Py_ssize_t *lengths
        const unsigned char *resets
        const Py_ssize_t *slots
        const Py_ssize_t *taken
        const char *dropout
        Py_ssize_t dropout_gates
        const char *recurrent_dropout
        const char *ut
        const char *wt
        char *d
        Py_ssize_t d_steps, input_steps
        char *dx
        char *factors
        char *dw
        gate_functions functions
        team_barrier *barrier
        interrupt_poll *poll
        const thread_counts *counts
        int granted


ctypedef void (*run_type)(
    const gru_job *job, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t panel0, Py_ssize_t panel1,
    int team, char *scratch,
) noexcept nogil
ctypedef Py_ssize_t (*run_scratch_type)(
    const gru_job *job, Py_ssize_t n, Py_ssize_t panels,
) noexcept nogil
ctypedef void (*back_type)(
    const gru_back_job *job, Py_ssize_t b0, Py_ssize_t n, Py_ssize_t panel0,
    Py_ssize_t panel1, int team, char *scratch,
) noexcept nogil
ctypedef Py_ssize_t (*back_scratch_type)(const gru_back_job *job, Py_ssize_t n) noexcept nogil
ctypedef void (*products_type)(const gru_back_job *job, int rank, int team) noexcept nogil
ctypedef Py_ssize_t (*product_scratch_type)(const gru_back_job *job) noexcept nogil


cdef extern from "kernels.h" nogil:
    ctypedef struct kernels_f32:
        void (*activations[ACT_COUNT])(Py_ssize_t n, const double *params, float *a) noexcept nogil
        void (*round)(int half, Py_ssize_t n, float *a) noexcept nogil
        Py_ssize_t lanes
        run_type run
        run_scratch_type run_scratch
        back_type back
        back_scratch_type back_scratch
        products_type products
        product_scratch_type product_scratch
    ctypedef struct kernels_f64:
        void (*activations[ACT_COUNT])(Py_ssize_t n, const double *params, double *a) noexcept nogil
        void (*round)(int half, Py_ssize_t n, double *a) noexcept nogil
        Py_ssize_t lanes
        run_type run
        run_scratch_type run_scratch
        back_type back
        back_scratch_type back_scratch
        products_type products
        product_scratch_type product_scratch
    const char *fastgru_activation_names[]
    const char *fastgru_isa_names[]
    bint fastgru_isa_supported(int isa)
    const kernels_f32 *fastgru_kernels_f32(int isa)
    const kernels_f64 *fastgru_kernels_f64(int isa)
