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

inline uint64_t little_endian(const uint8_t* p, int bytes) {
    uint32_t word = 0;
    __builtin_memcpy(&word, p, bytes);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap32(word) >> (32 - 8 * bytes);
#endif
    return word;
}

// 1 to 8 bytes of a row, in the low bits of a word. Two loads that overlap: no byte beyond is touched, neither past the
// end of a buffer nor in a cache line that was not prefetched, and nothing branches on where the row is.
inline uint64_t few_bytes(const uint8_t* row, int64_t bytes) {
    if (bytes >= 4) return little_endian(row, 4) | little_endian(row + bytes - 4, 4) << (8 * (bytes - 4));
    if (bytes >= 2) return little_endian(row, 2) | little_endian(row + bytes - 2, 2) << (8 * (bytes - 2));
    return *row;
}

}  // namespace

#endif
