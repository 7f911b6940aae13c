# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""How a fused call is cut among threads: a model of its time, and the cut with the least.

A step takes as long as its multiplications, or as reading its weights from the cache that holds
them, whichever is longer. Rows cut among threads divide the first alone; panels of weights cut
among threads divide both, and cost a meeting at every step. What a multiplication, a parallel
region and a meeting cost is measured at the first call that could use more than one thread.
"""

from cython.parallel cimport parallel
from libc.string cimport memset

from fastgru._native._cpu cimport _kernels_f32, _padded
from fastgru._native._threads cimport _available, _crowded, _may_start_threads
from fastgru._native.gates cimport (
    FASTGRU_TEAM_BARRIER,
    allocate_aligned,
    barrier_wait,
    cache_bytes,
    free_aligned,
    gru_job,
    kernels_f32,
    microseconds,
    team_barrier,
    team_size,
)

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
cdef const kernels_f32 *_rated = NULL  # ... with these kernels
cdef double _region = 0       # a parallel region of two threads
cdef double _meeting = 0      # a barrier of two threads
cdef int _measured = 0
cdef double _measured_at = 0
cdef long _l2 = cache_bytes(2), _l3 = cache_bytes(3)
cdef double _last = 0         # when a call was cut last

cdef int _forced_threads = 0
cdef bint _forced_shared = False


def force(int threads, bint shared):
    """Cut every call so from now on, for tests and measurements; 0 threads: by the model again."""
    global _forced_threads, _forced_shared
    _forced_threads, _forced_shared = threads, shared


cdef double _between(double low, double value, double high) noexcept:
    return min(max(value, low), high)


cdef void _measure_rate() noexcept:
    # The kernel itself, on zeros: its rate depends on the instruction set, the core and the clock.
    global _rate, _rated
    cdef const kernels_f32 *kernels = _kernels_f32()
    cdef Py_ssize_t lanes = kernels.lanes, units = RATE_PANELS * lanes, scratch_bytes
    cdef Py_ssize_t w = 3 * units * RATE_INPUTS, x = RATE_ROWS * RATE_INPUTS
    cdef Py_ssize_t y = RATE_ROWS * units
    cdef double start, best = 1e9
    cdef gru_job job
    cdef team_barrier barrier
    cdef char *memory
    memset(&job, 0, sizeof(job))
    memset(&barrier, 0, sizeof(barrier))
    job.B, job.T, job.inputs, job.H = RATE_ROWS, 1, RATE_INPUTS, units
    job.reset_after = job.sequences = job.u_finite = True
    job.chunk_rows = RATE_ROWS
    job.barrier = &barrier
    scratch_bytes = _padded(kernels.run_scratch(&job, RATE_ROWS, RATE_PANELS))
    memory = <char *> allocate_aligned((w + x + 2 * y + 4 * units) * 4 + scratch_bytes)
    _rated, _rate = kernels, 1e5
    if memory == NULL:
        return
    memset(memory, 0, (w + x + 2 * y + 4 * units) * 4 + scratch_bytes)
    job.w = job.u = memory
    job.x, job.x_b = memory + w * 4, RATE_INPUTS * 4
    job.y, job.y_b = <char *> job.x + x * 4, units * 4
    job.state = job.y + y * 4
    job.bias = job.state + y * 4
    for _ in range(TRIES):
        start = microseconds()
        kernels.run(&job, 0, RATE_ROWS, 0, RATE_PANELS, 1, <char *> job.bias + 16 * units)
        best = min(best, microseconds() - start)
    free_aligned(memory)
    _rate = _between(5e3, 2.0 * RATE_ROWS * w / max(best, 1e-3), 1e6)


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


cdef Cut _cut(int threads, const Work *work, bint heed) noexcept:
    # Heed: whether other calls may be in the way.
    global _last, _measured_at
    cdef Cut cut
    cdef int team, most, split_team = 0, together_team = 0
    cdef double time, best, now, region, step
    cdef Py_ssize_t B = work.B, units = work.panels * work.lanes
    memset(&cut, 0, sizeof(cut))
    cut.threads, cut.rows = 1, B
    if _forced_threads:
        cut.shared = _forced_shared
        cut.threads = <int> min(_forced_threads, work.panels if cut.shared else max(B, 1))
        cut.rows = B if cut.shared else (B + cut.threads - 1) // cut.threads
        return cut
    if (
        threads == 1
        or 6.0 * B * units * (work.inputs * work.T + work.H * work.products) < LEAST_FLOPS
        or not _may_start_threads()
    ):
        return cut
    most = _available(threads)
    if _rated != _kernels_f32():
        _measure_rate()
    cut.alone = _time(work, B, work.panels)
    if heed and cut.alone < SHORT and _crowded():
        return cut
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
            if split_team == 0 or time < cut.split:
                cut.split, split_team = time, team
        time = (region + work.T * step) * team / 2
        if FASTGRU_TEAM_BARRIER and team <= work.panels:
            time += _time(work, B, (work.panels + team - 1) // team)
            if together_team == 0 or time < cut.together:
                cut.together, together_team = time, team
        if team == most:
            break
        team = min(2 * team, most)
    best = GAIN * cut.alone
    if split_team and cut.split < best:
        best = GAIN * cut.split
        cut.threads, cut.rows = split_team, (B + split_team - 1) // split_team
    if together_team and cut.together < best:
        cut.threads, cut.rows, cut.shared = together_team, B, True
    return cut


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
    cdef Cut cut
    cdef Work work
    _work(
        &work, shape[0], shape[1], spec.input_dim, spec.units, lanes, spec.dtype.itemsize,
        has_state, spec.reset_after,
    )
    _last = microseconds()        # as if in the midst of calls
    cut = _cut(threads, &work, False)
    return cut.threads, cut.shared, cut.alone, cut.split, cut.together


cdef void _work(
    Work *work, Py_ssize_t B, Py_ssize_t T, Py_ssize_t inputs, Py_ssize_t H, Py_ssize_t lanes,
    Py_ssize_t size, bint has_state, bint reset_after,
) noexcept:
    # Of a forward call: the zeros that it begins with, if it does, are not multiplied.
    work.B, work.T, work.inputs, work.H = B, T, inputs, H
    work.panels, work.lanes, work.size = (H + lanes - 1) // lanes, lanes, size
    work.products = T if has_state else max(T - 1, 0)
    work.meetings = 1 if reset_after else 2


cdef void _part(
    const Cut *cut, Py_ssize_t B, Py_ssize_t panels, int part, int parts,
    Py_ssize_t *b0, Py_ssize_t *n, Py_ssize_t *panel0, Py_ssize_t *panel1,
) noexcept nogil:
    # The part-th of `parts`.
    if cut.shared:
        b0[0], n[0] = 0, B
        panel0[0], panel1[0] = panels * part // parts, panels * (part + 1) // parts
    else:
        b0[0] = B * part // parts
        n[0] = B * (part + 1) // parts - b0[0]
        panel0[0], panel1[0] = 0, panels


cdef int _parts(const Cut *cut, int team) noexcept nogil:
    # How many parts a team makes; it may be smaller than was asked for, by OpenMP or because other
    # calls have the threads. Panels are cut for the team that is there, since it meets at barriers;
    # rows as the scratch was made for, and a thread then takes several parts, one after the other.
    return team if cut.shared else max(cut.parts, cut.threads)
