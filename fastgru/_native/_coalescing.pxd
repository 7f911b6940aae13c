# Small calls of many threads, run together.

from fastgru._native._headers cimport gru_job
from fastgru._native._job cimport flops_of
from fastgru._native._threads cimport is_long
from fastgru._native._weights cimport PackedWeights

cdef enum:
    LEAST_FLOPS = 3000000     # below ~50 us sleeping costs more than it gains, and ...
    MOST_ROWS = 4             # ... more rows gain nothing from other calls' rows


cdef inline bint is_worth_waiting(const gru_job *job) noexcept:
    # Nobody is to wait for a long call, and who waits sees no interrupt.
    return (
        flops_of(job) >= LEAST_FLOPS and job.B <= MOST_ROWS
        and not is_long(<double> job.B * job.T, job.inputs, job.H)
    )


cdef int execute_coalesced(gru_job *job, PackedWeights packed, int threads) except -1
