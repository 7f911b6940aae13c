# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""One time step of the cells of a stream, on rows of state that stay where they are.

A step of a small layer takes the kernel less time than Python takes for a few calls. So all that
can be is settled before: buffers are taken once, weights stay bound until they are written, and a
step that has nothing special to it is one call into this file.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastgru._native._arrays cimport bytes_of, cnp, is_plain, require, shape_of
from fastgru._native._execute cimport (
    GIL_FLOPS,
    Execution,
    allocate,
    begin,
    carve,
    run_with_rules,
    threads_for,
)
from fastgru._native._headers cimport free_aligned, gru_job
from fastgru._native._held cimport hold
from fastgru._native._job cimport set_step, set_weights
from fastgru._native._kernels cimport isa_in_use
from fastgru._native._partition cimport Partition, divide_job, is_same
from fastgru._native._weights cimport PackedWeights

from fastgru._native._held import held

cnp.import_array()

cdef enum:
    BLOCK = 1024              # rows at a time: scratch is for these, however many rows there are


cdef class _Cell:
    # One cell's part in the step: its rows of state and output, and the job that is run on them.
    cdef object spec, source, weights, state, output
    cdef PackedWeights packed
    cdef gru_job job
    cdef Execution execution      # its scratch is kept from step to step
    cdef char *states
    cdef char *y
    cdef Py_ssize_t inputs, row   # row: bytes of one of the state
    cdef Py_ssize_t prepared      # rows that the scratch is carved for

    def __cinit__(self, spec, source, state, output):
        cdef Py_ssize_t rows = shape_of(state)[0]
        require(state, "state", spec.dtype.num, 2, rows, spec.units)
        require(output, "output", spec.dtype.num, 2, rows, spec.units)
        self.spec, self.source, self.state, self.output = spec, source, state, output
        self.inputs = spec.input_dim
        self.row = shape_of(state)[1] * state.itemsize
        self.states, self.y = bytes_of(state), bytes_of(output)
        set_step(&self.job, 0, self.inputs, shape_of(state)[1], state.itemsize)
        self.job.h0 = self.job.state = self.states

    def __dealloc__(self):
        free_aligned(self.execution.memory)

    cdef bint take(self, weights, pack) except -1:
        # Takes over weights that were written since the last step; False: not ours to run.
        cdef PackedWeights packed
        if weights is None or shape_of(weights.kernel)[0] != self.inputs:
            return False  # not built, or built anew for another number of features
        packed = pack(self.spec, weights)
        if packed is None:
            return False
        set_weights(&self.job, packed)
        begin(&self.execution, &self.job, packed)
        self.packed, self.weights, self.prepared = packed, weights, -1
        return True

    cdef bint prepare(self, weights, Py_ssize_t m, pack, get_num_threads) except -1:
        # All that may fail before a step of at most m rows; False: another backend must serve it.
        cdef Partition partition
        if weights is None or weights is not self.weights or self.packed.isa != isa_in_use():
            if not self.take(weights, pack):
                return False
        self.job.B = m
        partition = divide_job(&self.job, self.packed, threads_for(get_num_threads, &self.job))
        if m == self.prepared and is_same(&partition, &self.execution.partition):
            return True
        self.execution.partition = partition
        self.job.reset_state = NULL
        if not allocate(&self.execution):
            raise MemoryError(f"scratch of {carve(&self.execution, NULL)} bytes")
        self.prepared = m
        return True

    cdef const char *step(
        self, const char *x, const Py_ssize_t *rows, Py_ssize_t b0, Py_ssize_t m
    ) noexcept:
        # m rows of x, no more than were prepared, and places b0..b0+m of the outputs, which it
        # returns. `rows` names them; NULL: they are rows b0..b0+m of the stream.
        cdef Py_ssize_t first = b0 * self.row
        self.job.B, self.job.x, self.job.y = m, x, self.y + first
        self.job.rows = NULL
        self.job.state = self.states
        if rows == NULL:
            self.job.state += first
        else:
            self.job.rows = rows
        self.job.h0 = self.job.state
        run_with_rules(&self.execution)
        return self.job.y


