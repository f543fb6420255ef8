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

// 8 vectors of 8 rows of 8 bytes -> columns of 64 bytes, the first 4 or all 8. Halves of the columns come apart, then
// quarters, then all.
template <int kColumns>
inline void transpose(V* z) {
    const V low = kLowColumns.load(), high = kHighColumns.load();
    // Columns 0 to 3 of rows 8 i to 8 i + 7 and 8 i + 16 to 8 i + 23 in the first four, columns 4 to 7 in the others.
    V halves[8];
    for (int i = 0; i < 4; ++i) {
        const int first = i / 2 + i % 2 * 4;
        halves[i] = _mm512_permutex2var_epi8(z[first], low, z[first + 2]);
        if (kColumns > 4) halves[4 + i] = _mm512_permutex2var_epi8(z[first], high, z[first + 2]);
    }
    for (int half = 0; half < kColumns; half += 4) {
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
    V within;  // of a pair of vectors: where each byte is
    __mmask64 masks[kOrders];
    const Unpacked unpacked;
    const int64_t row_bytes;
    Near(const PackedBlocks& blocks, const mgqe_code_group& group) : unpacked(group), row_bytes(blocks.row_bytes) {
        constexpr uint64_t kOnes = 0x0101010101010101, kCount = 0x0706050403020100;
        alignas(64) uint64_t order[8];
        uint64_t mask[kOrders] = {};
        for (int p = 0; p < 8; ++p) {
            // Bytes at to at + 7; 128 of them are a pair.
            const int64_t at = p * row_bytes + group.byte, pair = at / 128, left = 128 - at % 128;
            order[p] = (static_cast<uint64_t>(at % 128) * kOnes + kCount) & 127 * kOnes;
            const uint64_t here = left < 8 ? (1u << left) - 1 : 255;
            if (pair < kOrders) mask[pair] |= here << (8 * p);
            if (pair + 1 < kOrders) mask[pair + 1] |= (255 & ~here) << (8 * p);
        }
        within = _mm512_load_si512(order);
        for (int pair = 0; pair < kOrders; ++pair) masks[pair] = mask[pair];
    }
    V operator()(const uint8_t* rows) const {
        V words;
        if constexpr (kPairs == 0)
            words = _mm512_permutexvar_epi8(within, _mm512_loadu_si512(rows));
        else
            words = _mm512_permutex2var_epi8(_mm512_loadu_si512(rows), within, _mm512_loadu_si512(rows + 64));
        for (int pair = 1; pair < kPairs; ++pair)
            words = _mm512_mask_blend_epi8(
                masks[pair], words,
                _mm512_permutex2var_epi8(_mm512_loadu_si512(rows + 128 * pair), within,
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

template <int kColumns, class Load>
void columns_of_group(const PackedBlocks& from, const Load& load, int64_t group, uint8_t* out, int64_t step) {
    const uint8_t* rows = from.codes;
    for (int64_t block = 0; block < from.number; ++block, rows += 64 * from.row_bytes) {
        from.prefetch(block, group);
        V z[8];
        for (int i = 0; i < 8; ++i) z[i] = load(rows + 8 * i * from.row_bytes);
        transpose<kColumns>(z);
        for (int c = 0; c < kColumns; ++c) _mm512_store_si512(out + c * step + 64 * block, z[c]);
    }
}

template <class Load>
void columns_of(const PackedBlocks& from, uint8_t* out, int64_t step) {
    for (int64_t g = 0; g < from.num_groups; ++g) {
        const mgqe_code_group& group = from.groups[g];
        const Load load(from, group);
        uint8_t* const to = out + group.first * step;
        if (group.lanes >> 32)
            columns_of_group<8>(from, load, g, to, step);
        else
            columns_of_group<4>(from, load, g, to, step);
    }
}

// Rows of a few bytes, all of them codes. A block is as many vectors as a row has bytes, and byte i of a block is byte
// i % 128 of a pair of vectors, which one shuffle takes bytes from.
template <int kBytes>
struct FewBytes {
    struct Order {
        ByteOrder within{[](int, int) { return 0; }};  // of a pair: where each row has its byte
        uint64_t from_pair[kBytes / 2 + 1] = {};       // which rows have it in each pair
    };
    struct Orders {
        Order of[kBytes];
        constexpr Orders() : of() {
            for (int c = 0; c < kBytes; ++c)
                for (int row = 0; row < 64; ++row) {
                    const int at = row * kBytes + c;
                    of[c].within.bytes[row] = static_cast<uint8_t>(at % 128);
                    of[c].from_pair[at / 128] |= static_cast<uint64_t>(1) << row;
                }
        }
    };
    static constexpr Orders kOrders{};

    static V column(const V* block, const Order& order) {
        const V within = order.within.load();
        if constexpr (kBytes == 1) return block[0];
        V column = _mm512_permutex2var_epi8(block[0], within, block[1]);
        for (int pair = 1; pair < kBytes / 2; ++pair)
            column = _mm512_mask_blend_epi8(order.from_pair[pair], column,
                                            _mm512_permutex2var_epi8(block[2 * pair], within, block[2 * pair + 1]));
        if constexpr (kBytes % 2 == 1)
            column = _mm512_mask_permutexvar_epi8(column, order.from_pair[kBytes / 2], within, block[kBytes - 1]);
        return column;
    }
};

template <int kBytes>
void columns_of_few(const PackedBlocks& from, uint8_t* out, int64_t step) {
    const uint8_t* rows = from.codes;
    for (int64_t block = 0; block < from.number; ++block, rows += 64 * kBytes) {
        from.prefetch(block, 0);
        V z[kBytes];
        for (int i = 0; i < kBytes; ++i) z[i] = _mm512_loadu_si512(rows + 64 * i);
        for (int c = 0; c < kBytes; ++c)
            _mm512_store_si512(out + c * step + 64 * block, FewBytes<kBytes>::column(z, FewBytes<kBytes>::kOrders.of[c]));
    }
}

inline void columns_of_bytes(const PackedBlocks& from, uint8_t* out, int64_t step) {
    switch (from.row_bytes) {
        case 1:
            return columns_of_few<1>(from, out, step);
        case 2:
            return columns_of_few<2>(from, out, step);
        case 3:
            return columns_of_few<3>(from, out, step);
        case 4:
            return columns_of_few<4>(from, out, step);
        case 5:
            return columns_of_few<5>(from, out, step);
        case 6:
            return columns_of_few<6>(from, out, step);
        case 7:
            return columns_of<Near<0, true>>(from, out, step);
        case 8:
            return columns_of<Straight>(from, out, step);
    }
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
