// Codes of mixed tables: where each begins in a row, how it is read, and how partial scores are made for it.
#ifndef MGQE_MIXED_CODES_H
#define MGQE_MIXED_CODES_H

#include <stdint.h>

#include "bits.h"
#include "mgqe_native.h"

namespace {

// Four ways to read a piece's code from a row. None touches a byte outside the row.
struct NoCode {
    uint32_t operator()(const uint8_t*) const { return 0; }
};

struct ByteCode {
    const int64_t byte;
    uint32_t operator()(const uint8_t* row) const { return row[byte]; }
};

// Four bytes that begin with the code's first byte, or end with the row: a code spans at most three.
struct WordCode {
    const int64_t byte;
    const int32_t shift;
    const uint32_t mask;
    uint32_t operator()(const uint8_t* row) const {
        return static_cast<uint32_t>(little_endian(row + byte, 4)) >> shift & mask;
    }
};

// Rows of one to three bytes.
struct ShortRowCode {
    const int64_t row_bytes;
    const int32_t shift;
    const uint32_t mask;
    uint32_t operator()(const uint8_t* row) const {
        return static_cast<uint32_t>(few_bytes(row, row_bytes)) >> shift & mask;
    }
};

// Calls use(reader) with the reader for a piece.
template <typename Use>
inline void with_reader(const mgqe_piece& piece, int64_t row_bytes, const Use& use) {
    if (piece.bits == 0) return use(NoCode{});
    if (piece.bits == 8 && piece.bit % 8 == 0) return use(ByteCode{piece.bit / 8});
    const uint32_t mask = (1u << piece.bits) - 1;
    if (row_bytes < 4) return use(ShortRowCode{row_bytes, static_cast<int32_t>(piece.bit), mask});
    const int64_t last = row_bytes - 4, byte = piece.bit / 8 < last ? piece.bit / 8 : last;
    use(WordCode{byte, static_cast<int32_t>(piece.bit - 8 * byte), mask});
}

inline uint32_t code_of(const mgqe_piece& piece, int64_t row_bytes, const uint8_t* row) {
    uint32_t code = 0;
    with_reader(piece, row_bytes, [&](const auto& read) { code = read(row); });
    return code;
}

}  // namespace

#endif
