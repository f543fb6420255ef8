// Packed rows in blocks of 64, to be turned into columns of bytes.
#ifndef MGQE_PACKED_BLOCKS_H
#define MGQE_PACKED_BLOCKS_H

#include <stdint.h>

#include "topk.h"

namespace {

// Bytes behind the last block that may be read: rows are read in whole vectors.
constexpr int64_t kBeyond = 256;

struct PackedBlocks {
    const uint8_t* codes;
    int64_t number;  // of blocks
    int64_t row_bytes;
    const mgqe_code_group* groups;
    int64_t num_groups;
    const uint8_t* upcoming;  // the codes to be asked for meanwhile

    // Asks for a share of the lines of a block: those of all groups are all of them. Asked for at once they would keep
    // each other waiting.
    void prefetch(int64_t block, int64_t group) const {
        const uint8_t* at = upcoming + block * 64 * row_bytes;
        const int64_t end = (group + 1) * row_bytes / num_groups;
        for (int64_t line = group * row_bytes / num_groups; line < end; ++line) __builtin_prefetch(at + 64 * line, 0, 1);
    }
};

// Cuts the codes of a tier's rows into groups, at most num_subspaces; returns how many.
inline int64_t group_codes(const mgqe_tier& tier, mgqe_code_group* groups) {
    int64_t number = 0, bit = 0;
    for (int64_t j = 0; j < tier.num_subspaces; ++number) {
        mgqe_code_group& group = groups[number];
        group = {};
        group.first = j;
        group.byte = bit / 8;
        group.whole_bytes = bit % 8 == 0;
        for (int b = 0; b < 8 && j < tier.num_subspaces; ++b, ++j) {
            const int32_t bits = tier.layout ? tier.layout[j].bits : tier.bits;
            const int64_t shift = bit - 8 * group.byte;
            if (shift + bits > 64) break;
            group.shifts[b] = static_cast<uint8_t>(shift & 63);
            group.lanes |= static_cast<uint64_t>((1u << bits) - 1) << (8 * b);
            group.whole_bytes &= bits == 8;
            bit += bits;
        }
    }
    return number;
}

}  // namespace

#endif
