// Lays the centroids out for the kernels and spreads the rows over threads.
#include <stdlib.h>

#include <atomic>

#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"

namespace {

constexpr int64_t kPad = 16;
constexpr int64_t kRowBlock = 5 * kAssignRows;

}  // namespace

int32_t mgqe_assign(const float* rows, const float* centroids, const float* bias, int64_t n, int64_t D, int64_t K,
                    int64_t s, int32_t* codes, int32_t threads) {
    if (n < 0 || D < 1 || K < 1 || s < 1) return MGQE_BAD_ARGUMENT;
    if (n == 0) return MGQE_OK;
    const int64_t stride = (K + kPad - 1) / kPad * kPad;
    const int64_t shift_floats = (s + kPad - 1) / kPad * kPad;
    const int64_t per_subspace = stride * (s + 1) + shift_floats;
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<size_t>(D * per_subspace) * sizeof(float))) return MGQE_NO_MEMORY;
    mgqe_lanes* const lanes = static_cast<mgqe_lanes*>(malloc(static_cast<size_t>(D) * sizeof(mgqe_lanes)));
    if (!lanes) {
        free(memory);
        return MGQE_NO_MEMORY;
    }
    const mgqe_kernels& kernels = mgqe_active();
    mgqe_parallel(D, mgqe_team(D * K * s, 1 << 18, threads), [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
            float* const values = static_cast<float*>(memory) + j * per_subspace;
            float* const start = values + stride * s;
            lanes[j] = {values, start, centroids + j * K * s, bias ? bias + j * K : nullptr, start + stride, 0, 0, K,
                        stride, s};
            kernels.lay_out(lanes[j], values, start, start + stride);
        }
    });
    const int64_t blocks = (n + kRowBlock - 1) / kRowBlock;
    std::atomic<int32_t> status{MGQE_OK};
    // Tasks are (subspace, block of rows), subspaces outermost: a thread keeps one subspace's centroids in cache.
    mgqe_parallel(D * blocks, mgqe_team(n * D * K * s, 1 << 17, threads), [&](int64_t begin, int64_t end) {
        float* const scratch = static_cast<float*>(malloc(static_cast<size_t>(kAssignRows * s) * sizeof(float)));
        if (!scratch) return status.store(MGQE_NO_MEMORY);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t j = task / blocks;
            const int64_t first = task % blocks * kRowBlock;
            const int64_t count = n - first < kRowBlock ? n - first : kRowBlock;
            kernels.assign(lanes[j], rows + first * D * s + j * s, D * s, count, codes + first * D + j, D, scratch);
        }
        free(scratch);
    });
    free(lanes);
    free(memory);
    return status.load();
}

int32_t mgqe_assign_mixed(const float* coordinates, int64_t n, int64_t L, const float* codebook, int64_t entries,
                          const mgqe_piece* pieces, int64_t D, int32_t* codes, int32_t threads) {
    if (n < 0 || D < 1 || L < 1) return MGQE_BAD_ARGUMENT;
    int64_t floats = 0, work = 0, widest = 1;
    for (int64_t j = 0; j < D; ++j) {
        const mgqe_piece& piece = pieces[j];
        if (piece.bits < 0 || piece.bits > 16 || piece.width < 1 || piece.coordinate < 0 || piece.entry < 0)
            return MGQE_BAD_ARGUMENT;
        const int64_t K = static_cast<int64_t>(1) << piece.bits, s = piece.width;
        if (piece.coordinate + s > L || piece.entry + K * s > entries) return MGQE_BAD_ARGUMENT;
        floats += (K + kPad - 1) / kPad * kPad * (s + 1) + (s + kPad - 1) / kPad * kPad;
        work += K * s;
        widest = s > widest ? s : widest;
    }
    if (n == 0) return MGQE_OK;
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<size_t>(floats) * sizeof(float))) return MGQE_NO_MEMORY;
    mgqe_lanes* const lanes = static_cast<mgqe_lanes*>(malloc(static_cast<size_t>(D) * sizeof(mgqe_lanes)));
    if (!lanes) {
        free(memory);
        return MGQE_NO_MEMORY;
    }
    const mgqe_kernels& kernels = mgqe_active();
    float* values = static_cast<float*>(memory);
    for (int64_t j = 0; j < D; ++j) {
        const int64_t K = static_cast<int64_t>(1) << pieces[j].bits, s = pieces[j].width;
        const int64_t stride = (K + kPad - 1) / kPad * kPad;
        float* const start = values + stride * s;
        lanes[j] = {values, start, codebook + pieces[j].entry, nullptr, start + stride, 0, 0, K, stride, s};
        kernels.lay_out(lanes[j], values, start, start + stride);
        values = start + stride + (s + kPad - 1) / kPad * kPad;
    }
    const int64_t blocks = (n + kRowBlock - 1) / kRowBlock;
    std::atomic<int32_t> status{MGQE_OK};
    mgqe_parallel(D * blocks, mgqe_team(n * work, 1 << 17, threads), [&](int64_t begin, int64_t end) {
        float* const scratch = static_cast<float*>(malloc(static_cast<size_t>(kAssignRows * widest) * sizeof(float)));
        if (!scratch) return status.store(MGQE_NO_MEMORY);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t j = task / blocks, first = task % blocks * kRowBlock;
            const int64_t count = n - first < kRowBlock ? n - first : kRowBlock;
            int32_t* const to = codes + first * D + j;
            if (pieces[j].bits == 0)
                for (int64_t i = 0; i < count; ++i) to[i * D] = 0;
            else
                kernels.assign(lanes[j], coordinates + first * L + pieces[j].coordinate, L, count, to, D, scratch);
        }
        free(scratch);
    });
    free(lanes);
    free(memory);
    return status.load();
}
