# SciPy's BLAS for row-major matrices, float and double: C = A B (+ C).
#
# BLAS is column-major; a row-major matrix is its own transpose there, so C = A B is computed as
# C' = B' A' with the operands swapped. Everything here is inline: there is no module _blas.

from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv
from cython cimport floating
from libc.string cimport memset

# A matrix with a 3H axis, (K, 3H) row-major, in one of two layouts:
#   width = 0   as it is; leading dimension 3H
#   width > 0   cut into panels: gate by gate, within a gate `width` units at a time (the last one
#               narrower), each panel (K, width) contiguous
ctypedef struct Matrix:
    void *data
    Py_ssize_t K
    Py_ssize_t H
    Py_ssize_t width

# OpenBLAS multiplies without copying its operands when M N K is at most this (AVX-512 builds).
cdef enum:
    SMALL_GEMM = 1000000
    K_BLOCK = 512  # the panel's slice, 128 KB of float, stays in L2 while rows pass
    GEMV_ROWS = 3


cdef inline void gemm(
    int M, int N, int K,
    const floating *A, int lda,             # IN  (M, K)
    const floating *B, int ldb,             # IN  (K, N)
    floating beta,                          # 0: C is written, 1: added to
    floating *C, int ldc,                   # OUT (M, N)
) noexcept nogil:
    cdef char no = b"n"
    cdef floating one = 1
    if floating is float:
        sgemm(&no, &no, &N, &M, &K, &one, <float *> B, &ldb, <float *> A, &lda, &beta, C, &ldc)
    else:
        dgemm(&no, &no, &N, &M, &K, &one, <double *> B, &ldb, <double *> A, &lda, &beta, C, &ldc)


cdef inline void gemv(
    int N, int K,
    const floating *a,                      # IN  (K)
    const floating *B, int ldb,             # IN  (K, N)
    floating *c,                            # OUT (N)
) noexcept nogil:
    cdef char no = b"n"
    cdef int step = 1
    cdef floating one = 1, zero = 0
    if floating is float:
        sgemv(&no, &N, &K, &one, <float *> B, &ldb, <float *> a, &step, &zero, c, &step)
    else:
        dgemv(&no, &N, &K, &one, <double *> B, &ldb, <double *> a, &step, &zero, c, &step)


cdef inline void matmul(
    const Matrix *B, Py_ssize_t gate0, Py_ssize_t gate1, Py_ssize_t u0, Py_ssize_t u1,
    Py_ssize_t M,
    const floating *A, Py_ssize_t lda,      # IN  (M, K)
    floating *C,                            # OUT (M, 3H); only gates gate0..gate1, units u0..u1
) noexcept nogil:
    # Only those columns of C are written.
    #
    # With panels, each product is small enough for OpenBLAS's kernels that read the operands where
    # they lie; its ordinary path packs B anew in every call. GFLOP/s measured on one Cascade Lake
    # core, panels | plain: K=256 M=8 108 | 17, M=32 113 | 46, M=128 119 | 88; K=512 M=8 67 | 14,
    # M=32 100 | 44.
    cdef Py_ssize_t ldc = 3 * B.H, K = B.K
    cdef Py_ssize_t g, i, j, k, low, high, width, rows, depth
    cdef const floating *data = <const floating *> B.data
    cdef const floating *panel
    if K == 0:
        for i in range(M):
            for g in range(gate0, gate1):
                memset(C + i * ldc + g * B.H + u0, 0, (u1 - u0) * sizeof(floating))
    elif B.width == 0:
        if u0 == 0 and u1 == B.H:  # the gates are neighbours
            matmul_columns(B, gate0 * B.H, gate1 * B.H, M, A, lda, C)
        else:
            for g in range(gate0, gate1):
                matmul_columns(B, g * B.H + u0, g * B.H + u1, M, A, lda, C)
    else:
        for g in range(gate0, gate1):
            j = u0 - u0 % B.width
            while j < u1:
                width = min(B.width, B.H - j)
                low, high = max(j, u0), min(j + width, u1)
                panel = data + (g * B.H + j) * K + (low - j)
                k = 0
                while k < K:
                    depth = min(K - k, <Py_ssize_t> K_BLOCK)
                    rows = SMALL_GEMM // (B.width * depth)
                    i = 0
                    while i < M:
                        gemm(
                            <int> min(rows, M - i), <int> (high - low), <int> depth,
                            A + i * lda + k, <int> lda, panel + k * width, <int> width,
                            <floating> (k > 0), C + i * ldc + g * B.H + low, <int> ldc,
                        )
                        i += rows
                    k += depth
                j += B.width


cdef inline void matmul_columns(
    const Matrix *B, Py_ssize_t low, Py_ssize_t high, Py_ssize_t M,
    const floating *A, Py_ssize_t lda, floating *C,
) noexcept nogil:
    cdef Py_ssize_t i, ld = 3 * B.H
    cdef const floating *columns = <const floating *> B.data + low
    cdef int N = <int> (high - low)
    if M <= GEMV_ROWS:
        for i in range(M):
            gemv(N, <int> B.K, A + i * lda, columns, <int> ld, C + i * ld + low)
    else:
        gemm(
            <int> M, N, <int> B.K, A, <int> lda, columns, <int> ld, <floating> 0, C + low, <int> ld,
        )
