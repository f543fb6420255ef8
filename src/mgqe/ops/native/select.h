// From a tier and a row there back to the id: the inverse of locate.h.
#ifndef MGQE_SELECT_H
#define MGQE_SELECT_H

#include <stdint.h>

#include "locate.h"
#include "mgqe_native.h"

namespace {

// Where set bit number `nth` (from 0) of a word is.
inline int64_t nth_one(uint64_t word, int64_t nth) {
    for (; nth > 0; --nth) word &= word - 1;
    return __builtin_ctzll(word);
}

// The index of one number `nth` of a level, or of its zero number `nth`.
inline int64_t select_bit(const mgqe_level& level, int64_t nth, bool one) {
    const int64_t blocks = (level.length + 255) / 256;
    if (blocks == 0) return 0;  // a damaged map
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
    for (int64_t word = 4 * low; word < 4 * low + 4; ++word) {
        const uint64_t bits = one ? level.bits[word] : ~level.bits[word];
        const int64_t here = ones(bits);
        if (nth < here) return 64 * word + nth_one(bits, nth);
        nth -= here;
    }
    return level.length;  // a damaged map
}

// The id in row `rank` of a tier.
inline int64_t id_at(const mgqe_table& table, int64_t tier, int64_t rank) {
    if (tier >= table.mapped_tiers) return table.starts[tier] + rank;
    int32_t l = 0;
    while (l < table.num_levels && table.levels[l].tier != tier) ++l;
    int64_t at = rank;
    if (l < table.num_levels) at = select_bit(table.levels[l], at, true);
    while (--l >= 0) at = select_bit(table.levels[l], at, false);
    return at;
}

}  // namespace

#endif
