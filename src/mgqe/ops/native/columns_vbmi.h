// 64 packed rows as columns of bytes, one per subspace, with AVX-512 VBMI.
#ifndef MGQE_COLUMNS_VBMI_H
#define MGQE_COLUMNS_VBMI_H

#include <immintrin.h>
#include <stdint.h>

#include "packed_blocks.h"

namespace {

using V = __m512i;

// Byte p * 8 + b of a vector of 8 words is byte b of word p. Here: byte p * 8 + b <- index(p, b).
struct alignas(64) ByteOrder {
    uint8_t bytes[64];
    template <typename Index>
    constexpr explicit ByteOrder(const Index& index) : bytes() {
        for (int p = 0; p < 8; ++p)
            for (int b = 0; b < 8; ++b) bytes[p * 8 + b] = static_cast<uint8_t>(index(p, b));
    }
    V load() const { return _mm512_load_si512(bytes); }
};

// Two columns side by side, columns 2 * h and 2 * h + 1 of four, of 8 rows each of two vectors.
constexpr ByteOrder kLowColumns([](int p, int b) { return p / 2 % 2 * 64 + b * 8 + p / 4 * 2 + p % 2; });
constexpr ByteOrder kHighColumns([](int p, int b) { return p / 2 % 2 * 64 + b * 8 + p / 4 * 2 + p % 2 + 4; });

// 8 vectors of 8 rows of 8 bytes -> 8 columns of 64 bytes. Halves of the columns come apart, then quarters, then all.
inline void transpose(V* z) {
    const V low = kLowColumns.load(), high = kHighColumns.load();
    // Columns 0 to 3 of rows 8 i to 8 i + 7 and 8 i + 16 to 8 i + 23 in the first four, columns 4 to 7 in the others.
    V halves[8];
    for (int i = 0; i < 4; ++i) {
        const int first = i / 2 + i % 2 * 4;
        halves[i] = _mm512_permutex2var_epi8(z[first], low, z[first + 2]);
        halves[4 + i] = _mm512_permutex2var_epi8(z[first], high, z[first + 2]);
    }
    for (int half = 0; half < 8; half += 4) {
        const V* from = halves + half;
        for (int pair = 0; pair < 2; ++pair) {
            // Rows whose number has no 8 in it, and the others.
            const V even = pair ? _mm512_shuffle_i64x2(from[0], from[1], 0xee) : _mm512_shuffle_i64x2(from[0], from[1], 0x44);
            const V odd = pair ? _mm512_shuffle_i64x2(from[2], from[3], 0xee) : _mm512_shuffle_i64x2(from[2], from[3], 0x44);
            z[half + 2 * pair] = _mm512_unpacklo_epi64(even, odd);
            z[half + 2 * pair + 1] = _mm512_unpackhi_epi64(even, odd);
        }
    }
}

// The codes of a group in each word -> a byte each.
struct Unpacked {
    const V shifts, mask;
    explicit Unpacked(const mgqe_code_group& group)
        : shifts(ByteOrder([&](int, int b) { return group.shifts[b]; }).load()),
          mask(_mm512_set1_epi64(static_cast<long long>(group.lanes))) {}
    V operator()(V words) const { return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, words), mask); }
};

// 8 rows of 8 bytes, nothing to be moved.
struct Straight {
    Straight(const PackedBlocks&, const mgqe_code_group&) {}
    V operator()(const uint8_t* rows) const { return _mm512_loadu_si512(rows); }
};

