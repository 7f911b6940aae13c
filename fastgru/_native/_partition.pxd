# How a call is divided among threads.

from fastgru._native._headers cimport gru_job
from fastgru._native._weights cimport PackedWeights

# What is to be done: T steps of B rows, of which so many multiply U; at each step threads that
# share rows meet so often.
cdef struct Work:
    Py_ssize_t B, T, inputs, H
    Py_ssize_t panels, lanes, size
    Py_ssize_t products
    int meetings

# Either each thread runs rows of its own, or all run the same rows and each owns a range of panels
# (shared). Times in microseconds, as the model sees them; 0: not considered.
cdef struct Partition:
    int threads
    bint shared
    Py_ssize_t rows           # per thread, at a time
    int parts                 # of the rows, not shared; 0: one per thread
    double alone, split, together

cdef struct Part:
    int number
    Py_ssize_t b0, n, panel0, panel1
    int team                  # threads that share these rows

cdef Partition divide(int threads, const Work *work, bint heed) noexcept
cdef Partition divide_job(const gru_job *job, PackedWeights packed, int threads) noexcept
cdef bint is_same(const Partition *one, const Partition *other) noexcept
cdef void shorten_steps(Partition *partition, const gru_job *job) noexcept
cdef bint next_part(
    const Partition *partition, Py_ssize_t B, Py_ssize_t panels, int team, Part *part,
) noexcept nogil
