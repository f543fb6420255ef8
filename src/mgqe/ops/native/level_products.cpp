// Rows of levels times queries, in whole numbers, with AVX-512 VBMI and VNNI.
//
// A row's codes are moved to words of eight, spread to bytes and looked up in registers, 64 at once; then four products
// of bytes are added at a time.
#include "level_rows.h"

#include <immintrin.h>

namespace {

using V = __m512i;
constexpr int kAtOnce = 16;      // rows whose sums are compared together
constexpr int kLotRows = 8;      // rows that are multiplied with a lot of queries, or two
constexpr int64_t kFewQueries = 6;  // that are faster one by one than as a lot
constexpr int kScored = 8;       // rows that are scored side by side, since each sum waits for the one before

// By hand, for compilers that copy the sums before every use.
inline void add_products(V& sums, V unsigned_bytes, V bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(bytes));
}

// ---- codes to bytes ----

template <bool kFives, bool kSixes, bool kSevens>
inline V levels_of(V places, const V* levels, const uint64_t* lanes) {
    V found = kFives ? _mm512_permutexvar_epi8(places, levels[0]) : _mm512_permutexvar_epi8(places, levels[1]);
    if (kFives && kSixes) found = _mm512_mask_permutexvar_epi8(found, lanes[1], places, levels[1]);
    if (kSevens) {
        const V wide = _mm512_permutex2var_epi8(levels[2], places, levels[3]);
        found = kFives || kSixes ? _mm512_mask_mov_epi8(found, lanes[2], wide) : wide;
    }
    return found;
}

template <bool kFives, bool kSixes, bool kSevens>
void unpack_vector(const mgqe_level_rows& of, const mgqe_level_vector& vector, const uint8_t* codes,
                   const uint8_t* end, int64_t rows, const uint8_t* upcoming, uint8_t* bytes) {
    const V from = _mm512_loadu_si512(vector.from), shifts = _mm512_loadu_si512(vector.shifts);
    const V masks = _mm512_loadu_si512(vector.masks), places = _mm512_loadu_si512(vector.places);
    V levels[4];
    for (int i = 0; i < 4; ++i) levels[i] = _mm512_loadu_si512(of.levels + 64 * i);
    const int64_t step = of.together * of.row_bytes, out_step = 64 * of.number;
    const int64_t groups = (rows + of.together - 1) / of.together;
    const auto unpack = [&](V loaded, uint8_t* to) {
        const V words = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(from, loaded));
        const V named = _mm512_ternarylogic_epi64(words, masks, places, 0xea);  // words & masks | places
        _mm512_store_si512(to, levels_of<kFives, kSixes, kSevens>(named, levels, vector.lanes));
    };
    const uint8_t* at = codes + vector.at;
    int64_t whole = (end - at) >= 64 ? (end - at - 64) / step + 1 : 0;
    whole = whole < groups ? whole : groups;
    int64_t i = 0;
    for (; i < whole; ++i, at += step, upcoming += step, bytes += out_step) {
        __builtin_prefetch(upcoming, 0, 1);
        unpack(_mm512_loadu_si512(at), bytes);
    }
    for (; i < groups; ++i, at += step, bytes += out_step) {
        const int64_t left = end - at;
        const __mmask64 there = left >= 64 ? ~0ull : left > 0 ? (1ull << left) - 1 : 0;
        unpack(_mm512_maskz_loadu_epi8(there, at), bytes);
    }
}

// Rows that follow one another, at most kLevelStep.
void unpack_rows(const mgqe_level_rows& of, const uint8_t* codes, const uint8_t* end, int64_t rows,
                 const uint8_t* upcoming, uint8_t* bytes) {
    for (int64_t v = 0; v < of.number; ++v) {
        const mgqe_level_vector& vector = of.vectors[v];
        const auto with = [&](auto kernel) { kernel(of, vector, codes, end, rows, upcoming, bytes + 64 * v); };
        switch ((vector.lanes[0] ? 1 : 0) | (vector.lanes[1] ? 2 : 0) | (vector.lanes[2] ? 4 : 0)) {
            case 2:
                with(unpack_vector<false, true, false>);
                break;
            case 3:
                with(unpack_vector<true, true, false>);
                break;
            case 4:
                with(unpack_vector<false, false, true>);
                break;
            case 5:
                with(unpack_vector<true, false, true>);
                break;
            case 6:
                with(unpack_vector<false, true, true>);
                break;
            case 7:
                with(unpack_vector<true, true, true>);
                break;
            default:
                with(unpack_vector<true, false, false>);
        }
    }
}

