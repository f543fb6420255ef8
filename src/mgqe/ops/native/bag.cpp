// Checks a pooled look-up, lays out codebooks for the registers, and spreads bags over threads by their ids.
#include <stdlib.h>

#include <atomic>

#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"
#include "table_checks.h"

namespace {

constexpr int64_t kIdsPerThread = 1024;
constexpr int64_t kBookRows = 256;
// A codebook that is no float32 (num_subspaces, 256, width) yet is copied into one when this many ids share the cost.
constexpr int64_t kIdsPerCopy = 2048;

bool offsets_in_order(const int64_t* offsets, int64_t bags, int64_t n) {
    if (bags == 0) return n == 0;
    if (offsets[0] != 0) return false;
    bool bad = offsets[bags - 1] > n;
    for (int64_t b = 1; b < bags; ++b) bad |= offsets[b] < offsets[b - 1];
    return !bad;
}

// The first bag of a thread's share: shares have about as many ids each, an empty bag counting as one.
int64_t first_bag(const int64_t* offsets, int64_t bags, int64_t share) {
    int64_t low = 0, high = bags;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (offsets[middle] + middle < share) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Codebooks as the registers want them, some of them copied.
struct Books {
    const float* of_tier[kMaxTiers];
    float* copies = nullptr;
    bool used = false;

    ~Books() { free(copies); }

    // Whether rows of all tiers have the same pieces, of widths that fill registers, and codes of at most a byte.
    static bool regular(const mgqe_table& table) {
        const mgqe_tier& first = table.tiers[0];
        if (first.layout) return false;
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            const bool pieces = tier.pieces == 1 || tier.pieces == tier.num_subspaces;
            if (!pieces || tier.num_subspaces != first.num_subspaces || tier.bits > 8) return false;
        }
        const int32_t width = first.width;
        return (width == 2 || width == 4 || width == 8 || width == 16) && first.num_subspaces % 4 == 0;
    }

    void prepare(const mgqe_table& table, const mgqe_kernels& kernels, int64_t n) {
        if (!regular(table)) return;
        int32_t same[kMaxTiers];
        int64_t needed = 0;
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            const bool ready = tier.dtype == MGQE_FLOAT32 && tier.pieces > 1 && tier.num_centroids == kBookRows;
            of_tier[g] = ready ? static_cast<const float*>(tier.centroids) : nullptr;
            for (same[g] = 0; table.tiers[same[g]].centroids != tier.centroids; ++same[g]) {
            }
            needed += !ready && same[g] == g;
        }
        if (needed) {
            const int64_t size = kBookRows * table.embedding_dim;
            if (n < needed * kIdsPerCopy) return;
            copies = static_cast<float*>(malloc(static_cast<size_t>(needed * size) * sizeof(float)));
            if (!copies) return;  // the other way needs less memory
            float* next = copies;
            for (int32_t g = 0; g < table.num_tiers; ++g) {
                if (of_tier[g]) continue;
                if (same[g] == g) {
                    kernels.bag_book(table.tiers[g], next);
                    of_tier[g] = next;
                    next += size;
                } else {
                    of_tier[g] = of_tier[same[g]];
                }
            }
        }
        used = true;
    }
};

}  // namespace

int32_t mgqe_bag(const mgqe_table* table, const int64_t* ids, int64_t n, const int64_t* offsets, int64_t bags,
                 int32_t mode, const float* weights, float* out, int32_t threads) {
    if (n < 0 || bags < 0 || mode < MGQE_SUM || mode > MGQE_MAX || !mgqe_well_formed(*table)) return MGQE_BAD_ARGUMENT;
    if (weights && mode != MGQE_SUM) return MGQE_BAD_ARGUMENT;
    if (offsets ? !offsets_in_order(offsets, bags, n) : bags ? n % bags != 0 : n != 0) return MGQE_BAD_OFFSETS;
    if (!ids_in_range(ids, n, table->num_embeddings)) return MGQE_OUT_OF_RANGE;
    if (bags == 0) return MGQE_OK;
    const mgqe_kernels& kernels = mgqe_active();
    Books books;
    books.prepare(*table, kernels, n);
    const mgqe_bags call = {ids, offsets, weights, out, books.used ? books.of_tier : nullptr, n, bags, mode};
    const int team = mgqe_team(n + bags, kIdsPerThread, threads);
    std::atomic<int32_t> status{MGQE_OK};
    mgqe_parallel(team, team, [&](int64_t begin, int64_t end) {
        // A share a thread: begin and end differ by one unless there is one thread, which takes them all.
        int64_t first = bags * begin / team, last = bags * end / team;
        if (offsets) {
            const int64_t work = n + bags;
            first = begin == 0 ? 0 : first_bag(offsets, bags, work * begin / team);
            last = end == team ? bags : first_bag(offsets, bags, work * end / team);
        }
        if (first >= last) return;
        const int32_t own = kernels.bag(*table, call, first, last);
        if (own != MGQE_OK) status.store(own, std::memory_order_relaxed);
    });
    return status.load();
}
