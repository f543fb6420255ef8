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

}  // namespace

#endif
