// Lays the centroids out for the kernels and spreads the rows over threads.
#include <math.h>
#include <stdlib.h>

#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"

namespace {

constexpr int64_t kPad = 16;
constexpr int64_t kRowBlock = 256;

// (K, s) -> (s, stride), with the default bias 0.5 * ||c||^2 accumulated over s in order, as the twin does.
void transpose(const float* centroids, const float* bias, int64_t K, int64_t s, int64_t stride, float* values,
               float* lane_bias) {
    for (int64_t k = 0; k < K; ++k) {
        float norm = 0.0f;
        for (int64_t t = 0; t < s; ++t) {
            const float c = centroids[k * s + t];
            values[t * stride + k] = c;
            norm += c * c;
        }
        lane_bias[k] = bias ? bias[k] : 0.5f * norm;
    }
    for (int64_t k = K; k < stride; ++k) {
        for (int64_t t = 0; t < s; ++t) values[t * stride + k] = 0.0f;
        lane_bias[k] = NAN;
    }
}

}  // namespace

int32_t mgqe_assign(const float* rows, const float* centroids, const float* bias, int64_t n, int64_t D, int64_t K,
                    int64_t s, int32_t* codes, int32_t threads) {
    if (n < 0 || D < 1 || K < 1 || s < 1) return MGQE_BAD_ARGUMENT;
    if (n == 0) return MGQE_OK;
    const int64_t stride = (K + kPad - 1) / kPad * kPad;
    const int64_t per_subspace = stride * (s + 1);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<size_t>(D * per_subspace) * sizeof(float))) return MGQE_NO_MEMORY;
    float* const lanes = static_cast<float*>(memory);

    mgqe_parallel(D, mgqe_team(D * K * s, 1 << 18, threads), [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
            float* const own = lanes + j * per_subspace;
            transpose(centroids + j * K * s, bias ? bias + j * K : nullptr, K, s, stride, own, own + stride * s);
        }
    });
    const mgqe_kernels& kernels = mgqe_active();
    const int64_t blocks = (n + kRowBlock - 1) / kRowBlock;
    // Tasks are (subspace, block of rows), subspaces outermost: a thread keeps one subspace's centroids in cache.
    mgqe_parallel(D * blocks, mgqe_team(n * D * K * s, 1 << 17, threads), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t j = task / blocks;
            const int64_t start = task % blocks * kRowBlock;
            const int64_t count = n - start < kRowBlock ? n - start : kRowBlock;
            const float* const own = lanes + j * per_subspace;
            const mgqe_lanes view = {own, own + stride * s, K, stride, s};
            kernels.assign(view, rows + start * D * s + j * s, D * s, count, codes + start * D + j, D);
        }
    });
    free(memory);
    return MGQE_OK;
}
