# gates.h, as Cython sees it.

cdef extern from "gates.h" nogil:
    enum: ACT_COUNT
    ctypedef struct gate_functions:
        int activation, recurrent_activation
        double params[3]
        double recurrent_params[3]
    ctypedef struct kernels_f32:
        void (*after)(
            Py_ssize_t n, Py_ssize_t H, const float *p, const float *q, const float *b,
            const float *h, float *h_new, float *work, const gate_functions *f,
        ) noexcept nogil
        void (*before_zr)(
            Py_ssize_t n, Py_ssize_t H, const float *p, const float *q, const float *b,
            const float *k, float *z, float *rk, float *work, const gate_functions *f,
        ) noexcept nogil
        void (*before_h)(
            Py_ssize_t n, Py_ssize_t H, const float *p, const float *q, const float *b,
            const float *z, const float *h, float *h_new, float *work, const gate_functions *f,
        ) noexcept nogil
        void (*multiply)(Py_ssize_t n, const float *a, const float *b, float *c) noexcept nogil
        void (*activations[ACT_COUNT])(Py_ssize_t n, const double *params, float *a) noexcept nogil
    ctypedef struct kernels_f64:
        void (*after)(
            Py_ssize_t n, Py_ssize_t H, const double *p, const double *q, const double *b,
            const double *h, double *h_new, double *work, const gate_functions *f,
        ) noexcept nogil
        void (*before_zr)(
            Py_ssize_t n, Py_ssize_t H, const double *p, const double *q, const double *b,
            const double *k, double *z, double *rk, double *work, const gate_functions *f,
        ) noexcept nogil
        void (*before_h)(
            Py_ssize_t n, Py_ssize_t H, const double *p, const double *q, const double *b,
            const double *z, const double *h, double *h_new, double *work,
            const gate_functions *f,
        ) noexcept nogil
        void (*multiply)(Py_ssize_t n, const double *a, const double *b, double *c) noexcept nogil
        void (*activations[ACT_COUNT])(Py_ssize_t n, const double *params, double *a) noexcept nogil
    const char *fastgru_activation_names[]
    const char *fastgru_isa_names[]
    bint fastgru_isa_supported(int isa)
    const kernels_f32 *fastgru_kernels_f32(int isa)
    const kernels_f64 *fastgru_kernels_f64(int isa)


cdef extern from "runtime.h" nogil:
    bint FASTGRU_OPENMP
    bint FASTGRU_TEAM_BARRIER
    ctypedef struct team_barrier:
        pass
    int team_rank()
    int team_size()
    long process_id()
    unsigned long long denormals_off()
    void denormals_restore(unsigned long long old)
    void barrier_wait(team_barrier *b, int size)
    void *allocate_aligned(size_t bytes)
    void free_aligned(void *memory)
