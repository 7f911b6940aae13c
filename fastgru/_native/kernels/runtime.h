/* What a loop over threads needs from the compiler and the machine; every piece has a fallback.
 *
 * openmp_threads         how many a region has unless it says; 0 without OpenMP
 * end_idle_threads       ends the threads that OpenMP keeps for this one; false: they may be there
 * team_rank, team_size   this thread in its OpenMP team; 0 and 1 without OpenMP
 * microseconds           a clock
 * lease, give_back       threads of the whole process, counted: a lock costs more than the counting
 * oversubscribed         whether calls of late found a thread of theirs on every processor
 * yield_if_due               a long call gives way to brief ones where processors are short
 * cache_bytes            size of a core's L2 and of the L3 behind it
 * barrier_wait           a spin barrier between the threads of one team, yielding after a while:
 *                        a step lasts microseconds, an OpenMP barrier costs half of one (notes: 434
 *                        against 321 ns) and a sleeping one tens
 * poll_stops            whether a long call that the user has interrupted ends here
 * poll_join             the caller of a long call waits for its team, and still sees interrupts
 * denormals_off          subnormal numbers become zero until denormals_restore: a state that decays
 *                        on silence would otherwise cost ~100 cycles an operation
 */
#ifndef FASTGRU_RUNTIME_H
#define FASTGRU_RUNTIME_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifdef _OPENMP
#    include <omp.h>
#    define FASTGRU_OPENMP 1
/* Asking makes the runtime read its environment now, not at the first parallel region. */
static inline int openmp_threads(void) { return omp_get_max_threads(); }
static inline int team_rank(void) { return omp_get_thread_num(); }
static inline int team_size(void) { return omp_get_num_threads(); }
static inline double microseconds(void) { return 1e6 * omp_get_wtime(); }
/* gcc has it since version 9, and the _OPENMP of before. */
#    if _OPENMP >= 201811 || (__GNUC__ >= 9 && !defined(__clang__))
static inline int end_idle_threads(void) { return omp_pause_resource_all(omp_pause_soft) == 0; }
#    else
static inline int end_idle_threads(void) { return 0; }
#    endif
#else
#    define FASTGRU_OPENMP 0
static inline int openmp_threads(void) { return 0; }
static inline int team_rank(void) { return 0; }
static inline int team_size(void) { return 1; }
static inline double microseconds(void) {
    struct timespec now;
#    ifdef CLOCK_MONOTONIC
    clock_gettime(CLOCK_MONOTONIC, &now);
#    else
    timespec_get(&now, TIME_UTC);
#    endif
    return 1e6 * (double)now.tv_sec + 1e-3 * (double)now.tv_nsec;
}
static inline int end_idle_threads(void) { return 1; }
#endif

#ifndef _WIN32
#    include <sched.h>
#    include <unistd.h>
#endif

#if defined(__SSE2__) || defined(_M_X64)
#    include <xmmintrin.h>
static inline unsigned long long denormals_off(void) {
    unsigned int old = _mm_getcsr();
    _mm_setcsr(old | 0x8040); /* FTZ, DAZ */
    return old;
}
static inline void denormals_restore(unsigned long long old) { _mm_setcsr((unsigned int)old); }
#    define SPIN_PAUSE() _mm_pause()
#elif defined(__aarch64__) && defined(__GNUC__)
static inline unsigned long long denormals_off(void) {
    unsigned long long old;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(old));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(old | (1ULL << 24)));
    return old;
}
static inline void denormals_restore(unsigned long long old) {
    __asm__ __volatile__("msr fpcr, %0" : : "r"(old));
}
#    define SPIN_PAUSE() __asm__ __volatile__("yield")
#else
static inline unsigned long long denormals_off(void) { return 0; }
static inline void denormals_restore(unsigned long long old) { (void)old; }
#    define SPIN_PAUSE() ((void)0)
#endif

/* Pauses before a waiter gives its core away: 10 to 20 us on Intel since Skylake (140 cycles each),
 * a few on others. More hurts when another process wants the core, less when the others are late.
 */
#define SPINS 300

#ifndef _WIN32
#    define YIELD_PROCESSOR() sched_yield()
#else
#    define YIELD_PROCESSOR() ((void)0)
#endif

