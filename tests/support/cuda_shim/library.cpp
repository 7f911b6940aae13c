/* The functions of CUDA's driver and of cuBLAS that fastgru calls by address, on the host.
 *
 * Signatures, status numbers and their names are CUDA's; a CUfunction is a pointer to a Function
 * below, and a handle may be anything. A launch is done when it returns.
 */
#include "cuda_shim.h"

#include <stdint.h>

#include <string>

struct Function {
    const char *(*run)(const shim::Launch *launch); /* NAME_run of a kernel */
    int32_t schedule;                               /* as in shim::Launch */
    uint32_t threads;        /* in a block, instead of those asked for; 0: those */
    uint32_t blocks_at_once; /* that a cooperative launch may have */
    uint32_t shared_bytes;   /* that a block may have */
    uint32_t cooperative;    /* how often it was launched like that */
    uint32_t regions_count;
    shim::Region regions[24]; /* what blocks share and see late */
};

enum { INVALID_VALUE = 1, LAUNCH_FAILED = 719, COOPERATIVE_LAUNCH_TOO_LARGE = 720 };
enum { BLAS_INVALID_VALUE = 7, BLAS_EXECUTION_FAILED = 13, BLAS_NOT_SUPPORTED = 15 };

extern "C" {
unsigned shim_seed;      /* of the next launch, in schedules that are drawn */
unsigned shim_launches;  /* calls so far, */
unsigned shim_products;  /* and of cublasGemmEx */
unsigned shim_fail_at;   /* the call, launch or product, that fails instead; counted down to 0 */
const void *shim_stream; /* of the last launch */
const void *shim_handle; /* of the last product */
}
static std::string message;

/* What the last failed launch has to say. */
extern "C" const char *shim_message() { return message.c_str(); }

static bool to_fail() { return shim_fail_at && --shim_fail_at == 0; }

static int launch(Function *f, dim3 grid, dim3 block, unsigned shared_bytes, void *stream,
                  void **arguments, bool cooperative) {
    shim_launches++;
    shim_stream = stream;
    message = to_fail() ? "told to fail" : "";
    if (!message.empty())
        return LAUNCH_FAILED;
    if (cooperative && grid.x > f->blocks_at_once)
        return COOPERATIVE_LAUNCH_TOO_LARGE;
    if (!grid.x || grid.y != 1 || grid.z != 1 || !block.x || block.y != 1 || block.z != 1 ||
        shared_bytes > f->shared_bytes)
        return INVALID_VALUE;
    const shim::Launch how = {
        arguments,    f->regions,  f->regions_count, grid.x, f->threads ? f->threads : block.x,
        shared_bytes, f->schedule, shim_seed++};
    const char *error = f->run(&how);
    message = error ? error : "";
    return error ? LAUNCH_FAILED : 0;
}

extern "C" int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                              unsigned block_x, unsigned block_y, unsigned block_z,
                              unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    return extra ? INVALID_VALUE
                 : launch((Function *)function, {grid_x, grid_y, grid_z},
                          {block_x, block_y, block_z}, shared_bytes, stream, arguments, false);
}

extern "C" int cuLaunchCooperativeKernel(void *function, unsigned grid_x, unsigned grid_y,
                                         unsigned grid_z, unsigned block_x, unsigned block_y,
                                         unsigned block_z, unsigned shared_bytes, void *stream,
                                         void **arguments) {
    Function *f = (Function *)function;
    f->cooperative++;
    return launch(f, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream,
                  arguments, true);
}

extern "C" int cuGetErrorName(int status, const char **name) {
    *name = status == LAUNCH_FAILED                  ? "CUDA_ERROR_LAUNCH_FAILED"
            : status == INVALID_VALUE                ? "CUDA_ERROR_INVALID_VALUE"
            : status == COOPERATIVE_LAUNCH_TOO_LARGE ? "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"
                                                     : nullptr;
    return *name ? 0 : INVALID_VALUE;
}

extern "C" const char *cublasGetStatusName(int status) {
    return status == BLAS_INVALID_VALUE      ? "CUBLAS_STATUS_INVALID_VALUE"
           : status == BLAS_EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED"
           : status == BLAS_NOT_SUPPORTED    ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                             : nullptr;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

struct Bfloat16 {
    uint16_t bits;
    operator float() const { return float_of((uint32_t)bits << 16); }
};

/* A float of which cuBLAS may use 11 bits of significand. */
struct Tf32 {
    uint32_t bits;
    operator float() const { return float_of((bits + 0x1000) & 0xffffe000); }
};

/* C = alpha op(A) op(B) + beta C, columns first; C is not read where beta is 0. */
template <class V, class S>
static int gemm(int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a_at,
                int lda, const void *b_at, int ldb, const void *beta, void *c_at, int ldc) {
    const V *a = (const V *)a_at, *b = (const V *)b_at;
    const S factor = *(const S *)alpha, kept = *(const S *)beta;
    S *c = (S *)c_at;
    const size_t a_row = op_a ? lda : 1, a_column = op_a ? 1 : lda;
    const size_t b_row = op_b ? ldb : 1, b_column = op_b ? 1 : ldb;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            S sum = 0, *out = c + i + (size_t)ldc * j;
            for (int l = 0; l < k; l++)
                sum += (S)a[i * a_row + l * a_column] * (S)b[l * b_row + j * b_column];
            *out = factor * sum + (kept == 0 ? 0 : kept * *out);
        }
    return 0;
}

extern "C" int cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k,
                            const void *alpha, const void *a, int a_type, int lda, const void *b,
                            int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                            int compute_type, int algorithm) {
    enum { FLOAT, DOUBLE, HALF, BFLOAT16 = 14 };                      /* cudaDataType_t */
    enum { SUMS_FLOAT = 68, SUMS_DOUBLE = 70, SUMS_FLOAT_TF32 = 77 }; /* cublasComputeType_t */
    shim_products++;
    shim_handle = handle;
    if (to_fail())
        return BLAS_EXECUTION_FAILED;
    if (op_a < 0 || op_a > 1 || op_b < 0 || op_b > 1 || m <= 0 || n <= 0 || k <= 0 ||
        lda < (op_a ? k : m) || ldb < (op_b ? n : k) || ldc < m || !handle || algorithm != -1)
        return BLAS_INVALID_VALUE;
    const bool doubles = compute_type == SUMS_DOUBLE;
    if (a_type != b_type || c_type != (doubles ? DOUBLE : FLOAT) || (a_type == DOUBLE) != doubles ||
        (compute_type == SUMS_FLOAT_TF32 && a_type != FLOAT))
        return BLAS_NOT_SUPPORTED;
    if (!doubles && compute_type != SUMS_FLOAT && compute_type != SUMS_FLOAT_TF32)
        return BLAS_NOT_SUPPORTED;
    const auto multiply = a_type == DOUBLE                  ? gemm<double, double>
                          : a_type == HALF                  ? gemm<_Float16, float>
                          : a_type == BFLOAT16              ? gemm<Bfloat16, float>
                          : compute_type == SUMS_FLOAT_TF32 ? gemm<Tf32, float>
                                                            : gemm<float, float>;
    return multiply(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
