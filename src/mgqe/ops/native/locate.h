// From an id to its tier and its row there.
#ifndef MGQE_LOCATE_H
#define MGQE_LOCATE_H

#include <stdint.h>

#include "mgqe_native.h"

namespace {

struct Place {
    int64_t tier;
    int64_t rank;
};

// Set bits of a word. Plain x86-64 has no instruction for it, and the compiler's substitute is a slow call.
inline int64_t ones(uint64_t word) {
#if defined(__POPCNT__) || defined(__aarch64__)
    return __builtin_popcountll(word);
#endif
    word -= (word >> 1) & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + ((word >> 2) & 0x3333333333333333u);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return static_cast<int64_t>((word * 0x0101010101010101u) >> 56);
}

// Tiers from `first` on are ranges. Counted without a branch, which a mix of tiers would mispredict.
inline Place locate_range(const mgqe_table& table, int64_t id, int32_t first = 0) {
    int64_t tier = first;
    for (int32_t g = first + 1; g < table.num_tiers; ++g) tier += id >= table.starts[g];
    return {tier, id - table.starts[tier]};
}

// Row `rank` of a tier, in the one of its entries that has it, of which `first` is the first. Tier -1 where none has.
inline Place place_in(const mgqe_table& table, int64_t first, int64_t rank) {
    const mgqe_tier* tier = table.tiers + first;
    if (rank < 0) return {-1, 0};
    for (; rank >= tier->rows; ++tier) {
        if (!tier->following) return {-1, 0};
        rank -= tier->rows;
    }
    return {tier - table.tiers, rank};
}

// Ids in any order: each level's bit says whether the id belongs to that level's tier; its rank is the number of
// ones before it, or, if it goes on, its place among those that go on is the number of zeros before it. Ids that were
// appended after the map was made are in ranges. Tier -1 if the map is damaged and points to no row.
inline Place locate_map(const mgqe_table& table, int64_t id) {
    if (id >= table.mapped_ids) return locate_range(table, id, table.mapped_tiers);
    int64_t at = id, tier = table.last_tier;
    for (int32_t l = 0; l < table.num_levels; ++l) {
        const mgqe_level& level = table.levels[l];
        if (static_cast<uint64_t>(at) >= static_cast<uint64_t>(level.length)) return {-1, 0};
        int64_t rank = level.ranks[at >> 8];
        const int64_t last = at >> 6;
        for (int64_t word = at >> 8 << 2; word < last; ++word) rank += ones(level.bits[word]);
        const uint64_t word = level.bits[last];
        const int shift = static_cast<int>(at & 63);
        rank += ones(word & ((static_cast<uint64_t>(1) << shift) - 1));
        if ((word >> shift) & 1) {
            tier = level.tier;
            at = rank;
            break;
        }
        at -= rank;
    }
    if (static_cast<uint64_t>(at) < static_cast<uint64_t>(table.tiers[tier].rows)) return {tier, at};
    return place_in(table, tier, at);
}

inline Place locate(const mgqe_table& table, int64_t id) {
    return table.num_levels ? locate_map(table, id) : locate_range(table, id);
}

}  // namespace

#endif
