# Small calls of many threads, run together.

from fastgru._native._headers cimport gru_job
from fastgru._native._weights cimport PackedWeights

cdef bint is_worth_waiting(const gru_job *job) noexcept
cdef int execute_coalesced(gru_job *job, PackedWeights packed, int threads) except -1
