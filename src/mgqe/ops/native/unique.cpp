// Distinct ids in order of first appearance, all together or by tier.
#include <stdlib.h>

#include "mgqe_native.h"

namespace {

// A position a possible id is cheaper than hashing while the array is not much larger than the batch.
constexpr int64_t kMarkPerId = 8;
constexpr int64_t kMarkAlways = 1 << 16;

struct Output {
    int64_t* uniq;
    int64_t* inverse;
    int64_t* counts;
    int64_t found;
};

// Books ids[i], whose slot holds 1 + its place among the distinct ids, or 0 if it is new.
inline void book(Output& out, int64_t i, int64_t id, uint32_t& slot) {
    if (slot == 0) {
        out.uniq[out.found] = id;
        out.counts[out.found] = 0;
        slot = static_cast<uint32_t>(++out.found);
    }
    const int64_t place = static_cast<int64_t>(slot) - 1;
    out.inverse[i] = place;
    ++out.counts[place];
}

bool by_marks(const int64_t* ids, int64_t n, int64_t num_embeddings, Output& out) {
    uint32_t* marks = static_cast<uint32_t*>(calloc(static_cast<size_t>(num_embeddings), sizeof(uint32_t)));
    if (!marks) return false;
    for (int64_t i = 0; i < n; ++i) book(out, i, ids[i], marks[ids[i]]);
    free(marks);
    return true;
}

bool by_hash(const int64_t* ids, int64_t n, Output& out) {
    int bits = 4;
    while ((static_cast<int64_t>(1) << bits) < 2 * n) ++bits;
    const uint64_t mask = (static_cast<uint64_t>(1) << bits) - 1;
    uint32_t* slots = static_cast<uint32_t*>(calloc(static_cast<size_t>(mask) + 1, sizeof(uint32_t)));
    if (!slots) return false;
    for (int64_t i = 0; i < n; ++i) {
        // Fibonacci hashing: consecutive ids spread over the table.
        uint64_t at = (static_cast<uint64_t>(ids[i]) * 0x9E3779B97F4A7C15u) >> (64 - bits);
        while (slots[at] != 0 && out.uniq[slots[at] - 1] != ids[i]) at = (at + 1) & mask;
        book(out, i, ids[i], slots[at]);
    }
    free(slots);
    return true;
}

// The tier of an id: given one by one, or by where each tier's ids start.
inline int64_t tier_of_id(int64_t id, const uint8_t* tier_of, const int64_t* starts, int64_t num_tiers) {
    if (tier_of) return tier_of[id];
    int64_t tier = 0;
    while (tier + 1 < num_tiers && id >= starts[tier + 1]) ++tier;
    return tier;
}

}  // namespace

int32_t mgqe_unique(const int64_t* ids, int64_t n, int64_t num_embeddings, int64_t* uniq, int64_t* inverse,
                    int64_t* counts, int64_t* found) {
    if (n < 0 || n >= UINT32_MAX || num_embeddings < 0) return MGQE_BAD_ARGUMENT;
    for (int64_t i = 0; i < n; ++i)
        if (static_cast<uint64_t>(ids[i]) >= static_cast<uint64_t>(num_embeddings)) {
            *found = i;
            return MGQE_OUT_OF_RANGE;
        }
    Output out = {uniq, inverse, counts, 0};
    const bool marks = num_embeddings <= kMarkAlways || num_embeddings / kMarkPerId <= n;
    const bool done = n == 0 || (marks ? by_marks(ids, n, num_embeddings, out) : by_hash(ids, n, out));
    if (!done) return MGQE_NO_MEMORY;
    *found = out.found;
    return MGQE_OK;
}

int32_t mgqe_unique_by_tier(const int64_t* ids, int64_t n, const uint8_t* tier_of, const int64_t* starts,
                            int64_t num_tiers, int64_t* uniq, int64_t* inverse, int64_t* counts, int64_t* sizes) {
    if (num_tiers < 1) return MGQE_BAD_ARGUMENT;
    int64_t found = 0;
    const int32_t status = mgqe_unique(ids, n, starts[num_tiers], uniq, inverse, counts, &found);
    if (status != MGQE_OK) return status;
    for (int64_t tier = 0; tier < num_tiers; ++tier) sizes[tier] = 0;
    if (found == 0) return MGQE_OK;
    // Of each distinct id: itself, its count, its place.
    int64_t* const scratch = static_cast<int64_t*>(malloc(static_cast<size_t>(found) * 3 * sizeof(int64_t)));
    int64_t* const next = static_cast<int64_t*>(malloc(static_cast<size_t>(num_tiers) * sizeof(int64_t)));
    int32_t result = scratch && next ? MGQE_OK : MGQE_NO_MEMORY;
    int64_t* const place = scratch ? scratch + 2 * found : nullptr;
    for (int64_t i = 0; result == MGQE_OK && i < found; ++i) {
        const int64_t tier = tier_of_id(uniq[i], tier_of, starts, num_tiers);
        if (tier >= num_tiers) result = MGQE_BAD_ARGUMENT;
        else ++sizes[place[i] = tier];
    }
    if (result == MGQE_OK) {
        int64_t at = 0;
        for (int64_t tier = 0; tier < num_tiers; at += sizes[tier++]) next[tier] = at;
        for (int64_t i = 0; i < found; ++i) {
            scratch[i] = uniq[i];
            scratch[found + i] = counts[i];
            place[i] = next[place[i]]++;
        }
        for (int64_t i = 0; i < found; ++i) {
            uniq[place[i]] = scratch[i];
            counts[place[i]] = scratch[found + i];
        }
        for (int64_t i = 0; i < n; ++i) inverse[i] = place[inverse[i]];
    }
    free(scratch);
    free(next);
    return result;
}
