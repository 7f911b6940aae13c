/* malloc and its like, failing when told to; preloaded by test_allocation.py. glibc only.
 *
 * fail_allocations(n, least, all): from now on the n-th allocation of at least `least` bytes fails,
 *                                  and with `all` every later one; n = 0: none
 * allocations_seen()               how many there were since
 */
#include <errno.h>
#include <stddef.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static long failing, seen;
static size_t smallest;
static int from_then_on;

void fail_allocations(long n, size_t least, int all) {
    failing = n;
    smallest = least;
    from_then_on = all;
    __atomic_store_n(&seen, 0, __ATOMIC_SEQ_CST);
}

long allocations_seen(void) { return seen; }

static int fails(size_t bytes) {
    if (bytes < smallest)
        return 0;
    const long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (!failing || (from_then_on ? number < failing : number != failing))
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t bytes) { return fails(bytes) ? NULL : __libc_malloc(bytes); }

void *calloc(size_t count, size_t bytes) {
    return fails(count * bytes) ? NULL : __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes) { return fails(bytes) ? NULL : __libc_realloc(old, bytes); }

void *memalign(size_t alignment, size_t bytes) {
    return fails(bytes) ? NULL : __libc_memalign(alignment, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    void *found = memalign(alignment, bytes);
    if (!found)
        return ENOMEM;
    *memory = found;
    return 0;
}
