/* Fibers for CUDA threads: one at a time runs, until it waits or returns.
 *
 * Shared memory starts as NaN. A launch in which nobody can run any more gives an error that says
 * who waits where. What this does not show is the order in which other blocks see what one wrote:
 * here everybody sees everything at once.
 */
#include "cuda_shim.h"

#include <stdlib.h>
#include <ucontext.h>

#include <random>
#include <string>
#include <vector>

namespace shim {

constexpr size_t STACK = 128 << 10;
const char *const PLACES[] = {"can run", "wait at __syncthreads", "wait at a shuffle",
                              "wait at the grid barrier", "have returned"};

struct Fiber : Position {
    ucontext_t context;
    char *stack = nullptr;
    Place place = READY;
    double slot; /* what it gives to a shuffle */
};

Position *me;
unsigned blocks, threads;
static std::vector<Fiber> fibers;
static std::vector<std::vector<char>> shared_memory;
static std::vector<char *> stacks; /* free ones: a fiber has one from its start to its end */
static ucontext_t scheduler;
static void (*kernel)(void **);
static void **arguments;

void wait(Place place) {
    Fiber *fiber = static_cast<Fiber *>(me);
    fiber->place = place;
    swapcontext(&fiber->context, &scheduler);
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

static void resume(Fiber &fiber) {
    me = &fiber;
    if (!fiber.stack) {
        if (stacks.empty())
            stacks.push_back((char *)malloc(STACK));
        fiber.stack = stacks.back();
        stacks.pop_back();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, body, 0);
    }
    swapcontext(&scheduler, &fiber.context);
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

static bool release_all() {
    const size_t all = fibers.size();
    bool any = release(0, all, AT_GRID);
    for (size_t first = 0; first < all; first += threads) {
        const size_t end = first + threads;
        any |= release(first, end, AT_BLOCK);
        for (size_t i = first; i < end; i += WARP)
            any |= release(i, i + WARP < end ? i + WARP : end, AT_WARP);
    }
    return any;
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
                size_t shared_bytes, int schedule, unsigned seed) {
    static std::string error;
    error.clear();
    kernel = body_of, arguments = given, blocks = in_grid, threads = in_block;
    fibers = std::vector<Fiber>((size_t)blocks * threads);
    /* All bits set are a NaN in every format. */
    shared_memory.assign(blocks, std::vector<char>(shared_bytes, (char)0xff));
    std::vector<size_t> order(fibers.size());
    for (size_t i = 0; i < order.size(); i++) {
        order[i] = schedule == 1 ? order.size() - 1 - i : i;
        fibers[i].thread = {(unsigned)(i % threads), 0, 0};
        fibers[i].block = {(unsigned)(i / threads), 0, 0};
    }
    std::mt19937 random(seed);
    for (size_t done = 0; done < order.size() && error.empty();) {
        if (schedule == 2)
            for (size_t i = order.size() - 1; i > 0; i--)
                std::swap(order[i], order[random() % (i + 1)]);
        bool moved = false;
        for (size_t i : order) {
            if (fibers[i].place != READY)
                continue;
            resume(fibers[i]);
            moved = true;
            done += fibers[i].place == DONE;
        }
        if (!release_all() && !moved)
            error = deadlock();
    }
    for (Fiber &fiber : fibers) /* after a deadlock they are left where they wait */
        if (fiber.stack && fiber.place != DONE)
            stacks.push_back(fiber.stack);
    return error.empty() ? nullptr : error.c_str();
}

} // namespace shim