// A group's codes of 8 rows, as words of 8 bytes; the rows lie within 2 * kPairs vectors (0: one).
template <int kPairs, bool kBytes>
struct Near {
    static constexpr int kOrders = kPairs ? kPairs : 1;
    V orders[kOrders];
    __mmask64 masks[kOrders];
    const Unpacked unpacked;
    const int64_t row_bytes;
    Near(const PackedBlocks& blocks, const mgqe_code_group& group) : unpacked(group), row_bytes(blocks.row_bytes) {
        for (int pair = 0; pair < kOrders; ++pair) {
            uint64_t mask = 0;
            orders[pair] = ByteOrder([&](int p, int b) {
                               const int64_t index = p * row_bytes + group.byte + b - 128 * pair;
                               if (index >= 0 && index < 128) mask |= static_cast<uint64_t>(1) << (8 * p + b);
                               return index & 127;
                           }).load();
            masks[pair] = mask;
        }
    }
    V operator()(const uint8_t* rows) const {
        V words;
        if constexpr (kPairs == 0)
            words = _mm512_permutexvar_epi8(orders[0], _mm512_loadu_si512(rows));
        else
            words = _mm512_permutex2var_epi8(_mm512_loadu_si512(rows), orders[0], _mm512_loadu_si512(rows + 64));
        for (int pair = 1; pair < kPairs; ++pair)
            words = _mm512_mask_blend_epi8(
                masks[pair], words,
                _mm512_permutex2var_epi8(_mm512_loadu_si512(rows + 128 * pair), orders[pair],
                                         _mm512_loadu_si512(rows + 128 * pair + 64)));
        return kBytes ? words : unpacked(words);
    }
};
// The same of longer rows.
template <bool kBytes>
struct Far {
    const Unpacked unpacked;
    const int64_t row_bytes, at;
    Far(const PackedBlocks& blocks, const mgqe_code_group& group)
        : unpacked(group), row_bytes(blocks.row_bytes), at(group.byte) {}
    V operator()(const uint8_t* rows) const {
        alignas(64) uint64_t words[8];
        for (int p = 0; p < 8; ++p) __builtin_memcpy(words + p, rows + p * row_bytes + at, 8);
        const V loaded = _mm512_load_si512(words);
        return kBytes ? loaded : unpacked(loaded);
    }
};

template <class Load>
void columns_of(const PackedBlocks& from, uint8_t* out, int64_t step) {
    const int64_t block_bytes = 64 * from.row_bytes;
    for (int64_t g = 0; g < from.num_groups; ++g) {
        const Load load(from, from.groups[g]);
        const uint8_t* rows = from.codes;
        uint8_t* const to = out + from.groups[g].first * step;
        for (int64_t block = 0; block < from.number; ++block, rows += block_bytes) {
            if (g == 0) from.prefetch(block);
            V z[8];
            for (int i = 0; i < 8; ++i) z[i] = load(rows + 8 * i * from.row_bytes);
            transpose(z);
            for (int c = 0; c < 8; ++c) _mm512_store_si512(to + c * step + 64 * block, z[c]);
        }
    }
}

inline void columns_of_bytes(const PackedBlocks& from, uint8_t* out, int64_t step) {
    if (from.row_bytes == 8) return columns_of<Straight>(from, out, step);
    if (from.row_bytes <= 8) return columns_of<Near<0, true>>(from, out, step);
    if (from.row_bytes <= 16) return columns_of<Near<1, true>>(from, out, step);
    if (from.row_bytes <= 32) return columns_of<Near<2, true>>(from, out, step);
    if (from.row_bytes <= 64) return columns_of<Near<4, true>>(from, out, step);
    return columns_of<Far<true>>(from, out, step);
}

// out[j * step + row] = code j of a row, for blocks of 64 rows behind which kBeyond bytes may be read. Columns after a
// group's last one are written as well; groups come in ascending order.
inline void columns_vbmi(const PackedBlocks& from, uint8_t* out, int64_t step) {
    bool whole_bytes = true;
    for (int64_t g = 0; g < from.num_groups; ++g) whole_bytes &= from.groups[g].whole_bytes;
    if (whole_bytes) return columns_of_bytes(from, out, step);
    if (from.row_bytes <= 8) return columns_of<Near<0, false>>(from, out, step);
    if (from.row_bytes <= 16) return columns_of<Near<1, false>>(from, out, step);
    if (from.row_bytes <= 32) return columns_of<Near<2, false>>(from, out, step);
    if (from.row_bytes <= 64) return columns_of<Near<4, false>>(from, out, step);
    return columns_of<Far<false>>(from, out, step);
}

}  // namespace

#endif
