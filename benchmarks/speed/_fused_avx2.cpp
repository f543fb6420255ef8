// Look-ups, bags and searches with AVX2, each a loop that does all the work that none does without, as if all rows were
// of one tier. Levels are found with as few shuffles as if codes of as many bits stood together. Rows are followed by
// 64 bytes that may be read.
#include <immintrin.h>
#include <stdint.h>

#include "columns.h"

namespace {

constexpr int64_t kIdsAhead = 64, kBytesAhead = 8192;

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
__m128i load_half(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
__m256i both_halves(const void* from) { return _mm256_broadcastsi128_si256(load_half(from)); }

// Levels of 32 codes, which are in four times 16 bytes. `layout`: which two bytes each code begins in, eight codes
// after eight, what lifts it, its bits and its first level, 32 bytes each but 64 for the first two; then tables of 16
// levels.
template <int kShuffles>
__attribute__((always_inline)) inline __m256i find(const uint8_t* const* from, const uint8_t* layout) {
    __m256i codes[2];
    for (int odd = 0; odd < 2; ++odd) {
        const __m256i bytes = _mm256_set_m128i(load_half(from[odd + 2]), load_half(from[odd]));
        const __m256i pairs = _mm256_shuffle_epi8(bytes, load(layout + 32 * odd));
        codes[odd] = _mm256_srli_epi16(_mm256_mullo_epi16(pairs, load(layout + 64 + 32 * odd)), 8);
    }
    __m256i places = _mm256_and_si256(_mm256_packus_epi16(codes[0], codes[1]), load(layout + 128));
    places = _mm256_add_epi8(places, load(layout + 160));
    __m256i found = _mm256_shuffle_epi8(both_halves(layout + 192), places);
#pragma GCC unroll 16
    for (int shuffle = 1; shuffle < kShuffles; ++shuffle) {
        places = _mm256_subs_epi8(places, _mm256_set1_epi8(16));
        found = _mm256_xor_si256(found, _mm256_shuffle_epi8(both_halves(layout + 192 + 16 * shuffle), places));
    }
    return found;
}

// Those of 64 codes of a row.
template <int kShuffles>
struct Row {
    __m256i halves[2];
    __attribute__((always_inline)) Row(const uint8_t* codes, int64_t row_bytes, const uint8_t* layout) {
        const uint8_t* eights[8];
#pragma GCC unroll 8
        for (int e = 0; e < 8; ++e) eights[e] = codes + row_bytes * e / 8;
        halves[0] = find<kShuffles / 2>(eights, layout);
        halves[1] = find<kShuffles - kShuffles / 2>(eights + 4, layout);
    }
};

// Calls use.operator()<kShuffles>() with `shuffles`, at most 16, as a constant.
template <int kMost = 16, typename Use>
int64_t with_shuffles(int64_t shuffles, const Use& use) {
    if constexpr (kMost > 2)
        if (shuffles < kMost) return with_shuffles<kMost - 1>(shuffles, use);
    return use.template operator()<kMost>();
}

inline void ask_for(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n, int64_t i) {
    const uint8_t* const next = codes + ids[i + kIdsAhead < n ? i + kIdsAhead : n - 1] * row_bytes;
    __builtin_prefetch(next, 0, 3);
    __builtin_prefetch(next + row_bytes - 1, 0, 3);
}

// Eight of 64 numbers of a row: `numbers` (2, 64) are what is added and what is multiplied with.
template <bool kAround>
inline void write(float* to, __m256i whole, const float* numbers, int64_t at) {
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), _mm256_loadu_ps(numbers + 64 + at));
    const __m256 row = _mm256_add_ps(_mm256_loadu_ps(numbers + at), scaled);
    if (kAround) _mm256_stream_ps(to + at, row);
    else _mm256_storeu_ps(to + at, row);
}

