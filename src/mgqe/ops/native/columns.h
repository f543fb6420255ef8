// 64 packed rows as columns of bytes, one per subspace, with 16-byte vectors: SSE2 on x86-64, NEON on arm64.
#ifndef MGQE_COLUMNS_H
#define MGQE_COLUMNS_H

#include <stdint.h>

#include "bits.h"
#include "packed_blocks.h"

#if defined(__BMI2__)
#include <immintrin.h>
#endif

namespace {

typedef uint8_t Byte16 __attribute__((vector_size(16)));
typedef uint64_t Long2 __attribute__((vector_size(16)));

// The codes of a group from the 64 bits they lie in, a byte each.
inline uint64_t spread(uint64_t word, const mgqe_code_group& group) {
#if defined(__BMI2__)
    return _pdep_u64(word >> group.shifts[0], group.lanes);
#else
    uint64_t bytes = 0;
    for (int j = 0; j < 8; ++j)
        bytes |= (word >> group.shifts[j] << (8 * j)) & group.lanes & (static_cast<uint64_t>(255) << (8 * j));
    return bytes;
#endif
}

#if defined(__clang__)
#define MGQE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MGQE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Byte16{__VA_ARGS__})
#endif
inline Byte16 zip_low(Byte16 a, Byte16 b) {
    return MGQE_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Byte16 zip_high(Byte16 a, Byte16 b) {
    return MGQE_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#undef MGQE_SHUFFLE

// 16 rows of 8 bytes, two in a vector, as 8 columns of 16 bytes. Each round of zips doubles the rows that stand side
// by side: the first pairs row i with row i + 8, and after four rounds all 16 are in order.
inline void transpose(const Byte16* rows, uint8_t* out, int64_t step) {
    Byte16 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = rows[i];
    for (int round = 0; round < 4; ++round) {
        for (int i = 0; i < 4; ++i) {
            b[2 * i] = zip_low(a[i], a[i + 4]);
            b[2 * i + 1] = zip_high(a[i], a[i + 4]);
        }
        for (int i = 0; i < 8; ++i) a[i] = b[i];
    }
    for (int j = 0; j < 8; ++j) __builtin_memcpy(out + j * step, &a[j], 16);
}

// out[j * step + row] = code j of a row, for blocks of 64 rows behind which kBeyond bytes may be read.
// Columns after a group's last one are written as well; groups come in ascending order.
inline void spread_columns(const PackedBlocks& from, uint8_t* out, int64_t step) {
    for (int64_t g = 0; g < from.num_groups; ++g) {
        const mgqe_code_group group = from.groups[g];
        for (int64_t first = 0; first < 64 * from.number; first += 16) {
            if (first % 64 == 0) from.prefetch(first / 64, g);
            Byte16 pairs[8];
            const uint8_t* row = from.codes + first * from.row_bytes + group.byte;
            for (int i = 0; i < 8; ++i) {
                Long2 pair;
                for (int half = 0; half < 2; ++half, row += from.row_bytes)
                    pair[half] = group.whole_bytes ? window(row) : spread(window(row), group);
                pairs[i] = reinterpret_cast<Byte16>(pair);
            }
            transpose(pairs, out + group.first * step + first, step);
        }
    }
}

}  // namespace

#endif