// ---- one query at a time ----

inline V add_halves(V a, V b) { return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)); }
inline V add_rest(V a, V b) { return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)); }
inline V add_lanes(V a, V b) {
    return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}

// The sums of 16 rows, kTogether of them in each vector, in order.
template <int kTogether>
inline V row_sums(const V* parts) {
    V quarters[4 / kTogether];  // of four vectors: in each quarter, the sum of each
#pragma GCC unroll 4
    for (int i = 0; i < 4 / kTogether; ++i)
        quarters[i] = add_rest(add_halves(parts[4 * i], parts[4 * i + 1]), add_halves(parts[4 * i + 2], parts[4 * i + 3]));
    if constexpr (kTogether == 1)
        return add_lanes(add_lanes(quarters[0], quarters[1]), add_lanes(quarters[2], quarters[3]));
    if constexpr (kTogether == 2)
        return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15),
                                        add_lanes(quarters[0], quarters[1]));
    if constexpr (kTogether == 4)
        return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                        quarters[0]);
}

// What every row taken together is multiplied with.
template <int kTogether>
inline V query_vector(const int8_t* values, int64_t v) {
    const int8_t* const from = values + v * (64 / kTogether);
    if constexpr (kTogether == 1) return _mm512_loadu_si512(from);
    if constexpr (kTogether == 2)
        return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    if constexpr (kTogether == 4)
        return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// kNumber: of vectors, 0 for any.
template <int kTogether, int kNumber>
int32_t pass_query(int64_t number, const uint8_t* bytes, int64_t first, int64_t rows, const int8_t* values,
                   int32_t needed, uint16_t* passed) {
    constexpr int kParts = kAtOnce / kTogether;
    if (kNumber) number = kNumber;
    V query[kNumber ? kNumber : 1];
    for (int v = 0; v < kNumber; ++v) query[v] = query_vector<kTogether>(values, v);
    const V least = _mm512_set1_epi32(needed);
    int32_t count = 0;
    for (int64_t row = 0; row < rows; row += kAtOnce) {
        V parts[kParts];
#pragma GCC unroll 16
        for (int i = 0; i < kParts; ++i) {
            parts[i] = _mm512_setzero_si512();
            for (int64_t v = 0; v < number; ++v, bytes += 64)
                parts[i] = _mm512_dpbusd_epi32(parts[i], _mm512_load_si512(bytes),
                                               kNumber ? query[v] : query_vector<kTogether>(values, v));
        }
        uint32_t mask = _mm512_cmpge_epi32_mask(row_sums<kTogether>(parts), least);
        if (rows - row < kAtOnce) mask &= (1u << (rows - row)) - 1;
        for (; mask; mask &= mask - 1) passed[count++] = static_cast<uint16_t>(first + row + __builtin_ctz(mask));
    }
    return count;
}

template <int kTogether>
int32_t pass_query(int64_t number, const uint8_t* bytes, int64_t first, int64_t rows, const int8_t* values,
                   int32_t needed, uint16_t* passed) {
    switch (number) {
        case 1:
            return pass_query<kTogether, 1>(number, bytes, first, rows, values, needed, passed);
        case 2:
            return pass_query<kTogether, 2>(number, bytes, first, rows, values, needed, passed);
        default:
            return pass_query<kTogether, 0>(number, bytes, first, rows, values, needed, passed);
    }
}

// ---- lots of queries ----

// One lot of queries or two, a query a lane: adds to the sums of kLotRows rows.
template <int kTogether, int kLots>
inline void multiply_lots(const uint8_t* bytes, int64_t number, const int8_t* lots, int64_t lot_bytes,
                          V (&sums)[kLotRows][kLots]) {
    constexpr int64_t kPiece = 64 / kTogether;
    const int64_t group_bytes = 64 * number;
    for (const uint8_t* const end = bytes + group_bytes; bytes < end; bytes += 64)
#pragma GCC unroll 1
        for (int64_t t = 0; t < kPiece; t += 4, lots += 4 * kLevelLot) {
            V query[kLots];
#pragma GCC unroll 2
            for (int l = 0; l < kLots; ++l) query[l] = _mm512_load_si512(lots + l * lot_bytes);
#pragma GCC unroll 8
            for (int r = 0; r < kLotRows; ++r) {
                int32_t four;
                __builtin_memcpy(&four, bytes + t + r / kTogether * group_bytes + r % kTogether * kPiece, 4);
                const V z = _mm512_set1_epi32(four);
#pragma GCC unroll 2
                for (int l = 0; l < kLots; ++l) add_products(sums[r][l], z, query[l]);
            }
        }
}

// Sums begin with what they need, negative, so that their signs say which fall short.
template <int kTogether, int kLots>
void pass_lots(const mgqe_level_rows& of, const uint8_t* bytes, int64_t first, int64_t rows,
               const mgqe_level_queries& queries, int64_t first_lot, const int32_t* needs, const uint8_t* bias_codes,
               uint16_t* passed, int32_t* counts) {
    const int64_t lot_bytes = queries.coordinates * kLevelLot;
    const int8_t* const lots = queries.by_lot + first_lot * lot_bytes;
    alignas(64) uint32_t masks[kLevelStep];  // of each row: which queries it does not reach
    V least[kLots];
    for (int l = 0; l < kLots; ++l)
        least[l] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_load_si512(needs + (first_lot + l) * kLevelLot));
    for (int64_t row = 0; row < rows; row += kLotRows, bytes += kLotRows / kTogether * 64 * of.number) {
        V sums[kLotRows][kLots];
#pragma GCC unroll 8
        for (int r = 0; r < kLotRows; ++r)
#pragma GCC unroll 2
            for (int l = 0; l < kLots; ++l) sums[r][l] = least[l];
        multiply_lots<kTogether, kLots>(bytes, of.number, lots, lot_bytes, sums);
#pragma GCC unroll 8
        for (int r = 0; r < kLotRows; ++r) {
            uint32_t mask = kLots == 1 ? 0xffff0000u : 0;
#pragma GCC unroll 2
            for (int l = 0; l < kLots; ++l) {
                if (bias_codes && row + r < rows)
                    sums[r][l] = _mm512_add_epi32(
                        sums[r][l], _mm512_load_si512(queries.biases + ((first_lot + l) * 256 + bias_codes[row + r]) *
                                                                           kLevelLot));
                mask |= static_cast<uint32_t>(_mm512_movepi32_mask(sums[r][l])) << (16 * l);
            }
            masks[row + r] = mask;
        }
    }
    for (int64_t row = 0; row < rows; row += 16) {
        uint32_t some = _mm512_cmpneq_epi32_mask(_mm512_load_si512(masks + row), _mm512_set1_epi32(-1));
        if (rows - row < 16) some &= (1u << (rows - row)) - 1;
        for (; some; some &= some - 1) {
            const int64_t at = row + __builtin_ctz(some);
            for (uint32_t mask = ~masks[at]; mask; mask &= mask - 1) {
                const int64_t q = first_lot * kLevelLot + __builtin_ctz(mask);
                passed[q * kMostLevelRows + counts[q]++] = static_cast<uint16_t>(first + at);
            }
        }
    }
}