/* Zeroed before use. arrived counts to the team's size; round tells the waiters to go on. */
typedef struct {
    int arrived;
    char apart[124]; /* on its own cache line, neighbours' prefetch included */
    int round;
    char apart_too[124];
} team_barrier;

#if (defined(__GNUC__) || defined(__clang__)) && !defined(FASTGRU_NO_VECTORS)
#    define FASTGRU_TEAM_BARRIER 1
static inline void barrier_wait(team_barrier *b, int size) {
    if (size == 1)
        return;
    int round = __atomic_load_n(&b->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == size) {
        __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&b->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&b->round, __ATOMIC_ACQUIRE) == round; spins++) {
        if (spins < SPINS)
            SPIN_PAUSE();
        else
            YIELD_PROCESSOR();
    }
}
#else
#    define FASTGRU_TEAM_BARRIER 0 /* then no two threads share a step */
static inline void barrier_wait(team_barrier *b, int size) { (void)b, (void)size; }
#endif

/* Of a long call, which asks now and then whether to stop. Its caller is the one that asks, being
 * the only thread that may run Python code; it is rank 0 of its team. */
typedef struct {
    int (*ask)(void); /* nonzero: stop; may take long, and is not called by other threads */
    double asked;     /* when it was called last, in microseconds */
    ptrdiff_t end;    /* no thread goes on when it has done so many steps */
    int together;     /* the team meets at every step */
    int finished;     /* threads of the team that have nothing left to do, but for the caller */
} interrupt_poll;

#define POLL_EVERY 200000.0 /* microseconds: asking waits for the GIL, 5 ms if others compute */

#if defined(__GNUC__) || defined(__clang__)
#    define RELAXED_LOAD(address) __atomic_load_n(address, __ATOMIC_RELAXED)
#    define RELAXED_STORE(address, value) __atomic_store_n(address, value, __ATOMIC_RELAXED)
#else
#    define RELAXED_LOAD(address) (*(address)) /* volatile, with one thread to a call or MSVC */
#    define RELAXED_STORE(address, value) (*(address) = (value))
#endif

/* Whether a thread that has done `done` steps stops there; `next` is where it will ask again.
 * Threads that meet must stop at the same step, and the others pass `done` after the caller has: so
 * what the caller says counts from `next` on. */
static inline int poll_stops(interrupt_poll *poll, ptrdiff_t done, ptrdiff_t next) {
    volatile ptrdiff_t *end = &poll->end;
    if (team_rank() == 0 && microseconds() - poll->asked > POLL_EVERY) {
        if (RELAXED_LOAD(end) == PTRDIFF_MAX && poll->ask())
            RELAXED_STORE(end, poll->together ? next : 0);
        poll->asked = microseconds();
    }
    return done >= RELAXED_LOAD(end);
}

#if defined(__GNUC__) || defined(__clang__)
static inline void poll_join(interrupt_poll *poll, int rank, int team) {
    if (rank != 0) {
        __atomic_add_fetch(&poll->finished, 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&poll->finished, __ATOMIC_ACQUIRE) < team - 1; spins++) {
        poll_stops(poll, 0, 0);
        if (spins < SPINS)
            SPIN_PAUSE();
#    ifndef _WIN32
        else
            usleep(100);
#    endif
    }
}
#else
static inline void poll_join(interrupt_poll *poll, int rank, int team) {
    (void)poll, (void)rank, (void)team; /* OpenMP waits; an interrupt may have to as well */
}
#endif

