/* Fibers for CUDA threads: one at a time runs, until it waits or returns.
 *
 * Shared memory starts as NaN. Of memory that blocks share, each sees its own writes, and those of
 * others only after a fence of theirs and then one of its own, as late as CUDA allows. A launch in
 * which nobody can run any more gives an error that says who waits where.
 */
#include "cuda_shim.h"

#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace shim {

constexpr size_t STACK = 128 << 10;
const char *const PLACES[] = {"can run", "wait at __syncthreads", "wait at a shuffle",
                              "wait for a counter", "have returned"};

/* A fiber has one from its start to its end; then another goes on in the same loop in body(). */
struct Stack {
    char *memory;
    bool looping;    /* context is in that loop */
    jmp_buf context; /* swapcontext would ask the kernel for the signal mask at every switch */
};

struct Fiber : Position {
    Stack *stack = nullptr;
    Place place = READY;
    double slots[2]; /* what it gives to this shuffle and the next: who is ahead is at most one */
    bool odd = false;
    const unsigned *counter = nullptr; /* what it saw last of it */
    unsigned seen;
};

Position *me;
unsigned blocks, threads;
static std::vector<Fiber> fibers;
static std::vector<std::vector<char>> shared_memory;
static std::vector<Stack *> stacks; /* free ones */
static jmp_buf scheduler;
static void (*kernel)(void **);
static void **arguments;

static Fiber *running() { return static_cast<Fiber *>(me); }

void wait(Place place) {
    Fiber *fiber = running();
    fiber->place = place;
    if (!_setjmp(fiber->stack->context))
        _longjmp(scheduler, 1);
}

double exchange(double value, unsigned lane) {
    Fiber *fiber = running();
    if (threads % WARP || lane >= WARP)
        abort(); /* shuffles are for whole warps */
    const bool slot = fiber->odd;
    fiber->odd = !slot;
    fiber->slots[slot] = value;
    wait(AT_WARP);
    return (fiber - fiber->thread.x % WARP + lane)->slots[slot];
}

char *shared() { return shared_memory[me->block.x].data(); }

/* ---- memory that blocks share ---------------------------------------------------------------- */

/* While a block runs its view is in `memory`; base: its view at the last fence. */
struct Shared : Region {
    std::vector<char> all;
    std::vector<std::vector<char>> views, bases;
};
static std::vector<Shared> regions;

static void share(const Region *given, unsigned count) {
    regions.clear();
    for (unsigned i = 0; i < count; i++) {
        const std::vector<char> first(given[i].memory, given[i].memory + given[i].bytes);
        const std::vector<std::vector<char>> each(blocks, first);
        regions.push_back({given[i], first, each, each});
    }
}

static void enter(unsigned block) {
    for (Shared &r : regions)
        memcpy(r.memory, r.views[block].data(), r.bytes);
}
static void leave(unsigned block) {
    for (Shared &r : regions)
        memcpy(r.views[block].data(), r.memory, r.bytes);
}

static void exchange_writes(unsigned block) {
    for (Shared &r : regions) {
        char *all = r.all.data(), *base = r.bases[block].data();
        for (size_t i = 0; i < r.bytes; i++)
            all[i] = r.memory[i] != base[i] ? r.memory[i] : all[i];
        memcpy(r.memory, all, r.bytes);
        memcpy(base, all, r.bytes);
    }
}
void fence() { exchange_writes(me->block.x); }

static unsigned *for_all(const unsigned *at) {
    for (Shared &r : regions)
        if (r.memory <= (char *)at && (char *)at < r.memory + r.bytes)
            return (unsigned *)(r.all.data() + ((char *)at - r.memory));
    return const_cast<unsigned *>(at);
}
unsigned add(unsigned *at, unsigned value) {
    const unsigned before = *for_all(at);
    *for_all(at) += value;
    return before;
}
unsigned counted(const unsigned *at) {
    Fiber *fiber = running();
    if (fiber->counter == at)
        wait(AT_COUNTER);
    fiber->counter = at;
    return fiber->seen = *for_all(at);
}

/* ---- scheduling ------------------------------------------------------------------------------ */

static void body() {
    for (;;) {
        kernel(arguments);
        wait(DONE);
    }
}

static void start(Stack *stack) {
    stack->looping = true;
    ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = stack->memory;
    first.uc_stack.ss_size = STACK;
    first.uc_link = nullptr;
    makecontext(&first, body, 0);
    setcontext(&first);
}

static void resume(Fiber &fiber) {
    me = &fiber;
    if (!fiber.stack) {
        if (stacks.empty())
            stacks.push_back(new Stack{(char *)malloc(STACK), false, {}});
        fiber.stack = stacks.back();
        stacks.pop_back();
    }
    if (!_setjmp(scheduler)) {
        if (fiber.stack->looping)
            _longjmp(fiber.stack->context, 1);
        start(fiber.stack);
    }
    if (fiber.place == DONE)
        stacks.push_back(fiber.stack);
}