// By hand, for compilers that copy the sums before every use.
inline void add(__m256i& sums, __m256i products) { __asm__("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products)); }

// Four rows of 16-bit numbers times a matrix of such (32, 64, 2): 16 columns at a time, so that what is loaded is used
// again.
template <bool kAround>
void multiply(const uint16_t* rows, const int16_t* matrix, const float* numbers, float* out) {
    for (int64_t first = 0; first < 64; first += 16) {
        __m256i sums[4][2] = {};
        for (int64_t pair = 0; pair < 32; ++pair) {
            const int16_t* const from = matrix + 128 * pair + 2 * first;
            const __m256i low = load(from), high = load(from + 16);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                int32_t two;
                __builtin_memcpy(&two, rows + 64 * r + 2 * pair, sizeof two);
                const __m256i z = _mm256_set1_epi32(two);
                add(sums[r][0], _mm256_madd_epi16(z, low));
                add(sums[r][1], _mm256_madd_epi16(z, high));
            }
        }
        for (int r = 0; r < 4; ++r)
            for (int half = 0; half < 2; ++half) write<kAround>(out + 64 * r, sums[r][half], numbers, first + 8 * half);
    }
}

// Codes in a table of 16 * kParts entries.
template <int kParts>
inline __m256i look_up(const uint8_t* table, __m256i codes) {
    const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    __m256i found[kParts], choices[4] = {codes};  // the highest bit of each chooses
    for (int bit = 1; bit < 4; ++bit) choices[bit] = _mm256_add_epi8(choices[bit - 1], choices[bit - 1]);
#pragma GCC unroll 16
    for (int part = 0; part < kParts; ++part) found[part] = _mm256_shuffle_epi8(both_halves(table + 16 * part), low);
#pragma GCC unroll 4
    for (int left = kParts / 2, bit = 3; left; left /= 2, --bit)
#pragma GCC unroll 8
        for (int part = 0; part < left; ++part)
            found[part] = _mm256_blendv_epi8(found[2 * part], found[2 * part + 1], choices[bit]);
    return found[0];
}

inline __m256i eight_words(const uint16_t* from) { return _mm256_cvtepu16_epi32(load_half(from)); }

// Rows of 64 numbers. No matrix: coordinates are only scaled.
template <int kShuffles>
int64_t look_up_rows(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n, const uint8_t* layout,
                     const int16_t* matrix, const float* numbers, float* out) {
    alignas(32) uint16_t words[4][64];
    for (int64_t i = 0; i < n; ++i) {
        ask_for(codes, row_bytes, ids, n, i);
        const Row<kShuffles> row(codes + ids[i] * row_bytes, row_bytes, layout);
        for (int quarter = 0; quarter < 4; ++quarter) {
            const __m256i half = row.halves[quarter / 2];
            const __m128i bytes = quarter % 2 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
            if (matrix) {
                _mm256_store_si256(reinterpret_cast<__m256i*>(words[i % 4] + 16 * quarter), _mm256_cvtepu8_epi16(bytes));
                continue;
            }
            write<true>(out + 64 * i, _mm256_cvtepu8_epi32(bytes), numbers, 16 * quarter);
            write<true>(out + 64 * i, _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), numbers, 16 * quarter + 8);
        }
        if (matrix && i % 4 == 3) multiply<true>(words[0], matrix, numbers, out + 64 * (i - 3));
    }
    return 0;
}

// Sums of bags of `length` rows, written as 64 numbers.
template <int kShuffles>
int64_t sum_levels(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n, int64_t length,
                   const uint8_t* layout, const int16_t* matrix, const float* numbers, float* out) {
    alignas(32) uint16_t words[4][64];
    for (int64_t i = 0, bag = 0; i + length <= n; ++bag) {
        __m256i both[2] = {}, odd[2] = {};
        for (const int64_t stop = i + length; i < stop; ++i) {
            ask_for(codes, row_bytes, ids, n, i);
            const Row<kShuffles> row(codes + ids[i] * row_bytes, row_bytes, layout);
            for (int half = 0; half < 2; ++half) {
                both[half] = _mm256_add_epi16(both[half], row.halves[half]);
                odd[half] = _mm256_add_epi16(odd[half], _mm256_srli_epi16(row.halves[half], 8));
            }
        }
        uint16_t* const to = words[bag % 4];
        for (int half = 0; half < 2; ++half) {
            const __m256i even = _mm256_sub_epi16(both[half], _mm256_slli_epi16(odd[half], 8));
            const __m256i low = _mm256_unpacklo_epi16(even, odd[half]), high = _mm256_unpackhi_epi16(even, odd[half]);
            _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32 * half), _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32 * half) + 1, _mm256_permute2x128_si256(low, high, 0x31));
        }
        if (!matrix)
            for (int64_t at = 0; at < 64; at += 8) write<false>(out + 64 * bag, eight_words(to + at), numbers, at);
        else if (bag % 4 == 3)
            multiply<false>(words[0], matrix, numbers, out + 64 * (bag - 3));
    }
    return 0;
}

