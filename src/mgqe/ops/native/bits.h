// Reading codes of 1 to 16 bits out of packed rows.
#ifndef MGQE_BITS_H
#define MGQE_BITS_H

#include <stdint.h>

namespace {

// The 64 bits at p, low byte first. Reads 8 bytes.
inline uint64_t window(const uint8_t* p) {
    uint64_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bits = __builtin_bswap64(bits);
#endif
    return bits;
}

// The same from a row that may end before p + 8: reads no byte at or beyond `end`. A file may be mapped right up to
// the end of its last page.
inline uint64_t window_before(const uint8_t* p, const uint8_t* end) {
    uint64_t bits = 0;
    for (int byte = 0; byte < 3 && p + byte < end; ++byte) bits |= static_cast<uint64_t>(p[byte]) << (8 * byte);
    return bits;
}

// Code j of a packed row, when 8 bytes may be read from the byte it starts in.
inline uint32_t code_at(const uint8_t* row, int64_t j, int32_t bits, uint32_t mask) {
    const int64_t at = j * bits;
    return static_cast<uint32_t>(window(row + (at >> 3)) >> (at & 7)) & mask;
}

// Code j of a row that ends at `end`.
inline uint32_t code_before(const uint8_t* row, int64_t j, int32_t bits, uint32_t mask, const uint8_t* end) {
    const int64_t at = j * bits;
    return static_cast<uint32_t>(window_before(row + (at >> 3), end) >> (at & 7)) & mask;
}

// The codes of a row of less than 8 bytes, in the low bits of a word (what is above them is not zero).
inline uint64_t narrow_row(const uint8_t* row, int64_t bytes, const uint8_t* begin, const uint8_t* end) {
    if (row - begin < 8 || end - row < 8) {
        uint64_t bits = 0;
        for (int64_t byte = 0; byte < bytes; ++byte) bits |= static_cast<uint64_t>(row[byte]) << (8 * byte);
        return bits;
    }
    // Near the end of a cache line read the line's last 8 bytes: those beyond are not needed, and waiting for a line
    // that nobody prefetched would cost more than all the rest. A row in two lines had both prefetched.
    const int64_t in_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 64);
    int64_t back = in_line > 56 ? in_line - 56 : 0;
    back = in_line + bytes > 64 ? 0 : back;
    return window(row - back) >> (8 * back);
}

}  // namespace

#endif
