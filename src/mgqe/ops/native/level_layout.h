// How the packed rows of a tier with levels are read into vectors of bytes.
#ifndef MGQE_LEVEL_LAYOUT_H
#define MGQE_LEVEL_LAYOUT_H

#include <stdint.h>
#include <string.h>

#include "level_rows.h"
#include "packed_blocks.h"

namespace {

constexpr int64_t kWordsOfVector = 8;

// Rows that are read with one load of 64 bytes: as many as leave the fewest vectors for a row.
inline int64_t rows_together(const mgqe_tier& tier) {
    const int64_t words = (tier.num_subspaces + 7) / 8;
    int64_t best = 1;
    for (int64_t more = 2; more <= 4; more *= 2) {
        const int64_t before = (words + kWordsOfVector / best - 1) / (kWordsOfVector / best);
        const int64_t after = (words + kWordsOfVector / more - 1) / (kWordsOfVector / more);
        if (more * tier.row_bytes <= 64 && after * best <= before * more) best = more;
    }
    return best;
}

inline int64_t level_vectors(const mgqe_tier& tier) {
    const int64_t words = (tier.num_subspaces + 7) / 8, each = kWordsOfVector / rows_together(tier);
    return (words + each - 1) / each;
}

// `groups`: the tier's codes in groups of eight (packed_blocks.h); `vectors` (level_vectors(tier)).
inline mgqe_level_rows lay_out_levels(const mgqe_tier& tier, const mgqe_code_group* groups, int64_t num_groups,
                                      mgqe_level_vector* vectors) {
    mgqe_level_rows rows = {vectors, level_vectors(tier), rows_together(tier), tier.row_bytes, {}};
    memcpy(rows.levels + 1, tier.levels, 127);
    memcpy(rows.levels + 128, tier.levels + 128, 128);
    const int64_t each = kWordsOfVector / rows.together;  // words of a row in a vector
    for (int64_t v = 0; v < rows.number; ++v) {
        mgqe_level_vector& vector = vectors[v] = {};
        vector.at = rows.together == 1 ? groups[v * each].byte : 0;
        for (int64_t word = 0; word < kWordsOfVector; ++word) {
            const int64_t g = v * each + word % each;
            if (g >= num_groups) continue;
            const int64_t begin = word / each * tier.row_bytes + groups[g].byte - vector.at;
            for (int64_t b = 0; b < 8; ++b) {
                const int64_t lane = 8 * word + b, j = groups[g].first + b;
                // A word may end behind the last row's codes: those bits are masked.
                vector.from[lane] = static_cast<uint8_t>(begin + b < 63 ? begin + b : 63);
                if (j >= tier.num_subspaces) continue;
                const int32_t bits = tier.layout[j].bits;
                vector.shifts[lane] = groups[g].shifts[b];
                vector.masks[lane] = static_cast<uint8_t>((1 << bits) - 1);
                vector.places[lane] = static_cast<uint8_t>(bits < 7 ? 1 << bits : 0);
                vector.lanes[bits < 6 ? 0 : bits - 5] |= static_cast<uint64_t>(1) << lane;
            }
        }
    }
    return rows;
}

}  // namespace

#endif
