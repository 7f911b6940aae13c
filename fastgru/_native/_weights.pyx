# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Weights in the order in which the fused kernels read them: panels of a few vectors of units.

A panel is [k][gate][lane]: for each k the weights of one vector of units, gate after gate. The
last panel is padded with zeros. kernels/job.h says which matrix is packed how. Training packs at
every step.
"""

from cython cimport floating
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from fastgru._native._arrays cimport bytes_of, cnp, require, shape_of, strides_of
from fastgru._native._kernels cimport Kernels, half_of, isa_in_use, kernels_of, read_functions
from fastgru._native._threads cimport run_team, team_limit

import math

import numpy as np

from fastgru.dtypes import sum_dtype

cnp.import_array()

cdef object _ndarray = np.ndarray

cdef enum:
    ROWS = 8                  # whose lines neighbouring panels share, and find in L1
    LINES = 8                 # of a transposed matrix, as many as may lie in one set of L1,
    LINE = 16                 # ... and so many numbers of each, before the next ones
    COPY_FLOPS = 50           # what the copying of a number costs beside a FLOP


cdef class PackedWeights:
    """Packed weights and the kernel that runs them; immutable, made once per weight version.

    Parameters
    ----------
    spec : GRUSpec
    weights : GRUWeights
        In the dtype of sums.
    threads : int
        Upper bound, for the packing itself.
    """

    def __cinit__(self, spec, weights, *args):
        self.spec = spec
        self.inputs, self.units = spec.input_dim, spec.units
        self.sums = sum_dtype(spec.dtype)
        self.size, self.half = self.sums.itemsize, half_of(spec.dtype)
        self.set_arrays(spec.dtype)
        self.reset_after = spec.reset_after
        self.isa = isa_in_use()
        read_functions(spec, &self.functions)

    def __init__(self, spec, weights, int threads):
        cdef Kernels kernels = kernels_of(self.size)
        self.run, self.run_scratch = kernels.run, kernels.run_scratch
        self.pack(weights, kernels.lanes, threads)

    cdef int set_arrays(self, dtype) except -1:
        # Of this dtype are the arrays of a call.
        self.dtype, self.item, self.type = dtype, dtype.itemsize, dtype.num
        return 0

    cdef int pack(self, weights, Py_ssize_t lanes, int threads) except -1:
        # In panels of so many units.
        cdef Py_ssize_t H3 = 3 * self.units
        cdef int type = self.sums.num
        require(weights.kernel, "kernel", type, 2, self.inputs, H3)
        require(weights.recurrent_kernel, "recurrent_kernel", type, 2, self.units, H3)
        self.lanes, self.panels = lanes, (self.units + lanes - 1) // lanes
        w, u, uh, bias = forward_panels(self.spec, weights, lanes, threads)
        self.kept = (w, u, uh, bias)
        self.u_finite = bool(np.isfinite(weights.recurrent_kernel.sum()))
        # Only arrays, no cycle back to the set of weights on which this copy hangs.
        self.kernel, self.recurrent_kernel = weights.kernel, weights.recurrent_kernel
        self.w, self.u, self.bias = bytes_of(w), bytes_of(u), bytes_of(bias)
        if uh is not None:
            self.uh = bytes_of(uh)
        return 0

    def is_current(self):
        """Return whether the kernel is that of the instruction set in use."""
        return self.isa == isa_in_use()

    cdef object backward_panels(self, int threads):
        # U^T and W^T for the products of backward, made when it is first asked for.
        if self.transposed is None:
            self.transposed = backward_panels(
                self.kernel, self.recurrent_kernel, self.lanes, threads
            )
        return self.transposed


def forward_panels(spec, weights, Py_ssize_t lanes, int threads):
    """Return w, u, uh (None with reset_after) and the biases, packed."""
    w = _panels(weights.kernel, 3, lanes, threads)
    u, uh = weights.recurrent_kernel, None
    if not spec.reset_after:
        uh = _panels(u[:, 2 * spec.units :], 1, lanes, threads)
        u = u[:, : 2 * spec.units]
    gates = 3 if spec.reset_after else 2
    return w, _panels(u, gates, lanes, threads), uh, _biases(spec, weights, lanes)


def backward_panels(kernel, recurrent_kernel, Py_ssize_t lanes, int threads):
    """Return U^T, its rows z, r, h, for the carry, and W^T, its rows h, z, r, for the inputs."""
    return (
        _panels(recurrent_kernel.T, 1, 2 * lanes, threads),
        _panels(kernel.T, 1, 2 * lanes, threads, len(recurrent_kernel)),
    )


cdef _biases(spec, weights, Py_ssize_t lanes):
    # (panels, 4, lanes) of z, r, h of the input, h of the recurrence.
    units = spec.units
    rows = np.zeros(4 * units, weights.kernel.dtype)
    if weights.bias is not None:
        given = np.atleast_2d(weights.bias)
        rows[: 3 * units] = given[0]
        if spec.reset_after and len(given) == 2:
            rows[: 2 * units] += given[1, : 2 * units]
            rows[3 * units :] = given[1, 2 * units :]
    return _panels(rows.reshape(1, 4 * units), 4, lanes, 1)


cdef struct Packing:
    const char *matrix        # (K, gates * H); strides in bytes
    Py_ssize_t row, column
    Py_ssize_t K, gates, H
    Py_ssize_t rotation       # row k goes to row (k + rotation) % K
    char *packed              # (panels, K, gates, lanes)
    Py_ssize_t panels, lanes, size


def aligned(tuple shape, dtype, memory=None):
    """Return an empty array at a 64-byte boundary: a vector never crosses a cache line.

    It lies in ``memory``, an array of bytes, if there is one of that size or up to twice as much.
    """
    # Not zeros, which are fresh pages every time.
    cdef cnp.npy_intp size = math.prod(shape) * dtype.itemsize + 64
    if memory is None or not size <= memory.nbytes <= 2 * size:
        memory = cnp.PyArray_EMPTY(1, &size, cnp.NPY_UINT8, 0)
    return _ndarray(shape, dtype, memory, -<uintptr_t> bytes_of(memory) % 64)


cdef _panels(matrix, Py_ssize_t gates, Py_ssize_t lanes, int threads, Py_ssize_t rotation=0):
    # Packs a (K, gates * H) matrix of any strides: (panels, K, gates, lanes). Row k becomes row
    # (k + rotation) % K; the lanes beyond H are zeros.
    cdef Packing p
    cdef Py_ssize_t columns = shape_of(matrix)[1]
    p.matrix, p.row, p.column = bytes_of(matrix), strides_of(matrix)[0], strides_of(matrix)[1]
    p.K, p.gates, p.H = shape_of(matrix)[0], gates, columns // gates
    p.rotation = rotation
    p.panels, p.lanes = (p.H + lanes - 1) // lanes, lanes
    dtype = matrix.dtype
    p.size = dtype.itemsize
    packed = aligned((p.panels, p.K, gates, lanes), dtype)
    p.packed = bytes_of(packed)
    threads = team_limit(threads, COPY_FLOPS * <double> (p.K * columns))
    if threads == 1:
        _pack_part(&p, 0, 1)
    else:
        with nogil:
            run_team(_pack_part, &p, threads, &threads, NULL)
    return packed


cdef void _pack_part(void *packing, int rank, int team) noexcept nogil:
    cdef const Packing *p = <Packing *> packing
    cdef Py_ssize_t panel0 = p.panels * rank // team, panel1 = p.panels * (rank + 1) // team
    if p.size == 4:
        _pack(p, panel0, panel1, <float *> p.packed)
    else:
        _pack(p, panel0, panel1, <double *> p.packed)


cdef void _pack(
    const Packing *p, Py_ssize_t panel0, Py_ssize_t panel1, floating *packed,
) noexcept nogil:
    # The panels panel0..panel1.
    cdef Py_ssize_t panel, k0 = 0, k, g, i, n, stride = p.gates * p.lanes
    cdef bint transposed = p.column != sizeof(floating)
    cdef Py_ssize_t step = p.K if transposed else ROWS
    cdef const char *source
    cdef floating *out
    while k0 < p.K:
        for panel in range(panel0, panel1):
            n = min(p.lanes, p.H - panel * p.lanes)
            for g in range(p.gates):
                source = p.matrix + (g * p.H + panel * p.lanes) * p.column
                out = packed + panel * p.K * stride + g * p.lanes
                if transposed:
                    _transpose(p, source, n, out)
                else:
                    for k in range(k0, min(k0 + step, p.K)):
                        _copy(out + _target(p, k) * stride, source + k * p.row,
                              n * sizeof(floating))
                for k in range(k0, min(k0 + step, p.K)):
                    for i in range(n, p.lanes):
                        out[_target(p, k) * stride + i] = 0
        k0 += step


cdef inline Py_ssize_t _target(const Packing *p, Py_ssize_t k) noexcept nogil:
    return k + p.rotation if k + p.rotation < p.K else k + p.rotation - p.K


cdef inline void _copy(void *out, const char *source, Py_ssize_t bytes) noexcept nogil:
    if bytes == 64:           # of a known length it takes no call
        memcpy(out, source, 64)
    else:
        memcpy(out, source, bytes)


cdef inline void _transpose(
    const Packing *p, const char *source, Py_ssize_t n, floating *out,
) noexcept nogil:
    # n lanes of all rows.
    cdef Py_ssize_t k0 = 0, k, i0, i, stride = p.gates * p.lanes
    cdef const char *line
    cdef floating *row
    while k0 < p.K:
        i0 = 0
        while i0 < n:
            for k in range(k0, min(k0 + LINE, p.K)):
                line = source + k * p.row + i0 * p.column
                row = out + _target(p, k) * stride + i0
                if n - i0 >= LINES:
                    for i in range(LINES):
                        row[i] = (<const floating *> (line + i * p.column))[0]
                else:
                    for i in range(n - i0):
                        row[i] = (<const floating *> (line + i * p.column))[0]
            i0 += LINES
        k0 += LINE
