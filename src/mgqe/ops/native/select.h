// From a tier and a row there back to the id: the inverse of locate.h.
#ifndef MGQE_SELECT_H
#define MGQE_SELECT_H

#include <stdint.h>

#include "isa.h"
#include "locate.h"
#include "mgqe_native.h"

namespace {

// Where set bit number `nth` (from 0) of a word is, which has more than that.
inline int64_t nth_one(uint64_t word, int64_t nth) {
    for (; nth > 0; --nth) word &= word - 1;
    return __builtin_ctzll(word);
}

// The index of one number `nth` of a level, or of its zero number `nth`; -1 if the map is damaged and has none.
inline int64_t select_bit(const mgqe_level& level, int64_t nth, bool one) {
    const int64_t blocks = (level.length + 255) / 256;
    if (blocks == 0 || nth < 0) return -1;
    int64_t low = 0, high = blocks;  // the last block with at most nth before it
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        const int64_t before = one ? level.ranks[middle] : 256 * middle - level.ranks[middle];
        if (before <= nth)
            low = middle;
        else
            high = middle;
    }
    nth -= one ? level.ranks[low] : 256 * low - level.ranks[low];
    if (nth < 0) return -1;
    for (int64_t word = 4 * low; word < 4 * low + 4; ++word) {
        const uint64_t bits = one ? level.bits[word] : ~level.bits[word];
        const int64_t here = ones(bits);
        if (nth < here) {
            const int64_t at = 64 * word + nth_one(bits, nth);
            return at < level.length ? at : -1;
        }
        nth -= here;
    }
    return -1;
}

// The first entry of a tier of the tier map, and how many rows of the tier come before those of entry `tier`.
inline Place first_entry(const mgqe_table& table, int64_t tier) {
    const int64_t first = tier - table.tiers[tier].preceding;
    return {first, table.starts[tier] - table.starts[first]};
}

// The id in row `rank` of a tier; -1 if the tier map is damaged and sends none there.
inline int64_t id_at(const mgqe_table& table, int64_t tier, int64_t rank) {
    if (tier >= table.mapped_tiers) return table.starts[tier] + rank;
    const Place first = first_entry(table, tier);
    int32_t l = 0;
    while (l < table.num_levels && table.levels[l].tier != first.tier) ++l;
    int64_t at = rank + first.rank;
    if (l < table.num_levels) at = select_bit(table.levels[l], at, true);
    while (--l >= 0) at = select_bit(table.levels[l], at, false);
    return at;
}

// How many rows of a tier have ids below `id`.
inline int64_t rows_below(const mgqe_table& table, int64_t tier, int64_t id) {
    const int64_t rows = table.tiers[tier].rows;
    if (tier >= table.mapped_tiers) {
        const int64_t below = id - table.starts[tier];
        return below < 0 ? 0 : below < rows ? below : rows;
    }
    if (id >= table.mapped_ids) return rows;
    const Place first = first_entry(table, tier);
    const auto in_entry = [&](int64_t of_tier) {
        const int64_t below = of_tier - first.rank;
        return below < 0 ? 0 : below < rows ? below : rows;
    };
    int64_t at = id;
    for (int32_t l = 0; l < table.num_levels; ++l) {
        const mgqe_level& level = table.levels[l];
        int64_t before = table.starts[level.tier + table.tiers[level.tier].following + 1] - table.starts[level.tier];
        if (static_cast<uint64_t>(at) < static_cast<uint64_t>(level.length)) {
            before = level.ranks[at >> 8];
            for (int64_t word = at >> 8 << 2; word < at >> 6; ++word) before += ones(level.bits[word]);
            before += ones(level.bits[at >> 6] & ((static_cast<uint64_t>(1) << (at & 63)) - 1));
        }
        if (level.tier == first.tier) return in_entry(before);
        at -= before;
    }
    return in_entry(at);
}

// All ids in ascending order, each with its tier and row there: much cheaper than to locate one after another.
class Walk {
public:
    explicit Walk(const mgqe_table& of) : table(of), at(), entry(), rows() {}

    Place next() {
        if (id >= table.mapped_ids) return locate_range(table, id++, table.mapped_tiers);
        ++id;
        for (int32_t l = 0; l < table.num_levels; ++l) {
            const mgqe_level& level = table.levels[l];
            const int64_t i = at[l]++;
            if (i >= level.length) return {-1, 0};  // a damaged map
            if ((level.bits[i >> 6] >> (i & 63)) & 1) return row_of(level.tier);
        }
        return row_of(table.last_tier);
    }

private:
    // The next row of a tier, by its first entry.
    Place row_of(int64_t first) {
        const mgqe_tier* tier = table.tiers + first + entry[first];
        while (tier->following && rows[first] >= tier->rows) {
            rows[first] = 0;
            ++entry[first], ++tier;
        }
        return {first + entry[first], rows[first]++};
    }

    const mgqe_table& table;
    int64_t id = 0;
    int64_t at[kMaxTiers];    // at each level, how many ids came so far
    int64_t entry[kMaxTiers];  // of each tier, by its first entry: which one the next row is in
    int64_t rows[kMaxTiers];   // and how many of that one came so far
};

}  // namespace

#endif
