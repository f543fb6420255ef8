// Packed rows in blocks of 64, to be turned into columns of bytes.
#ifndef MGQE_PACKED_BLOCKS_H
#define MGQE_PACKED_BLOCKS_H

#include <stdint.h>

namespace {

// Bytes behind the last block that may be read: rows are read in whole vectors.
constexpr int64_t kBeyond = 256;

struct PackedBlocks {
    const uint8_t* codes;
    int64_t number;  // of blocks
    int64_t row_bytes;
    int64_t num_subspaces;
    int32_t bits;
    const uint8_t* upcoming;  // the codes to be asked for meanwhile

    void prefetch(int64_t block) const {
        const uint8_t* at = upcoming + block * 64 * row_bytes;
        for (int64_t line = 0; line < row_bytes; ++line) __builtin_prefetch(at + 64 * line, 0, 1);
    }
};

}  // namespace

#endif
