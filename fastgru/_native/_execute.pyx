# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Runs a gru_job on its kernel: partition, scratch, the GIL, threads and interrupts.

Every call forward comes through here, whatever made its job and whichever kernel runs it.
"""

from libc.string cimport memset

from fastgru._native._headers cimport allocate_aligned, free_aligned, gru_job
from fastgru._native._job cimport flops_of, padded
from fastgru._native._partition cimport Part, divide_job, next_part, shorten_steps
from fastgru._native._threads cimport (
    counts_of_process,
    is_long,
    is_stopped,
    run_team,
    start_poll,
    without_gil,
)
from fastgru._native._weights cimport PackedWeights

cdef enum:
    P_BYTES = 1 << 18         # x.W of one time chunk, per thread: stays in L2 beside the weights
    P_ROWS = 32               # ... but at least so many rows, or W is read too often
    BRIEF_FLOPS = 50000000    # half a millisecond, or 5 without vectors


cdef int execute(gru_job *job, PackedWeights packed, int threads) except -1:
    # No state: its user does not want it.
    cdef Execution execution
    execution.memory, execution.capacity = NULL, 0
    begin(&execution, job, packed)
    execution.partition = divide_job(job, packed, threads)
    if (
        is_long(<double> job.B * job.T, job.inputs, job.H)
        and start_poll(&execution.poll, execution.partition.shared)
    ):
        job.poll = &execution.poll
        shorten_steps(&execution.partition, job)
    if not allocate(&execution):
        raise MemoryError(f"scratch of {job.B} rows of {job.T} steps")
    if packed.enter != NULL:
        packed.enter()
    run_with_rules(&execution)
    if packed.leave != NULL:
        packed.leave()
    free_aligned(execution.memory)
    return -1 if is_stopped(job.poll) else 0


cdef void begin(Execution *execution, gru_job *job, PackedWeights packed) noexcept:
    # The job gets the weights, and the execution the kernel that runs them.
    execution.job = job
    execution.run, execution.run_scratch = packed.run, packed.run_scratch
    execution.panels, execution.lanes, execution.size = packed.panels, packed.lanes, packed.size
    job.barrier, job.counts = &execution.barrier, counts_of_process()


cdef bint is_brief(const gru_job *job) noexcept nogil:
    return flops_of(job) < BRIEF_FLOPS


cdef int threads_for(get_num_threads, const gru_job *job) except -1:
    # Asking costs 0.1 us, a tenth of a small call; and one below ~2 us is never shared.
    return 1 if flops_of(job) < GIL_FLOPS else get_num_threads()


cdef bint allocate(Execution *execution) noexcept nogil:
    # The scratch of a partition, unless there is enough already; False: no memory.
    cdef gru_job *job = execution.job
    cdef const Partition *partition = &execution.partition
    cdef Py_ssize_t panels = execution.panels, rows = partition.rows, need
    if partition.shared:
        panels = (panels + partition.threads - 1) // partition.threads
    job.chunk_rows = P_BYTES // (3 * execution.lanes * panels * execution.size)
    job.chunk_rows = max(job.chunk_rows, <Py_ssize_t> P_ROWS)
    job.chunk_rows = max(min(job.chunk_rows, rows * job.T), rows)
    execution.thread_bytes = padded(execution.run_scratch(job, rows, execution.panels))
    need = carve(execution, NULL)
    if need > execution.capacity:
        free_aligned(execution.memory)
        execution.capacity = 0
        execution.memory = <char *> allocate_aligned(need)
        if execution.memory == NULL:
            return False
        execution.capacity = need
    carve(execution, execution.memory)
    if partition.threads > 1:
        memset(&execution.barrier, 0, sizeof(execution.barrier))
    return True


cdef Py_ssize_t carve(Execution *execution, char *memory) noexcept nogil:
    # Divides the scratch among the threads and what they share; returns its bytes. NULL: only that.
    cdef gru_job *job = execution.job
    cdef Py_ssize_t states = padded(job.B * job.H * execution.size)
    cdef Py_ssize_t used = execution.partition.threads * execution.thread_bytes
    if job.half or (not job.sequences and job.states == NULL):
        if memory != NULL:
            job.alternate = memory + used
        used += 2 * states
    if not job.reset_after and job.reset_state == NULL:
        if memory != NULL:
            job.reset_state = memory + used
        used += states
    if job.state == NULL:
        if memory != NULL:
            job.state = memory + used
        used += states
    return used


cdef void run_with_rules(Execution *execution) noexcept:
    if execution.partition.threads == 1 and flops_of(execution.job) < GIL_FLOPS:
        run(execution)
    else:
        without_gil(run, execution, is_brief(execution.job))


cdef void run(void *execution) noexcept nogil:
    cdef Execution *e = <Execution *> execution
    run_team(_run_parts, execution, e.partition.threads, &e.job.granted, e.job.poll)


cdef void _run_parts(void *execution, int rank, int team) noexcept nogil:
    # What one thread of the team runs.
    cdef Execution *e = <Execution *> execution
    cdef char *scratch = e.memory + rank * e.thread_bytes
    cdef Part part
    part.number = rank
    while next_part(&e.partition, e.job.B, e.panels, team, &part):
        e.run(e.job, part.b0, part.n, part.panel0, part.panel1, part.team, scratch)
