// Searches with AVX-512 VBMI and VNNI, each a loop that does all the work that no search does without: codes are read
// once, moved to columns and looked up, or their levels multiplied with a query, and sums compared, all in registers.
// Rows are followed by 64 bytes that may be read.
#include <stdint.h>

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

#include <new>

#include "_fused_levels.h"
#include "columns_vbmi.h"

namespace {

constexpr int64_t kBytesAhead = 8192;

// Codes of so many bits in a table of 256 bytes.
inline V look_up(const uint8_t* table, int32_t bits, V codes) {
    if (bits <= 6) return _mm512_permutexvar_epi8(codes, load(table));
    const V low = _mm512_permutex2var_epi8(load(table), codes, load(table + 64));
    if (bits == 7) return low;
    const V high = _mm512_permutex2var_epi8(load(table + 128), codes, load(table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

inline void ask_for(const uint8_t* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + kBytesAhead + at, 0, 3);
}

// How many of 64 sums reach `needed`.
inline int64_t reached(V sums, int64_t needed) {
    return __builtin_popcountll(_mm512_cmpge_epu8_mask(sums, _mm512_set1_epi8(static_cast<char>(needed))));
}

template <class Load>
int64_t scan(const PackedBlocks& from, const int32_t* bits, int64_t D, const uint8_t* tables, int64_t needed) {
    alignas(64) char memory[8 * sizeof(Load)];
    Load* const loads = reinterpret_cast<Load*>(memory);
    for (int64_t g = 0; g < from.num_groups; ++g) new (loads + g) Load(from, from.groups[g]);
    int64_t found = 0;
    const uint8_t* rows = from.codes;
    for (int64_t block = 0; block < from.number; ++block, rows += 64 * from.row_bytes) {
        ask_for(rows, 64 * from.row_bytes);
        V sums = _mm512_setzero_si512();
        for (int64_t g = 0; g < from.num_groups; ++g) {
            V z[8];
            for (int i = 0; i < 8; ++i) z[i] = loads[g](rows + 8 * i * from.row_bytes);
            const int64_t first = from.groups[g].first;
            const auto add = [&](int c) {
                if (first + c < D)
                    sums = _mm512_adds_epu8(sums, look_up(tables + 256 * (first + c), bits[first + c], z[c]));
            };
            if (from.groups[g].lanes >> 32) {
                transpose<8>(z);
#pragma GCC unroll 8
                for (int c = 0; c < 8; ++c) add(c);
            } else {
                transpose<4>(z);
#pragma GCC unroll 4
                for (int c = 0; c < 4; ++c) add(c);
            }
        }
        found += reached(sums, needed);
    }
    return found;
}

template <int kBytes>
int64_t scan_few(const PackedBlocks& from, const uint8_t* tables, int64_t needed) {
    int64_t found = 0;
    const uint8_t* rows = from.codes;
    for (int64_t block = 0; block < from.number; ++block, rows += 64 * kBytes) {
        ask_for(rows, 64 * kBytes);
        V z[kBytes], sums = _mm512_setzero_si512();
        for (int i = 0; i < kBytes; ++i) z[i] = load(rows + 64 * i);
#pragma GCC unroll 8
        for (int c = 0; c < kBytes; ++c) {
            const V column = FewBytes<kBytes>::column(z, FewBytes<kBytes>::kOrders.of[c]);
            sums = _mm512_adds_epu8(sums, look_up(tables + 256 * c, 8, column));
        }
        found += reached(sums, needed);
    }
    return found;
}

inline V add_halves(V a, V b) { return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)); }
inline V add_rest(V a, V b) { return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)); }
inline V add_lanes(V a, V b) {
    return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}

// Products of 64 levels of each row with a query, added up, 16 rows at a time.
template <int kKinds>
int64_t scan_levels(const uint8_t* rows, int64_t n, int64_t row_bytes, const uint8_t* layout, const int8_t* values,
                    int64_t needed) {
    const Levels levels(layout);
    const V least = _mm512_set1_epi32(static_cast<int32_t>(needed)), query = load(values);
    int64_t found = 0;
    for (int64_t i = 0; i + 16 <= n; i += 16, rows += 16 * row_bytes) {
        ask_for(rows, 16 * row_bytes);
        V fours[4];
#pragma GCC unroll 4
        for (int f = 0; f < 4; ++f) {
            V parts[4];
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                const V row = levels.template operator()<kKinds>(load(rows + (4 * f + r) * row_bytes));
                parts[r] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), row, query);
            }
            fours[f] = add_rest(add_halves(parts[0], parts[1]), add_halves(parts[2], parts[3]));
        }
        const V sums = add_lanes(add_lanes(fours[0], fours[1]), add_lanes(fours[2], fours[3]));
        found += __builtin_popcount(_mm512_cmpge_epi32_mask(sums, least));
    }
    return found;
}