#if defined(__GNUC__) || defined(__clang__)
static inline int compare_and_swap(int *value, int *expected, int wanted) {
    return __atomic_compare_exchange_n(value, expected, wanted, 1, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}
#elif defined(_MSC_VER)
#    include <intrin.h>
static inline int compare_and_swap(int *value, int *expected, int wanted) {
    const int old = _InterlockedCompareExchange((volatile long *)value, wanted, *expected);
    const int same = old == *expected;
    *expected = old;
    return same;
}
#endif

/* Of the whole process. */
typedef struct {
    int leased;      /* threads that run calls, the callers' own among them */
    int processors;  /* how many of them can do so at a time */
    int brief_calls; /* callers that want the GIL back soon: of short calls, or done with theirs */
    size_t oversubscribed_at; /* when a call came last and found so many running: as a clock of
                                 microseconds */
} thread_counts;

#define OVERSUBSCRIBED_FOR 50000 /* microseconds */
/* Microseconds. Beside two long calls of 64 rows on two processors small ones take 1.3 ms at the
 * 99th percentile with turns of 300, 2.3 of 600, 3.2 of 1000 and 4.2 without; but the shorter a
 * turn, the less the long calls get, of what would be their half: a half, three quarters, all. */
#define YIELD_AFTER 500.0

/* Counts the caller and as many more threads, up to `wanted` in all, as the limit leaves; returns
 * how many that are. The caller itself is there already, so it is never refused. leased_threads:
 * how many there are now. */
static inline int leased_threads(const thread_counts *counts) {
    return RELAXED_LOAD((const volatile int *)&counts->leased);
}
static inline size_t clock_microseconds(void) { return (size_t)(unsigned long long)microseconds(); }
static inline int lease(thread_counts *counts, int wanted, int limit) {
    int now = leased_threads(counts), granted;
    if (now >= RELAXED_LOAD((const volatile int *)&counts->processors))
        RELAXED_STORE((volatile size_t *)&counts->oversubscribed_at, clock_microseconds());
    do {
        granted = limit - now < wanted ? limit - now : wanted;
        granted = granted > 1 ? granted : 1;
    } while (!compare_and_swap(&counts->leased, &now, now + granted));
    return granted;
}
static inline void atomic_add(int *count, int change) {
    int now = RELAXED_LOAD((volatile int *)count);
    while (!compare_and_swap(count, &now, now + change))
        ;
}
static inline void give_back(thread_counts *counts, int granted) {
    atomic_add(&counts->leased, -granted);
}

/* Whether a team would have to share its processors with other calls: so it was of late. */
static inline int oversubscribed(const thread_counts *counts) {
    return clock_microseconds() -
               RELAXED_LOAD((const volatile size_t *)&counts->oversubscribed_at) <
           OVERSUBSCRIBED_FOR;
}

/* Between steps of a call that holds `granted` threads, by one that meets no other: gives its
 * processor to whoever waits for it, if the process has no more of them than calls, and brief ones
 * among these. Else the system leaves it there for about 3 ms; and a small call waits so long each
 * time that it wakes to ask for the GIL, and finds it taken again. Not for each other's sake: other
 * processes would gain by it. since: when the turn began, 0 at first. */
static inline void yield_if_due(const thread_counts *counts, int granted, double *since) {
    if (counts == NULL)
        return;
    const int used = leased_threads(counts);
    if (used <= granted || used < RELAXED_LOAD((const volatile int *)&counts->processors) ||
        RELAXED_LOAD((const volatile int *)&counts->brief_calls) == 0)
        return;
    const double now = microseconds();
    if (*since == 0) {
        *since = now;
    } else if (now - *since > YIELD_AFTER) {
        YIELD_PROCESSOR();
        *since = microseconds();
    }
}

static inline long cache_bytes(int level) {
    long bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
    if (bytes <= 0) /* unknown to the system */
        bytes = level == 2 ? 1L << 20 : 1L << 24;
    return bytes;
}

/* 64-byte aligned memory that free_aligned gives back; NULL when there is none. */
static inline void *allocate_aligned(size_t bytes) {
#ifdef _WIN32
    return _aligned_malloc(bytes, 64);
#else
    void *memory = NULL;
    return posix_memalign(&memory, 64, bytes) ? NULL : memory;
#endif
}
static inline void free_aligned(void *memory) {
#ifdef _WIN32
    _aligned_free(memory);
#else
    free(memory);
#endif
}

/* Scratch is measured by the code that hands it out: a function with `char *base` and `size_t size
 * = 0` names its pieces one after another, each 64-byte aligned if base is, and `size` is what they
 * take. On a NULL base all pieces are NULL. */
static inline void *carve(char *base, size_t *size, size_t bytes) {
    char *piece = base ? base + *size : NULL;
    *size += (bytes + 63) / 64 * 64;
    return piece;
}
#define CARVE(piece, count) ((piece) = carve(base, &size, (size_t)(count) * sizeof *(piece)))

#endif
