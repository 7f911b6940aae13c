/* What a loop over threads needs from the compiler and the machine. Every piece has a fallback, so
 * that the kernels compile without OpenMP and with any C11 compiler. Nothing here knows what a GRU
 * is.
 *
 * openmp_threads          threads of a parallel region that does not say how many; 0 without OpenMP
 * end_idle_threads        ends the threads that OpenMP keeps for the calling thread
 * team_rank, team_size    this thread in its OpenMP team; 0 and 1 without OpenMP
 * microseconds            a clock
 * denormals_off           flushes subnormal numbers to zero until denormals_restore
 * barrier_wait            a spin barrier between the threads of one team
 * poll_stops, poll_join   how a long call finds out that the user has interrupted it
 * lease, give_back        a count of the threads of the whole process
 * oversubscribed          whether there were more calls than processors a short while ago
 * yield_if_due            a long call leaves its processor to short calls that wait for one
 * cache_bytes             size of a core's L2, or of the L3 behind it
 * allocate_aligned        memory whose address is a multiple of 64
 * carve                   hands out the pieces of a kernel's scratch, and measures it
 */
#ifndef FASTGRU_RUNTIME_H
#define FASTGRU_RUNTIME_H

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifdef _OPENMP
#    include <omp.h>
#    define FASTGRU_OPENMP 1
/* The first call makes OpenMP read its environment variables. */
static inline int openmp_threads(void) { return omp_get_max_threads(); }
static inline int team_rank(void) { return omp_get_thread_num(); }
static inline int team_size(void) { return omp_get_num_threads(); }
static inline double microseconds(void) { return 1e6 * omp_get_wtime(); }
/* omp_pause_resource_all is of OpenMP 5.0. gcc 9 has it, but its _OPENMP still names version 4.5.
 */
#    if _OPENMP >= 201811 || (__GNUC__ >= 9 && !defined(__clang__))
/* 0: this OpenMP cannot, and the threads may still be there. */
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

/* A state that decays while its input is zero becomes subnormal in the end. Each operation on such
 * numbers costs about 100 cycles. denormals_off returns the mode of before, for denormals_restore.
 */
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

/* How often a waiting thread pauses before it yields its processor: 10 to 20 us on Intel since
 * Skylake (140 cycles a pause), a few on others. More pauses take time from other processes that
 * want the processor; fewer make the wait longer when the other threads arrive a little late. */
#define SPINS 300

#ifndef _WIN32
#    define YIELD_PROCESSOR() sched_yield()
#else
#    define YIELD_PROCESSOR() ((void)0)
#endif

/* The threads of a team meet here at every step. A step lasts microseconds; this barrier costs 321
 * ns, OpenMP's 434, and a thread that sleeps tens of microseconds. All zeros before its first use.
 * `arrived` counts up to the size of the team. `round` changes when all have arrived. Each has
 * cache lines of its own: two, because the prefetcher loads lines in pairs. */
typedef struct {
    int arrived;
    char apart[124];
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
#    define FASTGRU_TEAM_BARRIER 0 /* the partition gives no step to two threads then */
static inline void barrier_wait(team_barrier *b, int size) { (void)b, (void)size; }
#endif

/* How a long call polls for an interrupt. Python's signal handlers run only when the main thread
 * asks for them. So that thread, which is rank 0 of its team, asks between steps. */
typedef struct {
    int (*ask)(void); /* nonzero: stop. It may take long; only rank 0 calls it */
    double asked;     /* when rank 0 called it last, in microseconds */
    ptrdiff_t end;    /* a thread stops when it has done so many steps; PTRDIFF_MAX: not at all */
    int together;     /* the threads of the team meet at every step */
    int finished;     /* how many threads other than rank 0 have done all their work */
} interrupt_poll;

#define POLL_EVERY 200000.0 /* microseconds. A poll waits for the GIL: 5 ms if others compute */

#if defined(__GNUC__) || defined(__clang__)
#    define RELAXED_LOAD(address) __atomic_load_n(address, __ATOMIC_RELAXED)
#    define RELAXED_STORE(address, value) __atomic_store_n(address, value, __ATOMIC_RELAXED)
#else
/* Callers pass a pointer to volatile: MSVC reads and writes an aligned int as a whole. */
#    define RELAXED_LOAD(address) (*(address))
#    define RELAXED_STORE(address, value) (*(address) = (value))
#endif

/* Whether a thread that has done `done` steps stops there. It polls again after `next` steps.
 * Threads that meet at every step have to stop at the same one, and some may have passed `done`
 * when rank 0 learns of the interrupt: so they all stop at `next`. Others stop when they ask next.
 */
static inline int poll_stops(interrupt_poll *poll, ptrdiff_t done, ptrdiff_t next) {
    volatile ptrdiff_t *end = &poll->end;
    if (team_rank() == 0 && microseconds() - poll->asked > POLL_EVERY) {
        if (RELAXED_LOAD(end) == PTRDIFF_MAX && poll->ask())
            RELAXED_STORE(end, poll->together ? next : 0);
        poll->asked = microseconds();
    }
    return done >= RELAXED_LOAD(end);
}

/* A thread of a long call has done its work. Rank 0 waits for the others and goes on polling. */
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
    (void)poll, (void)rank, (void)team; /* the end of the region waits, without polling */
}
#endif