// Rows [first, first + rows) of a tile, from their bytes.
template <int kTogether>
void pass_rows(const mgqe_level_rows& of, const uint8_t* bytes, int64_t first, int64_t rows,
               const mgqe_level_queries& queries, const int32_t* needs, const uint8_t* bias_codes, uint16_t* passed,
               int32_t* counts) {
    if (queries.number <= kFewQueries && !bias_codes) {
        for (int64_t q = 0; q < queries.number; ++q)
            counts[q] += pass_query<kTogether>(of.number, bytes, first, rows, queries.values + q * queries.coordinates,
                                               needs[q], passed + q * kMostLevelRows + counts[q]);
        return;
    }
    const int64_t lots = (queries.number + kLevelLot - 1) / kLevelLot;
    int64_t lot = 0;
    for (; lot + 2 <= lots; lot += 2)
        pass_lots<kTogether, 2>(of, bytes, first, rows, queries, lot, needs, bias_codes, passed, counts);
    for (; lot < lots; ++lot)
        pass_lots<kTogether, 1>(of, bytes, first, rows, queries, lot, needs, bias_codes, passed, counts);
}

// ---- scores ----

// Keeps the compiler from gathering the sums of several rows into one vector.
inline void alone(float& sum) { __asm__("" : "+x"(sum)); }

