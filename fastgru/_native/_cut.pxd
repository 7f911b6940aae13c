# How a fused call is cut among threads.

# What is to be done: T steps of B rows, of which so many multiply U; each step has so many meetings
# of threads that share rows.
cdef struct Work:
    Py_ssize_t B, T, inputs, H
    Py_ssize_t panels, lanes, size
    Py_ssize_t products
    int meetings

# Either each thread runs rows of its own, or all run the same rows and each owns a range of panels
# (shared). Times in microseconds, as the model sees them; 0: not considered.
cdef struct Cut:
    int threads
    bint shared
    Py_ssize_t rows           # per thread, at a time
    int parts                 # of the rows, not shared; 0: one per thread
    double alone, split, together

cdef Cut _cut(int threads, const Work *work, bint heed) noexcept
cdef void _work(
    Work *work, Py_ssize_t B, Py_ssize_t T, Py_ssize_t inputs, Py_ssize_t H, Py_ssize_t lanes,
    Py_ssize_t size, bint has_state, bint reset_after,
) noexcept
cdef void _part(
    const Cut *cut, Py_ssize_t B, Py_ssize_t panels, int part, int parts,
    Py_ssize_t *b0, Py_ssize_t *n, Py_ssize_t *panel0, Py_ssize_t *panel1,
) noexcept nogil
cdef int _parts(const Cut *cut, int team) noexcept nogil