cdef class Stepper:
    """The step of a stream that the fused kernels serve.

    Parameters
    ----------
    parts : StreamParts
        Of the cells: the first reads x, each other one what the one before it gave.
    pack : callable
        ``pack(spec, weights)`` returns their `PackedWeights`; None: the kernels cannot serve them.
    get_num_threads : callable
        Asked only where the work is enough for two.
    """

    cdef list cells
    cdef object weights_of, forced, pack, get_num_threads, served
    cdef Py_ssize_t rows, inputs, itemsize
    cdef int type
    cdef char *seen               # of each row: whether it was named already; zeros between calls
    # The numbers of a block. Other threads may write to the caller's while a step runs, so they are
    # copied, and the copy is checked and used.
    cdef Py_ssize_t[BLOCK] numbers
    cdef Py_ssize_t marked        # ... of which so many are marked as seen
    cdef bint busy                # a thread is in `step`

    def __cinit__(self, parts, pack, get_num_threads):
        specs, sources, states, outputs, self.weights_of, self.forced = parts
        for before, spec in zip(specs, specs[1:], strict=False):
            if spec.input_dim != before.units:
                raise ValueError(
                    f"stream: expected a cell of I = {before.units} features, as the one before it "
                    f"has units, got I = {spec.input_dim}; build the layers together"
                )
        self.cells = [
            _Cell(*cell) for cell in zip(specs, sources, states, outputs, strict=True)
        ]
        self.pack, self.get_num_threads = pack, get_num_threads
        self.rows = shape_of(states[0])[0]
        self.inputs = specs[0].input_dim
        self.itemsize = states[0].itemsize
        self.type = specs[0].dtype.num
        self.served = None
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
        forced = self.forced()
        if forced is not None and forced != "cpu":
            return None
        if self.busy:
            raise ValueError(
                "stream: another thread is in its step; a stream has one owner at a time, so give "
                "each thread a stream of its own, or a lock"
            )
        self.busy = True
        try:
            return self.step_alone(x, rows)
        finally:
            self.busy = False

    cdef object step_alone(self, x, rows):
        cdef _Cell cell
        cdef const Py_ssize_t *given = NULL
        cdef Py_ssize_t m, b0 = 0, block, n
        cdef const char *data
        cdef const char *inputs
        if not is_plain(x, self.type, 2):
            return None
        m = shape_of(x)[0]
        block = min(m, <Py_ssize_t> BLOCK)
        kept = None
        if m > block or self.releases(m):
            kept = hold(x), None if rows is None else hold(rows)
        if rows is None:
            if m != self.rows:
                return None
        else:
            if not is_plain(rows, cnp.NPY_INTP, 1) or shape_of(rows)[0] != m:
                return None
            given = <const Py_ssize_t *> bytes_of(rows)
            if m > self.rows or not self.check_all(given, m):
                return None
        if not self.prepare(block):
            return None
        # Here, for other threads may have run in what is above.
        if not is_plain(x, self.type, 2) or (
            shape_of(x)[0] != m or shape_of(x)[1] != self.inputs
        ):
            return None
        cell = self.cells[len(self.cells) - 1]
        inputs = bytes_of(x)
        # What a step gave is the next one's x where a model feeds on itself, and one thread would
        # write there what another has yet to read.
        if cell.y <= inputs < cell.y + self.rows * cell.row:
            x = cnp.PyArray_NewCopy(x, cnp.NPY_CORDER)
            inputs = bytes_of(x)
        while b0 < m:
            n = min(m - b0, block)
            if given != NULL and m > BLOCK and not self.take_again(given + b0, n):
                raise ValueError("rows: another thread has changed them during the step")
            data = inputs + b0 * self.inputs * self.itemsize
            for cell in self.cells:
                data = cell.step(data, self.numbers if given != NULL else NULL, b0, n)
            b0 += block
        return self.serve(cell, m)

    cdef object serve(self, _Cell cell, Py_ssize_t m):
        # The same array as the last time, unless its owner has given it another shape since.
        if (
            not is_plain(self.served, self.type, 2)
            or shape_of(self.served)[0] != m
            or shape_of(self.served)[1] != cell.job.H
        ):
            self.served = held(cell.output)[:m]
        return self.served

    cdef bint releases(self, Py_ssize_t m) noexcept:
        # Whether other threads may run while the first cell reads x.
        cdef _Cell cell = self.cells[0]
        return 6.0 * m * cell.job.H * (cell.job.H + self.inputs) >= GIL_FLOPS

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

    cdef bint check_all(self, const Py_ssize_t *given, Py_ssize_t m) noexcept:
        # Whether m numbers are rows, none of them twice. Of one block they are taken by that.
        cdef Py_ssize_t b0 = 0, n = 0, i
        cdef bint good = True
        while good and b0 < m:
            n = min(m - b0, <Py_ssize_t> BLOCK)
            good = self.mark(given + b0, n)
            b0 += n
        if m <= BLOCK:
            for i in range(self.marked):
                self.seen[self.numbers[i]] = False
        else:
            memset(self.seen, 0, self.rows)
        return good

    cdef bint take_again(self, const Py_ssize_t *given, Py_ssize_t n) noexcept:
        # Takes a block of several; whether these are still rows, none of them twice.
        cdef Py_ssize_t i
        cdef bint good = self.mark(given, n)
        for i in range(self.marked):
            self.seen[self.numbers[i]] = False
        return good

    cdef bint mark(self, const Py_ssize_t *given, Py_ssize_t n) noexcept:
        # Copies the numbers of a block and marks them as seen; False at one that cannot be.
        cdef Py_ssize_t number
        memcpy(self.numbers, given, n * sizeof(Py_ssize_t))
        self.marked = 0
        while self.marked < n:
            number = self.numbers[self.marked]
            if not 0 <= number < self.rows or self.seen[number]:
                return False
            self.seen[number] = True
            self.marked += 1
        return True