// The products of a row, 64 bytes of it at a time.
inline void multiply_row(const mgqe_level_rows& of, const uint8_t* bytes, int64_t row, const float* values, int64_t D,
                         float* products) {
    const int64_t piece = 64 / of.together;
    const uint8_t* from = bytes + row / of.together * of.number * 64 + row % of.together * piece;
    const __m512i middle = _mm512_set1_epi32(128);
    for (int64_t k = 0; k < D; k += piece, from += 64)
        for (int64_t t = 0; t < piece; t += 16) {
            const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + t)));
            const __m512 z = _mm512_cvtepi32_ps(_mm512_sub_epi32(wide, middle));
            _mm512_storeu_ps(products + k + t, _mm512_mul_ps(z, _mm512_loadu_ps(values + k + t)));
        }
}

constexpr int64_t kMostProducts = 1024 + 16;  // not a multiple of a page, which loads and stores would take for the same

}  // namespace

void mgqe_pass_levels(const mgqe_level_rows& of, const uint8_t* codes, const uint8_t* end, int64_t rows,
                      const uint8_t* upcoming, const mgqe_level_queries& queries, const int32_t* needs,
                      const uint8_t* bias_codes, uint8_t* bytes, uint16_t* passed, int32_t* counts) {
    const auto pass = of.together == 1 ? pass_rows<1> : of.together == 2 ? pass_rows<2> : pass_rows<4>;
    for (int64_t q = 0; q < queries.number; ++q) counts[q] = 0;
    for (int64_t first = 0; first < rows; first += kLevelStep) {
        const int64_t ahead = first * of.row_bytes, left = rows - first, some = left < kLevelStep ? left : kLevelStep;
        unpack_rows(of, codes + ahead, end, some, upcoming + ahead, bytes);
        pass(of, bytes, first, some, queries, needs, bias_codes ? bias_codes + first : nullptr, passed, counts);
    }
}

void mgqe_score_levels(const mgqe_level_rows& of, const uint8_t* codes, const uint8_t* end,
                       const mgqe_level_hit* hits, int64_t count, int64_t D, uint8_t* bytes, float* scores) {
    alignas(64) float products[kScored][kMostProducts];
    for (int64_t i = 0; i < count; i += kScored) {
        const int64_t left = count - i, some = left < kScored ? left : kScored;
        const float* rows[kScored];
        float sums[kScored];
        for (int64_t r = 0; r < kScored; ++r) {
            const mgqe_level_hit& hit = hits[i + (r < some ? r : 0)];
            if (r < some) {
                const int64_t within = hit.row % of.together;
                const uint8_t* const from = codes + (hit.row - within) * of.row_bytes;
                unpack_rows(of, from, end, of.together, from, bytes);
                multiply_row(of, bytes, within, hit.values, D, products[r]);
            }
            rows[r] = products[r < some ? r : 0];
            sums[r] = rows[r][0] + hit.start;
        }
        for (int64_t j = 1; j < D; ++j)
#pragma GCC unroll 8
            for (int r = 0; r < kScored; ++r) alone(sums[r] += rows[r][j]);
        for (int64_t r = 0; r < some; ++r) scores[i + r] = sums[r];
    }
}