/* Let a group go on once all of it wait at the same place; who has returned never comes. */
static bool release(size_t first, size_t end, Place place) {
    for (size_t i = first; i < end; i++)
        if (fibers[i].place != place)
            return false;
    for (size_t i = first; i < end; i++)
        fibers[i].place = READY;
    return true;
}

static bool can_run(const Fiber &fiber) {
    return fiber.place == READY ||
           (fiber.place == AT_COUNTER && *for_all(fiber.counter) != fiber.seen);
}

/* Of a range of things: in order, in reverse or shuffled; and how often each goes on before the
 * next does, as long as it can or a few times. Who runs ahead meets what others have not done. */
struct Schedule {
    int kind;
    std::mt19937 random;
    std::vector<size_t> orders[3]; /* of blocks, of warps, of threads */
    template <class F> void each(int level, size_t first, size_t end, size_t step, F visit) {
        if (kind == 0) {
            for (size_t i = first; i < end; i += step)
                visit(i);
            return;
        }
        std::vector<size_t> &order = orders[level];
        order.clear();
        for (size_t i = first; i < end; i += step)
            order.push_back(i);
        if (kind == 1)
            std::reverse(order.begin(), order.end());
        else
            std::shuffle(order.begin(), order.end(), random);
        for (size_t i : order)
            visit(i);
    }
    size_t turns() { return kind == 2 ? 1 + random() % 8 : SIZE_MAX; }
};

/* These say whether anything has happened. */
static bool advance_warp(Schedule &schedule, size_t first, size_t end) {
    bool moved = false;
    schedule.each(2, first, end, 1, [&](size_t i) {
        if (can_run(fibers[i])) {
            resume(fibers[i]);
            moved = true;
        }
    });
    return release(first, end, AT_WARP) || moved;
}

static bool advance_block(Schedule &schedule, size_t first) {
    const size_t end = first + threads;
    bool moved = false;
    schedule.each(1, first, end, WARP, [&](size_t i) {
        for (size_t turns = schedule.turns(); turns > 0; turns--) {
            if (!advance_warp(schedule, i, i + WARP < end ? i + WARP : end))
                return;
            moved = true;
        }
    });
    return release(first, end, AT_BLOCK) || moved;
}

static bool advance_grid(Schedule &schedule) {
    bool moved = false;
    schedule.each(0, 0, fibers.size(), threads, [&](size_t i) {
        enter(i / threads);
        for (size_t turns = schedule.turns(); turns > 0; turns--) {
            if (!advance_block(schedule, i))
                break;
            moved = true;
        }
        leave(i / threads);
    });
    return moved;
}

static bool all_done() {
    for (const Fiber &fiber : fibers)
        if (fiber.place != DONE)
            return false;
    return true;
}

static std::string deadlock() {
    std::string text = "deadlock:";
    for (unsigned b = 0; b < blocks; b++) {
        unsigned counts[DONE + 1] = {};
        for (unsigned i = 0; i < threads; i++)
            counts[fibers[b * threads + i].place]++;
        if (counts[DONE] == threads)
            continue;
        text += " block " + std::to_string(b) + ":";
        for (int place = 0; place <= DONE; place++)
            if (counts[place])
                text += " " + std::to_string(counts[place]) + " threads " + PLACES[place] + ";";
    }
    return text;
}

const char *run(void (*body_of)(void **), const Launch &launch) {
    static std::string error;
    error.clear();
    kernel = body_of, arguments = launch.arguments;
    blocks = launch.blocks, threads = launch.threads;
    fibers.assign((size_t)blocks * threads, Fiber());
    /* All bits set are a NaN in every format. */
    shared_memory.assign(blocks, std::vector<char>(launch.shared_bytes, (char)0xff));
    for (size_t i = 0; i < fibers.size(); i++) {
        fibers[i].thread = {(unsigned)(i % threads), 0, 0};
        fibers[i].block = {(unsigned)(i / threads), 0, 0};
    }
    share(launch.regions, launch.regions_count);
    Schedule schedule{launch.schedule, std::mt19937(launch.seed), {}};
    while (!all_done())
        if (!advance_grid(schedule)) {
            error = deadlock();
            break;
        }
    for (unsigned b = 0; b < blocks; b++) { /* a launch ends with a fence of everybody */
        enter(b);
        exchange_writes(b);
    }
    for (Fiber &fiber : fibers)
        if (fiber.stack && fiber.place != DONE) { /* after a deadlock: what it did is given up */
            fiber.stack->looping = false;
            stacks.push_back(fiber.stack);
        }
    return error.empty() ? nullptr : error.c_str();
}

} // namespace shim
