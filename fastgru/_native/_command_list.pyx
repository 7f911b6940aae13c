# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""A list of commands for a CUDA device, issued step after step without Python in between.

The extension is not linked with CUDA: its caller hands in the addresses of three functions.
"""

from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, intptr_t
from libc.stdlib cimport free, realloc

# The signatures of CUDA's driver and of cuBLAS, with handles as pointers and enums as ints, as the
# ABI passes them. A status of 0 is success in both.
ctypedef int (*launch_type)(
    void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments,
    void **extra) noexcept nogil
ctypedef int (*launch_cooperative_type)(
    void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream,
    void **arguments) noexcept nogil
ctypedef int (*gemm_type)(
    void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,
    int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type,
    int ldc, int compute_type, int algorithm) noexcept nogil

cdef enum:
    SLOTS = 24                # most arguments of a kernel; those of fastgru take up to 17

cdef enum Kind:
    KERNEL
    COOPERATIVE
    PRODUCT

cdef struct Command:
    Kind kind
    void *function            # CUfunction
    unsigned blocks, threads, shared_bytes
    int op_a, op_b, m, n, k, a_type, lda, b_type, ldb, c_type, ldc, compute_type, algorithm
    const void *alpha         # alpha and beta are in host memory, of the type of the sums
    const void *beta
    int count                 # of the slots; a product has three: the addresses of a, b and c
    int64_t value[SLOTS]      # 8 bytes: an address or a long long
    int64_t stride[SLOTS]     # added to the value after each step
    const void *by_value[SLOTS]  # if not NULL: a struct that the kernel gets instead of the value


cdef class CommandList:
    """Kernels and products, issued in the order in which they were added, step after step.

    An argument is a slot of 8 bytes, an address or an integer, that grows by its stride after each
    step; or the address of a struct in host memory, which CUDA copies and which stays the same.
    The list holds addresses only. The caller keeps the host memory alive until `issue` returns, and
    the device memory until the stream has done the work.

    Parameters
    ----------
    launch, launch_cooperative, gemm : int
        The addresses of cuLaunchKernel, cuLaunchCooperativeKernel and cublasGemmEx.
    """
    cdef launch_type _launch
    cdef launch_cooperative_type _launch_cooperative
    cdef gemm_type _gemm
    cdef Command *_commands
    cdef int _count

    def __cinit__(self, intptr_t launch, intptr_t launch_cooperative, intptr_t gemm):
        self._launch = <launch_type> launch
        self._launch_cooperative = <launch_cooperative_type> launch_cooperative
        self._gemm = <gemm_type> gemm

    def __dealloc__(self):
        free(self._commands)

    cdef Command *_add(self, Kind kind) except NULL:
        commands = <Command *> realloc(self._commands, (self._count + 1) * sizeof(Command))
        if not commands:
            raise MemoryError
        self._commands = commands
        self._count += 1
        command = &commands[self._count - 1]
        command.kind, command.count = kind, 0
        return command

    def add_kernel(self, intptr_t function, blocks, unsigned threads, unsigned shared_bytes,
                   bint cooperative, arguments):
        """Add a launch of ``blocks`` times ``threads``.

        Parameters
        ----------
        function : int
            The CUfunction.
        cooperative : bool
            Whether the blocks wait for each other: then CUDA refuses a grid that the device cannot
            hold at once.
        arguments : sequence of (int, int or None)
            A slot and its stride; or the address of a struct, and None.
        """
        if blocks > INT_MAX:
            raise ValueError(f"expected up to {INT_MAX} blocks, got {blocks}: split the batch")
        if len(arguments) > SLOTS:
            raise ValueError(f"expected up to {SLOTS} arguments, got {len(arguments)}")
        command = self._add(COOPERATIVE if cooperative else KERNEL)
        command.function = <void *> function
        command.blocks, command.threads, command.shared_bytes = blocks, threads, shared_bytes
        for value, stride in arguments:
            _slot(command, value, 0 if stride is None else stride)
            if stride is None:
                command.by_value[command.count - 1] = <const void *> <intptr_t> value

    def add_product(self, operations, sizes, a, b, c, intptr_t one, intptr_t zero,
                    int compute_type, int algorithm):
        """Add C = op(A) op(B), columns first, as cublasGemmEx takes it.

        Parameters
        ----------
        operations : (int, int)
            The cublasOperation_t of A and of B.
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
        command = self._add(PRODUCT)
        command.op_a, command.op_b = operations
        command.m, command.n, command.k = m, n, k
        command.a_type, command.lda = a[2], a[3]
        command.b_type, command.ldb = b[2], b[3]
        command.c_type, command.ldc = c[2], c[3]
        command.alpha, command.beta = <const void *> one, <const void *> zero
        command.compute_type, command.algorithm = compute_type, algorithm
        for matrix in (a, b, c):
            _slot(command, matrix[0], matrix[1])

    def issue(self, int64_t steps, intptr_t stream, intptr_t handle):
        """Issue all commands ``steps`` times on a CUstream; a list is issued once.

        The loop itself takes 7 ns a command, measured on a CPU with functions that do nothing;
        Python took 7 us to prepare one, without CuPy's part. The GIL is released meanwhile: CUDA
        waits here when its queue is full.

        Parameters
        ----------
        handle : int
            A cublasHandle_t that works on the stream, in pointer mode host; unused without
            products.

        Returns
        -------
        None, or (status, command, step) of the first command whose status is not 0; `issue` stops
        there.
        """
        cdef int64_t step = 0
        cdef int status = 0, failed = 0
        with nogil:
            while step < steps and not status:
                failed = 0
                while failed < self._count:
                    status = self._issue(&self._commands[failed], <void *> stream, <void *> handle)
                    if status:
                        break
                    failed += 1
                else:
                    step += 1
        return (status, failed, step) if status else None

    cdef int _issue(self, Command *command, void *stream, void *handle) noexcept nogil:
        cdef void *arguments[SLOTS]
        cdef int status, i
        if command.kind == PRODUCT:
            status = self._gemm(
                handle, command.op_a, command.op_b, command.m, command.n, command.k, command.alpha,
                <const void *> command.value[0], command.a_type, command.lda,
                <const void *> command.value[1], command.b_type, command.ldb, command.beta,
                <void *> command.value[2], command.c_type, command.ldc, command.compute_type,
                command.algorithm)
        else:
            # CUDA copies the arguments before it returns.
            for i in range(command.count):
                arguments[i] = <void *> (command.by_value[i] or <const void *> &command.value[i])
            if command.kind == COOPERATIVE:
                status = self._launch_cooperative(
                    command.function, command.blocks, 1, 1, command.threads, 1, 1,
                    command.shared_bytes, stream, arguments)
            else:
                status = self._launch(
                    command.function, command.blocks, 1, 1, command.threads, 1, 1,
                    command.shared_bytes, stream, arguments, NULL)
        for i in range(command.count):
            command.value[i] += command.stride[i]
        return status


cdef int _slot(Command *command, int64_t value, int64_t stride) except -1:
    command.value[command.count], command.stride[command.count] = value, stride
    command.by_value[command.count] = NULL
    command.count += 1
    return 0
