// Nearest centroids of dense rows: lays the centroids out for the kernels and spreads the rows over threads.
#include <stdlib.h>

#include <atomic>

#include "assign_blocks.h"
#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"

int32_t mgqe_assign(const float* rows, const float* centroids, const float* bias, int64_t n, int64_t D, int64_t K,
                    int64_t s, int32_t* codes, int32_t threads) {
    if (n < 0 || D < 1 || K < 1 || s < 1) return MGQE_BAD_ARGUMENT;
    if (n == 0) return MGQE_OK;
    float* const memory = aligned_floats(D * lane_floats(K, s));
    mgqe_lanes* const lanes = static_cast<mgqe_lanes*>(malloc(static_cast<size_t>(D) * sizeof(mgqe_lanes)));
    if (!memory || !lanes) {
        free(lanes);
        free(memory);
        return MGQE_NO_MEMORY;
    }
    const mgqe_kernels& kernels = mgqe_active();
    mgqe_parallel(D, mgqe_team(D * K * s, 1 << 18, threads), [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j)
            lay_out(kernels, centroids + j * K * s, bias ? bias + j * K : nullptr, K, s, memory + j * lane_floats(K, s),
                    lanes[j]);
    });
    const int64_t blocks = (n + kTaskRows - 1) / kTaskRows;
    std::atomic<int32_t> status{MGQE_OK};
    // Tasks are (subspace, block of rows), subspaces outermost: a thread keeps one subspace's centroids in cache.
    mgqe_parallel(D * blocks, mgqe_team(n * D * K * s, 1 << 17, threads), [&](int64_t begin, int64_t end) {
        float* const scratch = aligned_floats(s * kAssignRows);
        if (!scratch) return status.store(MGQE_NO_MEMORY);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t j = task / blocks, first = task % blocks * kTaskRows;
            const int64_t count = n - first < kTaskRows ? n - first : kTaskRows;
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
    MixedLanes lanes;
    const int32_t fits = n < 0 ? MGQE_BAD_ARGUMENT : lanes.check(pieces, D, L, entries);
    if (fits != MGQE_OK || n == 0) return fits;
    const mgqe_kernels& kernels = mgqe_active();
    const int32_t ready = lanes.set(kernels, codebook);
    if (ready != MGQE_OK) return ready;
    const int64_t blocks = (n + kTaskRows - 1) / kTaskRows;
    std::atomic<int32_t> status{MGQE_OK};
    mgqe_parallel(blocks, mgqe_team(n * lanes.work(), 1 << 17, threads), [&](int64_t begin, int64_t end) {
        float* const room = aligned_floats(lanes.room());
        if (!room) return status.store(MGQE_NO_MEMORY);
        for (int64_t first = begin * kTaskRows; first < n && first < end * kTaskRows; first += kTaskRows)
            lanes.assign(kernels, coordinates + first * L, n - first < kTaskRows ? n - first : kTaskRows,
                         codes + first * D, room);
        free(room);
    });
    return status.load();
}