// How many of n rows (a multiple of 8) of 64 levels reach a sum of products with a query (64), in 7 bits, so that two
// products fit in 16.
template <int kShuffles>
int64_t scan_levels(const uint8_t* codes, int64_t n, int64_t row_bytes, const uint8_t* layout, const int8_t* query,
                    int64_t needed) {
    const __m256i ones = _mm256_set1_epi16(1), least = _mm256_set1_epi32(static_cast<int32_t>(needed - 1));
    int64_t reached = 0;
    for (int64_t row = 0; row < n; row += 8) {
        __m256i sums[8];
        for (int r = 0; r < 8; ++r, codes += row_bytes) {
            __builtin_prefetch(codes + kBytesAhead, 0, 3);
            const Row<kShuffles> levels(codes, row_bytes, layout);
            const __m256i low = _mm256_maddubs_epi16(levels.halves[0], load(query));
            const __m256i high = _mm256_maddubs_epi16(levels.halves[1], load(query + 32));
            sums[r] = _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
        }
        for (int step = 4; step > 1; step /= 2)
            for (int r = 0; r < step; ++r) sums[r] = _mm256_hadd_epi32(sums[2 * r], sums[2 * r + 1]);
        const __m256i low = _mm256_permute2x128_si256(sums[0], sums[1], 0x20);
        const __m256i whole = _mm256_add_epi32(low, _mm256_permute2x128_si256(sums[0], sums[1], 0x31));
        const __m256 enough = _mm256_castsi256_ps(_mm256_cmpgt_epi32(whole, least));
        reached += __builtin_popcount(static_cast<uint32_t>(_mm256_movemask_ps(enough)));
    }
    return reached;
}

}  // namespace

extern "C" {

int64_t mgqe_limits_lookup_avx2(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n,
                                const uint8_t* layout, int64_t shuffles, const int16_t* matrix, const float* numbers,
                                float* out) {
    return with_shuffles(shuffles, [&]<int kShuffles>() {
        return look_up_rows<kShuffles>(codes, row_bytes, ids, n, layout, matrix, numbers, out);
    });
}

int64_t mgqe_limits_sum_levels_avx2(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n,
                                    int64_t length, const uint8_t* layout, int64_t shuffles, const int16_t* matrix,
                                    const float* numbers, float* out) {
    return with_shuffles(shuffles, [&]<int kShuffles>() {
        return sum_levels<kShuffles>(codes, row_bytes, ids, n, length, layout, matrix, numbers, out);
    });
}

// How many of n rows (a multiple of 64) reach a sum, a code of so many bits each looked up in a table (columns, 256).
int64_t mgqe_limits_scan_bytes_avx2(const uint8_t* codes, int64_t n, int64_t row_bytes, const int32_t* bits,
                                    int64_t number, const uint8_t* tables, int64_t needed) {
    mgqe_piece pieces[64] = {};
    for (int64_t j = 0; j < number; ++j) pieces[j].bits = bits[j];
    mgqe_tier tier = {};
    tier.num_subspaces = static_cast<int32_t>(number);
    tier.layout = pieces;
    mgqe_code_group groups[64];
    const int64_t num_groups = group_codes(tier, groups);
    alignas(32) uint8_t columns[72 * 64];
    const __m256i least = _mm256_set1_epi8(static_cast<char>(needed));
    int64_t reached = 0;
    for (int64_t row = 0; row < n; row += 64, codes += 64 * row_bytes) {
        spread_columns({codes, 1, row_bytes, groups, num_groups, codes + kBytesAhead}, columns, 64);
        __m256i sums[2] = {};
        for (int64_t j = 0; j < number; ++j)
            for (int half = 0; half < 2; ++half) {
                const __m256i column = load(columns + 64 * j + 32 * half);
                const uint8_t* const table = tables + 256 * j;
                const __m256i found = bits[j] <= 4   ? look_up<1>(table, column)
                                      : bits[j] == 5 ? look_up<2>(table, column)
                                      : bits[j] == 6 ? look_up<4>(table, column)
                                      : bits[j] == 7 ? look_up<8>(table, column)
                                                     : look_up<16>(table, column);
                sums[half] = _mm256_adds_epu8(sums[half], found);
            }
        for (const __m256i sum : sums) {
            const __m256i enough = _mm256_cmpeq_epi8(_mm256_max_epu8(sum, least), sum);
            reached += __builtin_popcount(static_cast<uint32_t>(_mm256_movemask_epi8(enough)));
        }
    }
    return reached;
}

// The same of five bytes, without vectors: a load for each code.
int64_t mgqe_limits_scan_five(const uint8_t* codes, int64_t n, const uint8_t* tables, int64_t needed) {
    int64_t reached = 0;
    for (int64_t row = 0; row < n; ++row, codes += 5) {
        __builtin_prefetch(codes + kBytesAhead, 0, 3);
        uint32_t sum = 0;
        for (int j = 0; j < 5; ++j) sum += tables[256 * j + codes[j]];
        reached += sum >= needed;
    }
    return reached;
}

int64_t mgqe_limits_scan_levels_avx2(const uint8_t* codes, int64_t n, int64_t row_bytes, const uint8_t* layout,
                                     int64_t shuffles, const int8_t* query, int64_t needed) {
    return with_shuffles(shuffles, [&]<int kShuffles>() {
        return scan_levels<kShuffles>(codes, n, row_bytes, layout, query, needed);
    });
}
}
