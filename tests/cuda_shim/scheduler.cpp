/* Fibers for CUDA threads: one at a time runs, until it waits or returns.
 *
 * Shared memory starts as NaN. A launch in which nobody can run any more gives an error that says
 * who waits where. What this does not show is the order in which other blocks see what one wrote:
 * here everybody sees everything at once.
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
                              "wait at the grid barrier", "have returned"};

struct Fiber : Position {
    jmp_buf context; /* swapcontext would ask the kernel for the signal mask at every switch */
    char *stack = nullptr;
    Place place = READY;
    double slot; /* what it gives to a shuffle */
};

Position *me;
unsigned blocks, threads;
static std::vector<Fiber> fibers;
static std::vector<std::vector<char>> shared_memory;
static std::vector<char *> stacks; /* free ones: a fiber has one from its start to its end */
static jmp_buf scheduler;
static void (*kernel)(void **);
static void **arguments;

void wait(Place place) {
    Fiber *fiber = static_cast<Fiber *>(me);
    fiber->place = place;
    if (!_setjmp(fiber->context))
        _longjmp(scheduler, 1);
}

double exchange(double value, unsigned lane) {
    Fiber *fiber = static_cast<Fiber *>(me);
    if (threads % WARP || lane >= WARP)
        abort(); /* shuffles are for whole warps */
    fiber->slot = value;
    wait(AT_WARP);
    const double got = (fiber - fiber->thread.x % WARP + lane)->slot;
    wait(AT_WARP); /* nobody gives again before all have read */
    return got;
}

char *shared() { return shared_memory[me->block.x].data(); }

static void body() {
    kernel(arguments);
    wait(DONE);
}

static void start(Fiber &fiber) {
    if (stacks.empty())
        stacks.push_back((char *)malloc(STACK));
    fiber.stack = stacks.back();
    stacks.pop_back();
    ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = fiber.stack;
    first.uc_stack.ss_size = STACK;
    first.uc_link = nullptr;
    makecontext(&first, body, 0);
    setcontext(&first);
}

static void resume(Fiber &fiber) {
    me = &fiber;
    if (!_setjmp(scheduler)) {
        if (fiber.stack)
            _longjmp(fiber.context, 1);
        start(fiber);
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

/* Of a range of things: in order, in reverse or shuffled; and how often each goes on before the
 * next does, as long as it can or a few times. Who runs ahead meets what others have not done. */
struct Schedule {
    int kind;
    std::mt19937 random;
    template <class F> void each(size_t first, size_t end, size_t step, F visit) {
        std::vector<size_t> order;
        for (size_t i = first; i < end; i += step)
            order.push_back(i);
        if (kind == 1)
            std::reverse(order.begin(), order.end());
        if (kind == 2)
            std::shuffle(order.begin(), order.end(), random);
        for (size_t i : order)
            visit(i);
    }
    size_t turns() { return kind == 2 ? 1 + random() % 8 : SIZE_MAX; }
};

/* These say whether anything has happened. */
static bool advance_warp(Schedule &schedule, size_t first, size_t end) {
    bool moved = false;
    schedule.each(first, end, 1, [&](size_t i) {
        if (fibers[i].place == READY) {
            resume(fibers[i]);
            moved = true;
        }
    });
    return release(first, end, AT_WARP) || moved;
}

static bool advance_block(Schedule &schedule, size_t first) {
    const size_t end = first + threads;
    bool moved = false;
    schedule.each(first, end, WARP, [&](size_t i) {
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
    schedule.each(0, fibers.size(), threads, [&](size_t i) {
        for (size_t turns = schedule.turns(); turns > 0; turns--) {
            if (!advance_block(schedule, i))
                return;
            moved = true;
        }
    });
    return release(0, fibers.size(), AT_GRID) || moved;
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

const char *run(void (*body_of)(void **), void **given, unsigned in_grid, unsigned in_block,
                size_t shared_bytes, int kind, unsigned seed) {
    static std::string error;
    error.clear();
    kernel = body_of, arguments = given, blocks = in_grid, threads = in_block;
    fibers = std::vector<Fiber>((size_t)blocks * threads);
    /* All bits set are a NaN in every format. */
    shared_memory.assign(blocks, std::vector<char>(shared_bytes, (char)0xff));
    for (size_t i = 0; i < fibers.size(); i++) {
        fibers[i].thread = {(unsigned)(i % threads), 0, 0};
        fibers[i].block = {(unsigned)(i / threads), 0, 0};
    }
    Schedule schedule{kind, std::mt19937(seed)};
    while (!all_done())
        if (!advance_grid(schedule)) {
            error = deadlock();
            break;
        }
    for (Fiber &fiber : fibers) /* after a deadlock they are left where they wait */
        if (fiber.stack && fiber.place != DONE)
            stacks.push_back(fiber.stack);
    return error.empty() ? nullptr : error.c_str();
}

} // namespace shim
