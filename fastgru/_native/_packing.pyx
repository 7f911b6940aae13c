# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The copying of weights into panels, which training does at every step."""

from libc.string cimport memcpy

from fastgru._native._blas cimport floating


def pack_panels(
    const floating[:, :, :] matrix, floating[:, :, :, ::1] packed, Py_ssize_t first=0,
):
    """Copy (K, gates, H), of any strides, into (panels, rows, gates, lanes), from row `first` on.

    The lanes beyond H become zeros.
    """
    cdef Py_ssize_t K = matrix.shape[0], gates = packed.shape[2], lanes = packed.shape[3]
    cdef Py_ssize_t H = matrix.shape[2], panel, k, g, i, n
    cdef const char *row
    cdef floating *out
    cdef bint contiguous = matrix.strides[2] == sizeof(floating)
    with nogil:
        for panel in range(packed.shape[0]):
            n = min(lanes, H - panel * lanes)
            for k in range(K):
                for g in range(gates):
                    row = <const char *> &matrix[k, g, panel * lanes]
                    out = &packed[panel, first + k, g, 0]
                    if contiguous:
                        memcpy(out, row, n * sizeof(floating))
                    else:     # a transposed matrix: `lanes` lines at a time, all in cache
                        for i in range(n):
                            out[i] = (<const floating *> (row + i * matrix.strides[2]))[0]
                    for i in range(n, lanes):
                        out[i] = 0
