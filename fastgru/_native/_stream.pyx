# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""One time step of the cells of a stream, on rows of state that stay where they are.

A step of a small layer takes the kernel less time than Python takes for a few calls. So all that
can be is settled before: buffers are taken once, weights stay bound until they are written, and a
step that has nothing special to it is one call into this file.
"""

from libc.stdlib cimport calloc, free

from fastgru._native._arrays cimport bytes_of, cnp, float_type, is_plain, shape_of
from fastgru._native._cpu cimport _kernels_f32, _kernels_f64, _padded
from fastgru._native._cut cimport Cut
from fastgru._native._fused cimport (
    Fused,
    _cut_job,
    _run_forward,
    _set_weights,
    _threads_for,
)
from fastgru._native._threads cimport _enter_brief, _leave_brief
from fastgru._native.gates cimport (
    allocate_aligned,
    free_aligned,
    gru_job,
    run_scratch_type,
    run_type,
    team_barrier,
)

cnp.import_array()

cdef enum:
    GIL_FLOPS = 200000        # below ~5 us the GIL is not worth releasing
    BLOCK = 1024              # rows at a time: scratch is for these, however many rows there are


cdef class _Cell:
    # One cell's part in the step: its rows of state and output, and the job that is run on them.
    cdef object spec, source, weights, state, output
    cdef Fused packed
    cdef Py_ssize_t inputs
    cdef gru_job job
    cdef team_barrier barrier
    cdef Cut cut
    cdef const void *kernels
    cdef run_type run
    cdef run_scratch_type run_scratch
    cdef char *scratch
    cdef char *states
    cdef char *y
    cdef Py_ssize_t capacity, per_thread

    def __cinit__(self, spec, source, state, output):
        self.spec, self.source, self.state, self.output = spec, source, state, output
        self.inputs = self.spec.input_dim
        self.job.T, self.job.H = 1, shape_of(state)[1]
        self.states = self.job.h0 = self.job.state = bytes_of(state)
        self.y, self.job.y_b = bytes_of(output), self.job.H * output.itemsize
        self.job.sequences = True
        self.job.barrier = &self.barrier

    def __dealloc__(self):
        free_aligned(self.scratch)

    cdef bint bind(self, weights, const void *kernels, pack) except -1:
        # Takes over weights that were written since the last step; False: not ours to run.
        cdef Fused packed
        if weights is None or shape_of(weights.kernel)[0] != self.inputs:
            return False  # not built, or built anew for another number of features
        packed = pack(self.spec, weights)
        if packed is None:
            return False
        _set_weights(&self.job, packed)
        if packed.size == 4:
            self.run, self.run_scratch = _kernels_f32().run, _kernels_f32().run_scratch
        else:
            self.run, self.run_scratch = _kernels_f64().run, _kernels_f64().run_scratch
        self.job.inputs, self.job.x_b = self.inputs, self.inputs * packed.size
        self.packed, self.weights, self.kernels = packed, weights, kernels
        return True

    cdef bint prepare(self, weights, Py_ssize_t m, pack, get_num_threads) except -1:
        # All that may fail before a step of at most m rows; False: another backend must serve it.
        cdef Py_ssize_t H = self.job.H, size = self.job.y_b // H, need
        cdef const void *kernels = _kernels_f32() if size == 4 else <const void *> _kernels_f64()
        cdef double flops = 6.0 * m * H * (H + self.inputs)
        if weights is None or weights is not self.weights or kernels != self.kernels:
            if not self.bind(weights, kernels, pack):
                return False
        self.job.B = m
        self.cut = _cut_job(&self.job, self.packed, _threads_for(get_num_threads, flops))
        self.job.chunk_rows = max(self.cut.rows, 1)
        self.per_thread = _padded(self.run_scratch(&self.job, self.cut.rows, self.packed.panels))
        need = self.cut.threads * self.per_thread
        if not self.job.reset_after:
            need += m * self.job.y_b
        if need > self.capacity:
            free_aligned(self.scratch)
            self.capacity = 0
            self.scratch = <char *> allocate_aligned(need)
            if self.scratch == NULL:
                raise MemoryError(f"scratch of {need} bytes")
            self.capacity = need
        self.job.reset_state = self.scratch + self.cut.threads * self.per_thread
        return True

    cdef const char *step(
        self, const char *x, const Py_ssize_t *rows, Py_ssize_t b0, Py_ssize_t m
    ) noexcept:
        # Rows b0..b0+m of x, or of those named, no more than were prepared; returns their outputs.
        # Without names they are the stream's own, whose states begin there.
        cdef Py_ssize_t row = self.job.H * self.packed.size
        self.job.B, self.job.x = m, x
        self.job.y = self.y + b0 * row
        self.job.rows = NULL
        self.job.state = self.states + b0 * row
        if rows != NULL:
            self.job.rows = rows + b0
            self.job.state = self.states
        self.job.h0 = self.job.state
        if self.cut.threads == 1 and 6.0 * self.job.B * self.job.H * (
            self.job.H + self.inputs
        ) < GIL_FLOPS:
            _run_forward(
                &self.job, &self.cut, self.packed.panels, self.run, self.scratch, self.per_thread
            )
        else:
            with nogil:
                _enter_brief()
                _run_forward(
                    &self.job, &self.cut, self.packed.panels, self.run, self.scratch,
                    self.per_thread,
                )
            _leave_brief()
        return self.job.y


cdef class Stepper:
    """The step of a stream that the fused kernels serve.

    Parameters
    ----------
    specs : list of GRUSpec
        Of the cells: the first reads x, each other one what the one before it gave.
    sources : list of object
        Where a cell's weights come from.
    states, outputs : list of ndarray, each of shape (n, H)
        C-contiguous and writeable: read and written by every step.
    weights_of : callable
        ``weights_of(source)`` returns a cell's `GRUWeights` as they are now, or None. It is asked
        for all cells one after the other, and runs no Python code: weights that are written
        together are read together.
    forced : callable
        ``forced()`` returns the name of the only backend that may serve a step, or None.
    pack : callable
        ``pack(spec, weights)`` returns their `Fused`, or None where the kernels cannot serve them.
    get_num_threads : callable
        Asked only where the work is enough for two.
    """

    cdef list cells
    cdef object weights_of, forced, pack, get_num_threads, served
    cdef Py_ssize_t rows, inputs, itemsize, out_bytes
    cdef int type
    cdef char *seen               # of each row: whether it was named already; zeros between calls

    def __cinit__(self, specs, sources, states, outputs, weights_of, forced, pack, get_num_threads):
        cdef _Cell last
        self.cells = [
            _Cell(*parts) for parts in zip(specs, sources, states, outputs, strict=True)
        ]
        self.weights_of, self.forced = weights_of, forced
        self.pack, self.get_num_threads = pack, get_num_threads
        self.rows = shape_of(states[0])[0]
        self.inputs = specs[0].input_dim
        self.itemsize = states[0].itemsize
        self.type = float_type(self.itemsize)
        last = self.cells[len(self.cells) - 1]
        self.out_bytes = self.rows * last.job.y_b
        self.served = last.output[:]  # a view, whose memory nobody can resize
        self.seen = <char *> calloc(self.rows, 1)
        if self.seen == NULL:
            raise MemoryError(f"{self.rows} rows")

    def __dealloc__(self):
        free(self.seen)

    def step(self, x, rows=None):
        """Advance ``rows`` (None: all) by x; return the last cell's output of these rows.

        None, and nothing done, where an argument is not plain (a C-contiguous array of the right
        shape and dtype; rows of intp, distinct and in range) or another backend must serve it.

        Parameters
        ----------
        x : ndarray, shape (n, I) or (m, I)
        rows : ndarray of intp, shape (m,), optional
        """
        cdef _Cell cell
        cdef const Py_ssize_t *numbers = NULL
        cdef Py_ssize_t m, b0
        cdef const char *data
        forced = self.forced()
        if forced is not None and forced != "cpu":
            return None
        if not is_plain(x, self.type, 2) or shape_of(x)[1] != self.inputs:
            return None
        m = shape_of(x)[0]
        if rows is None:
            if m != self.rows:
                return None
        else:
            if not is_plain(rows, cnp.NPY_INTP, 1) or shape_of(rows)[0] != m:
                return None
            numbers = <const Py_ssize_t *> bytes_of(rows)
            if not self.distinct(numbers, m):
                return None
        if not self.prepare(min(m, <Py_ssize_t> BLOCK)):
            return None
        data = bytes_of(x)
        # What a step gave is the next one's x where a model feeds on itself, and one thread would
        # write there what another has yet to read.
        cell = self.cells[len(self.cells) - 1]
        if cell.y <= data < cell.y + self.out_bytes:
            x = x.copy()
        b0 = 0
        while b0 < m:
            data = bytes_of(x) + b0 * self.inputs * self.itemsize
            for cell in self.cells:
                data = cell.step(data, numbers, b0, min(m - b0, <Py_ssize_t> BLOCK))
            b0 += BLOCK
        # The same array as the last time, unless its owner has given it another shape since.
        if (
            not is_plain(self.served, self.type, 2)
            or shape_of(self.served)[0] != m
            or shape_of(self.served)[1] != cell.job.H
        ):
            self.served = cell.output[:m]
        return self.served

    cdef bint prepare(self, Py_ssize_t m) except -1:
        # All that may fail before a step of at most m rows at a time.
        cdef _Cell cell
        cdef Py_ssize_t i
        cdef list weights
        if len(self.cells) == 1:
            cell = self.cells[0]
            return cell.prepare(
                self.weights_of(cell.source), m, self.pack, self.get_num_threads
            )
        # As they are written together, so they are read: no other thread runs meanwhile.
        weights = [self.weights_of(cell.source) for cell in self.cells]
        for i in range(len(weights)):
            cell = self.cells[i]
            if not cell.prepare(weights[i], m, self.pack, self.get_num_threads):
                return False
        return True

    cdef bint distinct(self, const Py_ssize_t *numbers, Py_ssize_t m) noexcept:
        # Whether the numbers are rows, none of them twice.
        cdef Py_ssize_t i, marked = 0
        while marked < m and 0 <= numbers[marked] < self.rows and not self.seen[numbers[marked]]:
            self.seen[numbers[marked]] = True
            marked += 1
        for i in range(marked):
            self.seen[numbers[i]] = False
        return marked == m
