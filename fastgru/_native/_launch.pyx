# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""Work for a CUDA device, issued step after step without Python in between.

Nothing here is linked with CUDA: the three functions that it calls come as addresses.
"""

from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, intptr_t
from libc.stdlib cimport free, realloc

cdef extern from *:
    """
    /* The C signatures of CUDA's driver and of cuBLAS; handles and enums as what they are in the
     * ABI. A status of 0 is success in both. */
    typedef int (*launch_type)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                               unsigned block_x, unsigned block_y, unsigned block_z,
                               unsigned shared_bytes, void *stream, void **arguments, void **extra);
    typedef int (*launch_cooperative_type)(void *function, unsigned grid_x, unsigned grid_y,
                                           unsigned grid_z, unsigned block_x, unsigned block_y,
                                           unsigned block_z, unsigned shared_bytes, void *stream,
                                           void **arguments);
    typedef int (*gemm_type)(void *handle, int op_a, int op_b, int m, int n, int k,
                             const void *alpha, const void *a, int a_type, int lda, const void *b,
                             int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                             int compute_type, int algorithm);
    """
    ctypedef int (*launch_type)(
        void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
        void **, void **) noexcept nogil
    ctypedef int (*launch_cooperative_type)(
        void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
        void **) noexcept nogil
    ctypedef int (*gemm_type)(
        void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int,
        int, const void *, void *, int, int, int, int) noexcept nogil

cdef enum:
    SLOTS = 24                # the arguments of a kernel; those of fastgru take up to 17

cdef enum Kind:
    KERNEL
    COOPERATIVE
    PRODUCT

cdef struct Call:
    Kind kind
    void *function            # CUfunction
    unsigned blocks, threads, shared_bytes
    int op_a, op_b, m, n, k, a_type, lda, b_type, ldb, c_type, ldc, compute_type, algorithm
    const void *alpha         # host memory, of the type that sums have
    const void *beta
    int count                 # of the slots; a product has three, where a, b and c are
    int64_t value[SLOTS]      # 8 bytes: an address or a long long
    int64_t stride[SLOTS]     # what is added to it after each step
    const void *by_value[SLOTS]  # instead of the slot, if not NULL: a struct that the kernel gets


cdef class Program:
    """Kernels and products, issued in the order in which they were added, step after step.

    An argument is a slot of 8 bytes, an address or an integer, that grows by its stride after each
    step; or the address of a struct in host memory, which goes by value and stays the same.
    Addresses are held as numbers: whose memory they are has to live until `issue` is back, and on
    the stream until it is done.

    Parameters
    ----------
    launch, launch_cooperative, gemm : int
        The addresses of cuLaunchKernel, cuLaunchCooperativeKernel and cublasGemmEx.
    """
    cdef launch_type _launch
    cdef launch_cooperative_type _launch_cooperative
    cdef gemm_type _gemm
    cdef Call *_calls
    cdef int _count

    def __cinit__(self, intptr_t launch, intptr_t launch_cooperative, intptr_t gemm):
        self._launch = <launch_type> launch
        self._launch_cooperative = <launch_cooperative_type> launch_cooperative
        self._gemm = <gemm_type> gemm

    def __dealloc__(self):
        free(self._calls)

    cdef Call *_add(self, Kind kind) except NULL:
        calls = <Call *> realloc(self._calls, (self._count + 1) * sizeof(Call))
        if not calls:
            raise MemoryError
        self._calls = calls
        self._count += 1
        call = &calls[self._count - 1]
        call.kind, call.count = kind, 0
        return call

    def add_kernel(self, intptr_t function, blocks, unsigned threads, unsigned shared_bytes,
                   bint cooperative, arguments):
        """Add a launch of ``blocks`` times ``threads``.

        Parameters
        ----------
        function : int
            The CUfunction.
        cooperative : bool
            The blocks wait for each other: a grid that the device does not hold is an error.
        arguments : sequence of (int, int or None)
            A slot and its stride; or, with None, the address of a struct.
        """
        if blocks > INT_MAX:
            raise ValueError(f"expected up to {INT_MAX} blocks, got {blocks}: split the batch")
        if len(arguments) > SLOTS:
            raise ValueError(f"expected up to {SLOTS} arguments, got {len(arguments)}")
        call = self._add(COOPERATIVE if cooperative else KERNEL)
        call.function = <void *> function
        call.blocks, call.threads, call.shared_bytes = blocks, threads, shared_bytes
        for value, stride in arguments:
            _slot(call, value, 0 if stride is None else stride)
            if stride is None:
                call.by_value[call.count - 1] = <const void *> <intptr_t> value

    def add_product(self, operations, sizes, a, b, c, intptr_t one, intptr_t zero,
                    int compute_type, int algorithm):
        """Add C = op(A) op(B), columns first, as cublasGemmEx takes it.

        Parameters
        ----------
        operations : (int, int)
            What is done to A and to B.
        sizes : (int, int, int)
            m, n and k.
        a, b, c : (int, int, int, int)
            The address of the matrix in the first step, its stride in bytes, its type, and its
            leading dimension.
        one, zero : int
            The addresses of alpha and beta, in host memory.
        """
        m, n, k = sizes
        if max(m, n, k, a[3], b[3], c[3]) > INT_MAX:
            raise ValueError(
                f"expected sizes up to {INT_MAX}, which cuBLAS counts to, got a product of "
                f"{m}, {n}, {k} with leading dimensions {a[3]}, {b[3]}, {c[3]}: split the batch"
            )
        call = self._add(PRODUCT)
        call.op_a, call.op_b = operations
        call.m, call.n, call.k = m, n, k
        call.a_type, call.lda = a[2], a[3]
        call.b_type, call.ldb = b[2], b[3]
        call.c_type, call.ldc = c[2], c[3]
        call.alpha, call.beta = <const void *> one, <const void *> zero
        call.compute_type, call.algorithm = compute_type, algorithm
        for matrix in (a, b, c):
            _slot(call, matrix[0], matrix[1])

    def issue(self, int64_t steps, intptr_t stream, intptr_t handle):
        """Issue everything ``steps`` times on a CUstream; once for each Program.

        Measured on a CPU, with functions that do nothing: 7 ns a call; Python took 7 us to prepare
        the same, without what CuPy does. The GIL is free meanwhile: where the queue is full, CUDA
        waits in here.

        Parameters
        ----------
        handle : int
            The cublasHandle_t, whose stream is set and whose pointer mode is host; unused without
            products.

        Returns
        -------
        None, or (status, call, step) of the first call that did not return 0; nothing was issued
        after it.
        """
        cdef int64_t step = 0
        cdef int status = 0, failed = 0
        with nogil:
            while step < steps and not status:
                failed = 0
                while failed < self._count:
                    status = self._issue(&self._calls[failed], <void *> stream, <void *> handle)
                    if status:
                        break
                    failed += 1
                else:
                    step += 1
        return (status, failed, step) if status else None

    cdef int _issue(self, Call *call, void *stream, void *handle) noexcept nogil:
        cdef void *arguments[SLOTS]
        cdef int status, i
        if call.kind == PRODUCT:
            status = self._gemm(
                handle, call.op_a, call.op_b, call.m, call.n, call.k, call.alpha,
                <const void *> call.value[0], call.a_type, call.lda,
                <const void *> call.value[1], call.b_type, call.ldb, call.beta,
                <void *> call.value[2], call.c_type, call.ldc, call.compute_type, call.algorithm)
        else:
            # CUDA copies the arguments before it returns.
            for i in range(call.count):
                arguments[i] = <void *> (call.by_value[i] or <const void *> &call.value[i])
            if call.kind == COOPERATIVE:
                status = self._launch_cooperative(
                    call.function, call.blocks, 1, 1, call.threads, 1, 1, call.shared_bytes, stream,
                    arguments)
            else:
                status = self._launch(
                    call.function, call.blocks, 1, 1, call.threads, 1, 1, call.shared_bytes, stream,
                    arguments, NULL)
        for i in range(call.count):
            call.value[i] += call.stride[i]
        return status


cdef int _slot(Call *call, int64_t value, int64_t stride) except -1:
    call.value[call.count], call.stride[call.count] = value, stride
    call.by_value[call.count] = NULL
    call.count += 1
    return 0
