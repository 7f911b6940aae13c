# Fills a gru_job or gru_back_job (kernels/job.h) with what a call brings: weights, x, y, a problem.
# The caller has zeroed the job, and keeps the arrays.

from fastgru._native._arrays cimport (
    bytes_of,
    cnp,
    float_type,
    plain_bytes,
    require,
    shape_of,
    strides_of,
    walkable,
)
from fastgru._native._headers cimport gru_back_job, gru_job
from fastgru._native._weights cimport PackedWeights

ctypedef fused any_job:
    gru_job
    gru_back_job


cdef inline Py_ssize_t padded(Py_ssize_t size) noexcept nogil:
    return (size + 63) & ~63


cdef inline Py_ssize_t item_of(const gru_job *job, Py_ssize_t size) noexcept nogil:
    # Bytes of a number in the arrays of a job whose kernel computes in numbers of `size` bytes.
    return 2 if job.half else size


cdef inline double flops_of(const gru_job *job) noexcept nogil:
    return 6.0 * job.B * job.T * job.H * (job.H + job.inputs)


cdef inline void set_weights(gru_job *job, PackedWeights packed) noexcept:
    job.H = packed.units
    job.w, job.u, job.uh, job.bias = packed.w, packed.u, packed.uh, packed.bias
    job.u_finite = packed.u_finite
    job.functions = packed.functions
    job.reset_after = packed.reset_after
    job.half = packed.half


cdef inline void set_x(any_job *job, x) noexcept:
    # (B, T, I), walkable.
    cdef cnp.npy_intp *shape = shape_of(x)
    job.B, job.T, job.inputs = shape[0], shape[1], shape[2]
    job.x, job.x_b, job.x_t = bytes_of(x), strides_of(x)[0], strides_of(x)[1]


cdef inline void set_y(gru_job *job, y) noexcept:
    # (B, T, H) with sequences, else (B, H); walkable.
    job.y, job.y_b = bytes_of(y), strides_of(y)[0]
    job.y_s = strides_of(y)[1] if job.sequences else 0


cdef inline void set_step(
    gru_job *job, Py_ssize_t B, Py_ssize_t inputs, Py_ssize_t H, Py_ssize_t size,
) noexcept:
    # One step, whose x (B, I) and y (B, H) are C-contiguous.
    job.B, job.T, job.inputs, job.H = B, 1, inputs, H
    job.x_b, job.y_b = inputs * size, H * size
    job.sequences = True


cdef inline int set_problem(any_job *job, problem, PackedWeights packed, list kept) except -1:
    # What forward and backward read of a GRUProblem. Copies, where they are needed, go to `kept`.
    # Forward reads x and h0 as they are; backward, and all masks, have what the kernel computes in.
    cdef int sums = float_type(packed.size), type = sums
    cdef Py_ssize_t item = packed.size
    cdef Py_ssize_t B = 0, T = 0, I = packed.inputs, H = packed.units
    if any_job is gru_job:
        type, item = packed.type, packed.item
    mask = problem.mask
    x = problem.x
    if cnp.PyArray_Check(x) and cnp.PyArray_NDIM(<cnp.ndarray> x) == 3:
        B, T = shape_of(x)[0], shape_of(x)[1]
    require(x, "x", type, 3, B, T, I)
    x = walkable(x, item)
    kept.append(x)
    set_x(job, x)
    job.reverse, job.sequences = problem.reverse, problem.return_sequences
    job.zero_masked = problem.zero_output_for_mask
    value = problem.h0
    if value is not None:
        require(value, "state", type, 2, B, H)
        job.h0 = plain_bytes(value, kept)
    value = mask.lengths
    if value is not None:
        require(value, "lengths", cnp.NPY_INTP, 1, B, 0)
        job.lengths = <const Py_ssize_t *> plain_bytes(value, kept)
    value = mask.steps
    if value is not None:
        require(value, "mask", cnp.NPY_BOOL, 2, B, T)
        job.steps = <const unsigned char *> plain_bytes(value, kept)
    value = problem.resets
    if value is not None:
        require(value, "reset_mask", cnp.NPY_BOOL, 2, B, T)
        job.resets = <const unsigned char *> plain_bytes(value, kept)
    value = problem.dropout
    if value is not None:
        value = value.astype(packed.sums, copy=False)
        kept.append(value)
        job.dropout_gates = 3 if value.ndim == 3 else 1
        if job.dropout_gates == 3:
            require(value, "dropout mask", sums, 3, 3, B, I)
        else:
            require(value, "dropout mask", sums, 2, B, I)
        job.dropout = plain_bytes(value, kept)
    value = problem.recurrent_dropout
    if value is not None:
        value = value.astype(packed.sums, copy=False)
        kept.append(value)
        require(value, "recurrent dropout mask", sums, 3, 3, B, H)
        job.recurrent_dropout = plain_bytes(value, kept)
    return 0
