# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""How a call is divided among threads: a model of its time, and the partition with the least.

A step takes as long as its multiplications, or as reading its weights from the cache that holds
them, whichever is longer. A partition of the rows divides the first alone; a partition of the
panels of weights divides both, and costs a meeting at every step. What a multiplication, a parallel
region and a meeting cost is measured at the first call that could use more than one thread.
"""

from cython.parallel cimport parallel
from libc.string cimport memset

from fastgru._native._headers cimport (
    FASTGRU_TEAM_BARRIER,
    allocate_aligned,
    barrier_wait,
    cache_bytes,
    free_aligned,
    gru_job,
    microseconds,
    team_barrier,
    team_size,
)
from fastgru._native._job cimport flops_of, padded, set_step
from fastgru._native._kernels cimport Kernels, isa_in_use, kernels_of
from fastgru._native._threads cimport available_threads, may_start_threads, processors_taken
from fastgru._native._weights cimport PackedWeights

from fastgru.dtypes import sum_dtype

cdef enum:
    L1_BYTES = 1 << 15
    LEAST_FLOPS = 200000      # a call of ~2 us is over before another thread has begun
    GATE_FLOPS = 200          # what the gates of one unit and row take, counted so
    TRIES = 10
    MEETINGS = 50             # of one try
    # A region takes 1 to 2 us. If it took longer, the other thread may have been new or no core
    # free: then later calls measure again, so often, so many microseconds apart.
    USUAL_REGION = 5
    MEASUREMENTS = 50
    APART = 100000
    PATIENCE = 5000           # microseconds, of one measurement; 300 if nothing is in the way
    # Zero multiplications that take a few microseconds, nearly all of them in the product.
    RATE_ROWS = 8
    RATE_INPUTS = 512
    RATE_PANELS = 2
    # A call stops between steps. No part is so small that to read the weights for each costs a
    # hundredth of its time.
    STEP_FLOPS = 1 << 30      # of a step of a long call, a thread: 15 ms to 0.2 s
    STEP_ROWS = 128           # ... but at least so many rows
    PART_FLOPS = 1500000      # pays for a parallel region

# Microseconds, bytes a microsecond. One core reads its L2 at 120 to 190 GB/s and L3 at 95 to 115 on
# the machines we know; memory is shared, and more threads hardly make it faster.
cdef double STEP = 0.05       # what a step costs beside products and gates
cdef double FETCHING = 0.025  # ... and for each row, if half of its state comes from another core
cdef double L2_SPEED = 120000, L3_SPEED = 95000, MEMORY_SPEED = 30000
cdef double REST = 100        # after so long a pause OpenMP's threads may sleep: backends/cpu.py
cdef double WAKING = 50       # ... and waking them takes so long, at least
# A team must be that much faster than one thread, since its cores have other users too; and one
# that meets at every step as much faster than one that does not: how long a meeting takes depends
# on where the system puts the threads, and changes.
cdef double GAIN = 0.9
# Where other calls take the processors from a team, its threads wait at each meeting until the
# system has brought round the one that is missing: a call of 0.1 ms took up to 300. Calls that take
# so much at most are not made by teams while that may be.
cdef double SHORT = 20000

# A measurement on a busy machine may be far off; beyond these bounds it is not believed.
cdef double _rate = 0         # FLOP a microsecond of one thread
cdef int _rated = -1          # ... with this instruction set
cdef double _region = 0       # a parallel region of two threads
cdef double _meeting = 0      # a barrier of two threads
cdef int _measured = 0
cdef double _measured_at = 0
cdef long _l2 = cache_bytes(2), _l3 = cache_bytes(3)
cdef double _last = 0         # when a call was divided last

cdef int _forced_threads = 0
cdef bint _forced_shared = False


def force(int threads, bint shared):
    """Divide every call so from now on, for tests; 0 threads: by the model again."""
    global _forced_threads, _forced_shared
    _forced_threads, _forced_shared = threads, shared


cdef double _between(double low, double value, double high) noexcept:
    return min(max(value, low), high)


cdef void _measure_rate() noexcept:
    # The kernel itself, on zeros: its rate depends on the instruction set, the core and the clock.
    global _rate, _rated
    cdef Kernels kernels = kernels_of(4)
    cdef Py_ssize_t units = RATE_PANELS * kernels.lanes, w = 12 * units * RATE_INPUTS
    cdef Py_ssize_t x = 4 * RATE_ROWS * RATE_INPUTS, y = 4 * RATE_ROWS * units, total
    cdef double start, best = 1e9
    cdef gru_job job
    cdef team_barrier barrier
    cdef char *memory
    _rated, _rate = isa_in_use(), 1e5
    if kernels.lanes == 0:
        return
    memset(&job, 0, sizeof(job))
    memset(&barrier, 0, sizeof(barrier))
    set_step(&job, RATE_ROWS, RATE_INPUTS, units, 4)
    job.reset_after = job.u_finite = True
    job.chunk_rows = RATE_ROWS
    job.barrier = &barrier
    total = w + x + 2 * y + 16 * units + padded(kernels.run_scratch(&job, RATE_ROWS, RATE_PANELS))
    memory = <char *> allocate_aligned(total)
    if memory == NULL:
        return
    memset(memory, 0, total)
    job.w = job.u = memory
    job.x, job.y, job.state = memory + w, memory + w + x, memory + w + x + y
    job.bias = job.state + y
    for _ in range(TRIES):
        start = microseconds()
        kernels.run(&job, 0, RATE_ROWS, 0, RATE_PANELS, 1, <char *> job.bias + 16 * units)
        best = min(best, microseconds() - start)
    free_aligned(memory)
    _rate = _between(5e3, 0.5 * RATE_ROWS * w / max(best, 1e-3), 1e6)


cdef void _meet(team_barrier *barrier, int times) noexcept nogil:
    for _ in range(times):
        barrier_wait(barrier, team_size())


cdef void _measure_threads() noexcept:
    global _region, _meeting, _measured
    cdef double begin = microseconds(), start, region = 1e9, meetings = 1e9
    cdef team_barrier barrier
    memset(&barrier, 0, sizeof(barrier))
    for _ in range(TRIES):
        start = microseconds()
        if start - begin > PATIENCE:
            break
        with nogil, parallel(num_threads=2):
            _meet(&barrier, 1)
        region = min(region, microseconds() - start)
        start = microseconds()
        with nogil, parallel(num_threads=2):
            _meet(&barrier, 1 + MEETINGS)
        meetings = min(meetings, microseconds() - start)
    meetings = (meetings - region) / MEETINGS
    if _measured:
        region, meetings = min(region, _region), min(meetings, _meeting)
    _region = _between(0.5, region, 100)
    _meeting = _between(0.1, meetings, 5)
    _measured += 1


cdef double _product(double flops, double weights, double resident) noexcept:
    # One product, whose weights lie among so many bytes that the loop comes back to. The two
    # times overlap, if not wholly.
    cdef double work = flops / _rate, reading = 0
    if resident > _l3:
        reading = weights / MEMORY_SPEED
    elif resident > _l2:
        reading = weights / L3_SPEED
    elif resident > L1_BYTES:
        reading = weights / L2_SPEED
    return max(work, reading) + 0.1 * min(work, reading)


cdef double _time(const Work *work, Py_ssize_t rows, Py_ssize_t panels) noexcept:
    # Of one thread with so many rows and panels.
    cdef double units = panels * work.lanes, cells = rows * units
    cdef double w = 3 * units * work.inputs * work.size, u = 3 * units * work.H * work.size
    cdef double resident = u if work.T > 1 else w + work.products * u
    # The rate is float32's; a vector holds half as many float64.
    cdef double wide = work.size / 4.0
    return (
        _product(6 * cells * work.inputs * work.T * wide, w, resident)
        + work.products * _product(6 * cells * work.H * wide, u, resident)
        + work.T * (STEP + cells * GATE_FLOPS * wide / _rate)
    )


cdef Partition divide(int threads, const Work *work, bint heed) noexcept:
    # Heed: whether other calls may be in the way.
    global _last, _measured_at
    cdef Partition chosen
    cdef int team, most, split_team = 0, together_team = 0
    cdef double time, best, now, region, step
    cdef Py_ssize_t B = work.B, units = work.panels * work.lanes
    memset(&chosen, 0, sizeof(chosen))
    chosen.threads, chosen.rows = 1, B
    if _forced_threads:
        chosen.shared = _forced_shared
        chosen.threads = <int> min(_forced_threads, work.panels if chosen.shared else max(B, 1))
        chosen.rows = B if chosen.shared else (B + chosen.threads - 1) // chosen.threads
        return chosen
    if (
        threads == 1
        or 6.0 * B * units * (work.inputs * work.T + work.H * work.products) < LEAST_FLOPS
        or not may_start_threads()
    ):
        return chosen
    most = available_threads(threads)
    if _rated != isa_in_use():
        _measure_rate()
    chosen.alone = _time(work, B, work.panels)
    if heed and chosen.alone < SHORT and processors_taken():
        return chosen
    now = microseconds()
    if _measured == 0 or (
        _region > USUAL_REGION and _measured < MEASUREMENTS and now - _measured_at > APART
    ):
        _measure_threads()
        _measured_at = now
    region = _region if now - _last < REST else _region + WAKING
    _last = now
    # Twice: threads that have worked do not arrive together.
    step = 2 * work.meetings * _meeting + B * FETCHING
    team = 2
    while team <= most:
        # Both costs grow with the team: all meet at one counter.
        time = region * team / 2
        if team <= B:
            time += _time(work, (B + team - 1) // team, work.panels)
            if split_team == 0 or time < chosen.split:
                chosen.split, split_team = time, team
        time = (region + work.T * step) * team / 2
        if FASTGRU_TEAM_BARRIER and team <= work.panels:
            time += _time(work, B, (work.panels + team - 1) // team)
            if together_team == 0 or time < chosen.together:
                chosen.together, together_team = time, team
        if team == most:
            break
        team = min(2 * team, most)
    best = GAIN * chosen.alone
    if split_team and chosen.split < best:
        best = GAIN * chosen.split
        chosen.threads, chosen.rows = split_team, (B + split_team - 1) // split_team
    if together_team and chosen.together < best:
        chosen.threads, chosen.rows, chosen.shared = together_team, B, True
    return chosen


def costs():
    """Return what was measured, in microseconds and FLOP a microsecond; 0: not yet."""
    return {"rate": _rate, "region": _region, "meeting": _meeting}


def plan(spec, Py_ssize_t lanes, shape, bint has_state, int threads):
    """Return (threads, shared, times alone, with rows split, with panels split) of a forward call.

    The times are in microseconds; 0: not considered.

    Parameters
    ----------
    spec : GRUSpec
    lanes : int
        Units of a panel.
    shape : tuple (B, T)
    has_state : bool
        Whether the call comes with an initial state.
    threads : int
        Upper bound.
    """
    global _last
    cdef Partition chosen
    cdef Work work
    cdef Py_ssize_t size = sum_dtype(spec.dtype).itemsize
    _describe(
        &work, shape[0], shape[1], spec.input_dim, spec.units, lanes, size,
        has_state, spec.reset_after,
    )
    _last = microseconds()        # as if in the midst of calls
    chosen = divide(threads, &work, False)
    return chosen.threads, chosen.shared, chosen.alone, chosen.split, chosen.together


cdef Partition divide_job(const gru_job *job, PackedWeights packed, int threads) noexcept:
    cdef Work work
    _describe(
        &work, job.B, job.T, job.inputs, job.H, packed.lanes, packed.size,
        job.h0 != NULL or not job.u_finite, job.reset_after,
    )
    cdef Partition partition = divide(threads, &work, True)
    if packed.part_rows > 0 and not _forced_threads:
        _fix_parts(&partition, job, threads, packed.part_rows)
    return partition


cdef void _fix_parts(
    Partition *partition, const gru_job *job, int threads, Py_ssize_t part_rows,
) noexcept:
    # The same call gives the same bits: so its parts depend neither on measurements nor on how many
    # threads are there.
    cdef Py_ssize_t parts = (job.B + part_rows - 1) // part_rows
    if flops_of(job) >= PART_FLOPS:
        parts = max(parts, min(<Py_ssize_t> threads, job.B))
    partition.parts, partition.rows = <int> parts, (job.B + parts - 1) // parts
    partition.threads = <int> min(<Py_ssize_t> partition.threads, parts)


cdef void _describe(
    Work *work, Py_ssize_t B, Py_ssize_t T, Py_ssize_t inputs, Py_ssize_t H, Py_ssize_t lanes,
    Py_ssize_t size, bint has_state, bint reset_after,
) noexcept:
    # A forward call: the zeros that it begins with, if it does, are not multiplied.
    work.B, work.T, work.inputs, work.H = B, T, inputs, H
    work.panels, work.lanes, work.size = (H + lanes - 1) // lanes, lanes, size
    work.products = T if has_state else max(T - 1, 0)
    work.meetings = 1 if reset_after else 2


cdef bint is_same(const Partition *one, const Partition *other) noexcept:
    return (
        one.threads == other.threads and one.shared == other.shared and one.rows == other.rows
        and one.parts == other.parts
    )


cdef void shorten_steps(Partition *partition, const gru_job *job) noexcept:
    # A call stops between steps: so rows are run in parts of which a step is short.
    cdef double step = 6.0 * job.H * (job.H + job.inputs)
    cdef Py_ssize_t most = max(<Py_ssize_t> (STEP_FLOPS / step), STEP_ROWS)
    if not partition.shared and partition.rows > most:
        partition.parts = <int> ((job.B + most - 1) // most)
        partition.rows = most


cdef bint next_part(
    const Partition *partition, Py_ssize_t B, Py_ssize_t panels, int team, Part *part,
) noexcept nogil:
    # The next part that a thread takes; the first has its rank as number. False: there is none. The
    # team may be smaller than was asked for, by OpenMP or because other calls have the threads.
    # Panels are divided for the team that is there, since it meets at barriers; rows as the scratch
    # was made for, and a thread then takes several parts, one after the other.
    cdef int number = part.number
    cdef int parts = team if partition.shared else max(partition.parts, partition.threads)
    part.b0, part.n, part.panel0, part.panel1, part.team = 0, B, 0, panels, 1
    while number < parts:
        part.number = number + team
        if partition.shared:
            part.team = team
            part.panel0, part.panel1 = panels * number // parts, panels * (number + 1) // parts
            return True
        part.b0 = B * number // parts
        part.n = B * (number + 1) // parts - part.b0
        if part.n > 0:
            return True
        number += team
    return False
