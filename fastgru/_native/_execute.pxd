# Runs a gru_job: what that takes, and in which order.

from fastgru._native._headers cimport (
    gru_job,
    interrupt_poll,
    run_scratch_type,
    run_type,
    team_barrier,
)
from fastgru._native._partition cimport Partition
from fastgru._native._weights cimport PackedWeights

cdef enum:
    GIL_FLOPS = 200000        # below ~5 us the GIL is not worth releasing

cdef struct Execution:
    gru_job *job
    run_type run
    run_scratch_type run_scratch
    Py_ssize_t panels, lanes, size
    Partition partition
    char *memory              # from `allocate`, for free_aligned; NULL: not yet
    Py_ssize_t capacity       # its bytes
    Py_ssize_t thread_bytes   # ... of each thread; they come first
    team_barrier barrier
    interrupt_poll poll

cdef int execute(gru_job *job, PackedWeights packed, int threads) except -1
# Its parts, for callers that keep the scratch, or wait before they run.
cdef void begin(Execution *execution, gru_job *job, PackedWeights packed) noexcept
cdef Py_ssize_t carve(Execution *execution, char *memory) noexcept nogil
cdef bint allocate(Execution *execution) noexcept nogil
cdef void run_with_rules(Execution *execution) noexcept
cdef void run(void *execution) noexcept nogil
cdef bint is_brief(const gru_job *job) noexcept nogil
cdef int threads_for(get_num_threads, const gru_job *job) except -1