/* Writes `wanted` if *value is *expected, else reads *value to *expected; nonzero: written. */
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

/* What all calls of the process share. It is counted without a lock, which would cost more. */
typedef struct {
    int leased;      /* threads that run calls, the callers' own among them */
    int processors;  /* how many threads can run at a time */
    int brief_calls; /* threads that want the GIL soon: of short calls, or at the end of any */
    size_t oversubscribed_at; /* when a call last began while `leased` was `processors` or more */
} thread_counts;

#define OVERSUBSCRIBED_FOR 50000 /* microseconds */

/* How long a call computes before it yields, in microseconds. Beside two long calls of 64 rows on
 * two processors, 99 of 100 short calls take at most 1.3 ms with 300, 2.3 with 600, 3.2 with 1000,
 * and 4.2 where long calls do not yield. But the sooner they yield, the less they get of the half
 * that would be theirs: half of it with 300, three quarters with 600, all of it with 1000. */
#define YIELD_AFTER 500.0

/* Threads that run calls now. */
static inline int leased_threads(const thread_counts *counts) {
    return RELAXED_LOAD((const volatile int *)&counts->leased);
}

static inline size_t clock_microseconds(void) { return (size_t)(unsigned long long)microseconds(); }

/* Takes up to `wanted` threads, the caller among them, so that no more than `limit` are leased;
 * returns how many these are. That is one at least: the caller's own thread is there already. */
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

/* Whether a call began while every processor had a thread, in the last 50 ms: then a team of
 * threads would share its processors with other calls, and be slower than one thread. */
static inline int oversubscribed(const thread_counts *counts) {
    return clock_microseconds() -
               RELAXED_LOAD((const volatile size_t *)&counts->oversubscribed_at) <
           OVERSUBSCRIBED_FOR;
}

/* Yields the processor, if the process has threads of other calls, a thread for each processor, and
 * short calls among these. A call that holds `granted` threads calls this between steps, from a
 * thread that meets no other. *since: when the thread yielded last; 0 at first. counts NULL: does
 * nothing.
 *
 * Otherwise the system leaves the processor to the long call for about 3 ms. A short call would
 * wait for that time whenever it wakes to ask for the GIL, only to find it taken again. Long calls
 * do not yield to each other: they would gain nothing, and lose time to other processes. */
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

/* level: 2 or 3. */
static inline long cache_bytes(int level) {
    long bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
    if (bytes <= 0) /* the system does not know */
        bytes = level == 2 ? 1L << 20 : 1L << 24;
    return bytes;
}

/* Memory for free_aligned; NULL if there is none. */
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

/* The next piece of a kernel's scratch. One function names the pieces of each kernel, with CARVE:
 * run on a 64-byte aligned `base`, it hands them out, each aligned so too; run on NULL, its pieces
 * are NULL, and `size` says how much memory they need. So what is asked for and what is used cannot
 * differ. */
static inline void *carve(char *base, size_t *size, size_t bytes) {
    char *piece = base ? base + *size : NULL;
    *size += (bytes + 63) / 64 * 64;
    return piece;
}
#define CARVE(piece, count) ((piece) = carve(base, &size, (size_t)(count) * sizeof *(piece)))

#endif
