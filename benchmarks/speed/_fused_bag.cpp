// Bags with AVX-512 VBMI and VNNI, each a loop that does all the work that no sum does without, as if all rows were of
// one tier: codes are asked for ahead, read and unpacked, levels or centroids added up in registers, and sums scaled or
// multiplied with a matrix and written. Rows are followed by 64 bytes that may be read.
#include <stdint.h>

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

#include "_fused_levels.h"

namespace {

constexpr int64_t kIdsAhead = 64, kMostLength = 32;

struct Rows {
    const uint8_t* const codes;
    const int64_t row_bytes;
    const int64_t* const ids;
    const int64_t n, length;  // ids, and those of a bag

    // Row i, while one that comes later is asked for.
    const uint8_t* at(int64_t i) const {
        const uint8_t* const next = codes + ids[i + kIdsAhead < n ? i + kIdsAhead : n - 1] * row_bytes;
        __builtin_prefetch(next, 0, 3);
        __builtin_prefetch(next + row_bytes - 1, 0, 3);
        return codes + ids[i] * row_bytes;
    }
};

// What becomes of sums of 64 coordinates: `numbers` (2, 64) are what is added and what is multiplied with.
inline void write(float* to, __m512i sums, const float* numbers, int part) {
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(numbers + 64 + 16 * part));
    _mm512_storeu_ps(to + 16 * part, _mm512_add_ps(_mm512_loadu_ps(numbers + 16 * part), scaled));
}

constexpr int64_t kWords = 80;  // of a bag: 64, and what copies write behind them

// Four bags of sums times a matrix of 16-bit numbers (pairs of sums, 64, 2).
void multiply(const uint16_t* sums, const int16_t* matrix, int64_t pairs, const float* numbers, float* out) {
    V products[4][4] = {};
    for (int64_t pair = 0; pair < pairs; ++pair, matrix += 128) {
        V values[4];
        for (int v = 0; v < 4; ++v) values[v] = load(matrix + 32 * v);
#pragma GCC unroll 4
        for (int b = 0; b < 4; ++b) {
            int32_t two;
            __builtin_memcpy(&two, sums + kWords * b + 2 * pair, sizeof two);
            const V z = _mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) products[b][v] = _mm512_dpwssd_epi32(products[b][v], z, values[v]);
        }
    }
    for (int b = 0; b < 4; ++b)
        for (int v = 0; v < 4; ++v) write(out + 64 * b, products[b][v], numbers, v);
}

// With a matrix: the sums of even coordinates, then those of odd ones.
template <int kKinds>
void sum_levels(const Rows& rows, const Levels& levels, const int16_t* matrix, const float* numbers, float* out) {
    uint16_t words[4][kWords];
    uint16_t order[2][32];
    for (int k = 0; k < 64; ++k) order[k / 32][k % 32] = static_cast<uint16_t>(k / 2 + k % 2 * 32);
    for (int64_t bag = 0, i = 0; i + rows.length <= rows.n; ++bag, out += 64) {
        V both = _mm512_setzero_si512(), odd = both;
        for (const int64_t stop = i + rows.length; i < stop; ++i) {
            const V found = levels.template operator()<kKinds>(load(rows.at(i)));
            both = _mm512_add_epi16(both, found);
            odd = _mm512_add_epi16(odd, _mm512_srli_epi16(found, 8));
        }
        const V even = _mm512_sub_epi16(both, _mm512_slli_epi16(odd, 8));
        if (matrix) {
            _mm512_storeu_si512(words[bag % 4], even);
            _mm512_storeu_si512(words[bag % 4] + 32, odd);
            if (bag % 4 == 3) multiply(words[0], matrix, 32, numbers, out - 3 * 64);
            continue;
        }
        for (int half = 0; half < 2; ++half) {
            const V sums = _mm512_permutex2var_epi16(even, load(order[half]), odd);
            write(out, _mm512_cvtepu16_epi32(_mm512_castsi512_si256(sums)), numbers, 2 * half);
            write(out, _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(sums, 1)), numbers, 2 * half + 1);
        }
    }
}

// Centroids of 16-bit numbers, eight of them at once: kCopies of these a row. `layout`, 16-bit numbers, (4, 32): which
// two bytes each code begins in, where, its bits, and where its centroids begin in the book, in bytes.
template <int kCopies>
void sum_centroids(const Rows& rows, const uint8_t* layout, const uint8_t* book, const int16_t* matrix,
                   const int32_t* coordinates, const float* numbers, float* out) {
    const V from = load(layout), shifts = load(layout + 64), masks = load(layout + 128), entries = load(layout + 192);
    uint16_t words[4][kWords] = {};
    for (int64_t bag = 0, i = 0; i + rows.length <= rows.n; ++bag, out += 64) {
        alignas(64) uint16_t places[32 * kMostLength];
        for (int64_t r = 0; r < rows.length; ++r) {
            const V shifted = _mm512_srlv_epi16(_mm512_permutexvar_epi8(from, load(rows.at(i + r))), shifts);
            const V of_row = _mm512_add_epi16(_mm512_slli_epi16(_mm512_and_si512(shifted, masks), 4), entries);
            _mm512_store_si512(places + 32 * r, of_row);
        }
        i += rows.length;
        __m128i sums[kCopies] = {};
        for (int64_t r = 0; r < rows.length; ++r)
#pragma GCC unroll 32
            for (int c = 0; c < kCopies; ++c) {
                const uint8_t* const eight = book + places[32 * r + c];
                sums[c] = _mm_add_epi16(sums[c], _mm_load_si128(reinterpret_cast<const __m128i*>(eight)));
            }
#pragma GCC unroll 32
        for (int c = 0; c < kCopies; ++c)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(words[bag % 4] + coordinates[c]), sums[c]);
        if (bag % 4 == 3) multiply(words[0], matrix, coordinates[kCopies], numbers, out - 3 * 64);
    }
}

template <int kMost = 24, typename Use>
void with_copies(int64_t copies, const Use& use) {
    if constexpr (kMost > 0) {
        if (copies == kMost) return use.template operator()<kMost>();
        with_copies<kMost - 1>(copies, use);
    }
}

}  // namespace

extern "C" {

// Sums of bags of `length` rows, written as 64 numbers. No matrix: coordinates are only scaled.
int64_t mgqe_limits_sum_levels(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n, int64_t length,
                              const uint8_t* layout, int64_t kinds, const int16_t* matrix, const float* numbers,
                              float* out) {
    const Levels levels(layout);
    return with_kinds(kinds, [&]<int kKinds>() {
        sum_levels<kKinds>({codes, row_bytes, ids, n, length}, levels, matrix, numbers, out);
        return int64_t{0};
    });
}

// `coordinates` (copies + 1): the first of each copy, and at the end pairs of them in all.
int64_t mgqe_limits_sum_centroids(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n, int64_t length,
                                 const uint8_t* layout, const uint8_t* book, int64_t copies, const int16_t* matrix,
                                 const int32_t* coordinates, const float* numbers, float* out) {
    with_copies(copies, [&]<int kCopies>() {
        sum_centroids<kCopies>({codes, row_bytes, ids, n, length}, layout, book, matrix, coordinates, numbers, out);
    });
    return 0;
}
}

#endif
