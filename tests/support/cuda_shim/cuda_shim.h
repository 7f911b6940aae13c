/* CUDA as plain C++: enough of it to run the kernels of fastgru/_cuda on the host.
 *
 * scheduler.cpp runs every CUDA thread as a fiber, all blocks resident. The kernels' text keeps to
 * this: shared memory by SHARED, waiting for a counter by `counted`, shuffles of whole warps, and
 * inline assembly only where EMULATED is not defined.
 */
#include <math.h>
#include <string.h>

#include <utility>

#define EMULATED 1
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __restrict__

struct dim3 {
    unsigned x, y, z;
};

namespace shim {

enum Place { READY, AT_BLOCK, AT_WARP, AT_COUNTER, DONE };
constexpr unsigned WARP = 32;

struct Position {
    dim3 thread, block;
};
extern Position *me;             /* of the fiber that runs */
extern unsigned blocks, threads; /* of the launch: in the grid, in a block */

void wait(Place place);                       /* until the whole block or warp is there */
double exchange(double value, unsigned lane); /* what that lane of the warp gives */
char *shared();                               /* this block's dynamic shared memory */
void fence();                                 /* tell other blocks, and hear from them */
unsigned add(unsigned *at, unsigned value);   /* for all blocks at once; the sum before */
unsigned counted(const unsigned *at);         /* that sum; asked again, once it has changed */

/* Memory that blocks share: what one writes others see after a fence of its and of their own. */
struct Region {
    char *memory;
    size_t bytes;
};

struct Launch {
    void **arguments; /* each points to a value */
    Region *regions;
    unsigned regions_count, blocks, threads;
    size_t shared_bytes;
    int schedule; /* who runs next: 0 in order, 1 in reverse, 2 drawn from the seed */
    unsigned seed;
};

/* Runs a kernel; returns NULL or what went wrong. */
const char *run(void (*kernel)(void **), const Launch &launch);

template <class... A, size_t... N>
void spread(void (*kernel)(A...), void **arguments, std::index_sequence<N...>) {
    kernel(*(A *)arguments[N]...);
}
template <class... A> void call(void (*kernel)(A...), void **arguments) {
    spread(kernel, arguments, std::index_sequence_for<A...>());
}
template <class... A> int count(void (*)(A...)) { return sizeof...(A); }

} // namespace shim

#define threadIdx (shim::me->thread)
#define blockIdx (shim::me->block)
#define blockDim (dim3{shim::threads, 1, 1})
#define gridDim (dim3{shim::blocks, 1, 1})
#define SHARED(type, name) type *name = (type *)shim::shared()

inline void __syncthreads() { shim::wait(shim::AT_BLOCK); }
inline void __threadfence() { shim::fence(); }
inline unsigned atomicAdd(unsigned *at, unsigned value) { return shim::add(at, value); }
using shim::counted;
/* Doubles hold every float exactly. */
template <class V> V __shfl_xor_sync(unsigned, V value, unsigned mask) {
    return (V)shim::exchange((double)value, threadIdx.x % shim::WARP ^ mask);
}

inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof bits);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float half_to_float(unsigned short bits) {
    _Float16 value;
    memcpy(&value, &bits, sizeof bits);
    return value;
}
inline unsigned short float_to_half(float value) {
    const _Float16 half = (_Float16)value;
    unsigned short bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

/* NAME_run is shim::run of the kernel; NAME_arguments counts what it takes. */
#define EXPORT(NAME)                                                                               \
    extern "C" int NAME##_arguments() { return shim::count(NAME); }                                \
    extern "C" const char *NAME##_run(const shim::Launch *launch) {                                \
        return shim::run([](void **given) { shim::call(NAME, given); }, *launch);                  \
    }