// The same of two rows of at most 32 bytes at a time: 32 levels of each in a vector, and the others, of at most kRest
// kinds, in another. So there is less to be added up in the end.
template <int kKinds, int kRest>
int64_t scan_pairs(const uint8_t* rows, int64_t n, int64_t row_bytes, const uint8_t* layout, const int8_t* values,
                   int64_t needed) {
    const Levels first(layout), second(layout + kLayoutBytes);
    const V least = _mm512_set1_epi32(static_cast<int32_t>(needed));
    const V low = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    const V high = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + 32)));
    int64_t found = 0;
    for (int64_t i = 0; i + 16 <= n; i += 16, rows += 16 * row_bytes) {
        ask_for(rows, 16 * row_bytes);
        V fours[2];
#pragma GCC unroll 2
        for (int f = 0; f < 2; ++f) {
            V parts[4];
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                const V two = load(rows + (4 * f + r) * 2 * row_bytes);
                parts[r] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first.template operator()<kKinds>(two), low);
                parts[r] = _mm512_dpbusd_epi32(parts[r], second.template operator()<kRest>(two), high);
            }
            fours[f] = add_rest(add_halves(parts[0], parts[1]), add_halves(parts[2], parts[3]));
        }
        found += __builtin_popcount(_mm512_cmpge_epi32_mask(add_lanes(fours[0], fours[1]), least));
    }
    return found;
}

}  // namespace

extern "C" {

// How many of n rows (a multiple of 64) reach a sum, a code of so many bits each looked up in a table (columns, 256).
int64_t mgqe_limits_scan_bytes(const uint8_t* codes, int64_t n, int64_t row_bytes, const int32_t* bits, int64_t columns,
                              const uint8_t* tables, int64_t needed) {
    mgqe_piece pieces[64] = {};
    for (int64_t j = 0; j < columns; ++j) pieces[j].bits = bits[j];
    mgqe_tier tier = {};
    tier.num_subspaces = static_cast<int32_t>(columns);
    tier.layout = pieces;
    mgqe_code_group groups[64];
    const PackedBlocks from = {codes, n / 64, row_bytes, groups, group_codes(tier, groups), codes};
    bool bytes = true;
    for (int64_t g = 0; g < from.num_groups; ++g) bytes &= groups[g].whole_bytes;
    if (bytes && row_bytes == 5) return scan_few<5>(from, tables, needed);
    const auto way = row_bytes > 64 || from.num_groups > 8 ? nullptr
                     : row_bytes <= 8                      ? (bytes ? scan<Near<0, true>> : scan<Near<0, false>>)
                     : row_bytes <= 16                     ? (bytes ? scan<Near<1, true>> : scan<Near<1, false>>)
                     : row_bytes <= 32                     ? (bytes ? scan<Near<2, true>> : scan<Near<2, false>>)
                                                           : (bytes ? scan<Near<4, true>> : scan<Near<4, false>>);
    return way ? way(from, bits, columns, tables, needed) : -1;
}

// How many of n rows (a multiple of 16) reach a sum of products of levels with a query (64). `rest`: the kinds of the
// last 32 codes where two layouts are for two rows at a time; 0: one layout, for one row.
int64_t mgqe_limits_scan_levels(const uint8_t* codes, int64_t n, int64_t row_bytes, const uint8_t* layout, int64_t kinds,
                               int64_t rest, const int8_t* query, int64_t needed) {
    return with_kinds(kinds, [&]<int kKinds>() {
        const auto way = !rest ? scan_levels<kKinds> : rest == 1 ? scan_pairs<kKinds, 1> : scan_pairs<kKinds, kKinds>;
        return way(codes, n, row_bytes, layout, query, needed);
    });
}

}

#endif
