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

// 8 codes of `bits` bits from the low end of a word, a byte each.
inline uint64_t spread(uint64_t word, int32_t bits) {
#if defined(__BMI2__)
    return _pdep_u64(word, 0x0101010101010101u * ((1u << bits) - 1));
#else
    const uint64_t mask = (1u << bits) - 1;
    uint64_t bytes = 0;
    for (int j = 0; j < 8; ++j) bytes |= ((word >> (j * bits)) & mask) << (8 * j);
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
inline void spread_columns(const PackedBlocks& from, uint8_t* out, int64_t step) {
    for (int64_t j = 0; j < from.num_subspaces; j += 8, out += 8 * step)
        for (int64_t first = 0; first < 64 * from.number; first += 16) {
            if (j == 0 && first % 64 == 0) from.prefetch(first / 64);
            Byte16 pairs[8];
            const uint8_t* row = from.codes + first * from.row_bytes + j / 8 * from.bits;
            for (int i = 0; i < 8; ++i) {
                Long2 pair;
                for (int half = 0; half < 2; ++half, row += from.row_bytes)
                    pair[half] = from.bits == 8 ? window(row) : spread(window(row), from.bits);
                pairs[i] = reinterpret_cast<Byte16>(pair);
            }
            transpose(pairs, out + first, step);
        }
}

}  // namespace

#endif
