// Parts of look-ups, bags and searches alone, as tight loops: what no kernel with the same codes can do without.
// Data other than codes in memory lies in the first-level cache. Each function returns a number that depends on all it read.
#include <immintrin.h>
#include <stdint.h>

namespace {

constexpr int64_t kAhead = 64;  // ids: more did not help
constexpr int64_t kRows = 16, kStep = 64;  // rows in the cache, and bytes from one to the next

int64_t total(__m256i v) {
    alignas(32) int64_t four[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(four), v);
    return four[0] + four[1] + four[2] + four[3];
}

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
__m256i both_halves(const void* from) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

}  // namespace

extern "C" {

int64_t mgqe_limits_vbmi() {
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
    return 1;
#else
    return 0;
#endif
}

// All bytes (a multiple of 256), once.
int64_t mgqe_limits_read(const uint8_t* bytes, int64_t n) {
    __m256i sums[8] = {};
    for (int64_t at = 0; at + 256 <= n; at += 256)
        for (int i = 0; i < 8; ++i) sums[i] = _mm256_add_epi64(sums[i], load(bytes + at + 32 * i));
    for (int i = 1; i < 8; ++i) sums[0] = _mm256_add_epi64(sums[0], sums[i]);
    return total(sums[0]);
}

// The first and the last byte of the rows of n ids, asked for ahead.
int64_t mgqe_limits_rows(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (i + kAhead < n) {
            const uint8_t* const next = codes + ids[i + kAhead] * row_bytes;
            __builtin_prefetch(next, 0, 3);
            __builtin_prefetch(next + row_bytes - 1, 0, 3);
        }
        const uint8_t* const row = codes + ids[i] * row_bytes;
        sum += row[0] + row[row_bytes - 1];
    }
    return sum;
}

// Levels of 64 codes of n rows (`wide`: of 7 bits, whose levels are in two tables more), added up in 16 bits, or
// multiplied with a query. `cache`: 1,280 bytes.
int64_t mgqe_limits_levels(const uint8_t* cache, int64_t n, int64_t wide, int64_t multiplied) {
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
    const uint8_t* const tables = cache + kRows * kStep;
    const __m512i a = _mm512_loadu_si512(tables), b = _mm512_loadu_si512(tables + 64);
    const __m512i c = _mm512_loadu_si512(tables + 128), d = _mm512_loadu_si512(tables + 192);
    const __mmask64 sevens = static_cast<__mmask64>(*reinterpret_cast<const int64_t*>(tables));
    __m512i sums[4] = {};
    const auto find = [&](int64_t i) {
        const __m512i row = _mm512_loadu_si512(cache + i % kRows * kStep);
        const __m512i words = _mm512_multishift_epi64_epi8(b, _mm512_permutexvar_epi8(a, row));
        const __m512i places = _mm512_ternarylogic_epi64(words, c, d, 0xea);
        const __m512i found = _mm512_permutex2var_epi8(a, places, b);
        return wide ? _mm512_mask_mov_epi8(found, sevens, _mm512_permutex2var_epi8(c, places, d)) : found;
    };
    if (multiplied)
        for (int64_t i = 0; i < n; ++i) sums[i % 4] = _mm512_dpbusd_epi32(sums[i % 4], find(i), d);
    else
        for (int64_t i = 0; i < n; ++i) {
            const __m512i found = find(i);
            sums[0] = _mm512_add_epi16(sums[0], found);
            sums[1] = _mm512_add_epi16(sums[1], _mm512_srli_epi16(found, 8));
        }
    return _mm512_reduce_add_epi64(
        _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3])));
#else
    return 0 * (*cache + n + wide + multiplied);
#endif
}

// The same with AVX2, the unpacking of codes left out: `segments` shuffles of 16 levels for each 32 codes.
int64_t mgqe_limits_levels_avx2(const uint8_t* cache, int64_t n, int64_t segments, int64_t multiplied) {
    const uint8_t* const tables = cache + kRows * kStep;
    const __m256i sixteen = _mm256_set1_epi8(16), query = load(tables), ones = _mm256_set1_epi16(1);
    __m256i sums[2] = {};
    for (int64_t i = 0; i < n; ++i)
        for (int half = 0; half < 2; ++half) {
            __m256i places = load(cache + i % kRows * kStep + 32 * half), found = _mm256_setzero_si256();
            for (int64_t segment = 0; segment < segments; ++segment) {
                found = _mm256_xor_si256(found, _mm256_shuffle_epi8(both_halves(tables + 16 * segment), places));
                places = _mm256_subs_epi8(places, sixteen);
            }
            if (multiplied) {
                // In 7 bits, so that two products fit in 16.
                const __m256i pairs = _mm256_maddubs_epi16(found, query);
                sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, ones));
            } else {
                sums[0] = _mm256_add_epi16(sums[0], found);
                sums[1] = _mm256_add_epi16(sums[1], _mm256_srli_epi16(found, 8));
            }
        }
    return total(_mm256_add_epi64(sums[0], sums[1]));
}

// Rows of so many coordinates times a matrix of `dim` columns with AVX2, n of them, four at a time: 16 products in an
// operation, and one to add them.
int64_t mgqe_limits_matrix_avx2(const uint8_t* cache, int64_t n, int64_t coordinates, int64_t dim) {
    __m256i sums[4] = {};
    for (int64_t i = 0; i < n; i += 4)
        for (int64_t step = 0; step < coordinates * dim / 16; ++step) {
            const __m256i values = load(cache + step % 16 * 32);
            for (int row = 0; row < 4; ++row) {
                const __m256i z = _mm256_set1_epi64x(*reinterpret_cast<const int64_t*>(cache + 512 + 64 * row + step % 8));
                sums[row] = _mm256_add_epi32(sums[row], _mm256_madd_epi16(z, values));
            }
        }
    return total(_mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3])));
}

// Codes of a byte of n rows, looked up in tables of 256 bytes, a table for each of `codes` columns, and added up.
int64_t mgqe_limits_tables(const uint8_t* cache, int64_t n, int64_t codes) {
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
    const uint8_t* const tables = cache + kRows * kStep;
    __m512i sums[4] = {};
    for (int64_t i = 0; i < n; i += 256)
        for (int64_t j = 0; j < codes; ++j) {
            const uint8_t* const table = tables + j % 4;
            const __m512i a = _mm512_loadu_si512(table), b = _mm512_loadu_si512(table + 64);
            const __m512i c = _mm512_loadu_si512(table + 128), d = _mm512_loadu_si512(table + 192);
            for (int v = 0; v < 4; ++v) {
                const __m512i column = _mm512_loadu_si512(cache + (j + 4 * v) % kRows * kStep);
                const __m512i low = _mm512_permutex2var_epi8(a, column, b);
                const __m512i high = _mm512_permutex2var_epi8(c, column, d);
                sums[v] = _mm512_add_epi8(sums[v], _mm512_mask_blend_epi8(_mm512_movepi8_mask(column), low, high));
            }
        }
    return _mm512_reduce_add_epi64(
        _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3])));
#else
    return 0 * (*cache + n + codes);
#endif
}

// n numbers (a multiple of 16) looked for among 2^bits levels, bits from 5 to 8: five steps in registers, the others in
// the cache. `numbers`: of the same bytes again and again.
int64_t mgqe_limits_search(const float* numbers, int64_t n, int64_t bits, const float* levels) {
#if defined(__AVX512F__)
    const __m512 first = _mm512_loadu_ps(levels), second = _mm512_loadu_ps(levels + 16);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 x = _mm512_loadu_ps(numbers + i % 256);
        __m512i place = _mm512_setzero_si512();
        const auto step = [&](__m512 low, int32_t half) {
            place = _mm512_mask_add_epi32(place, _mm512_cmp_ps_mask(low, x, _CMP_LT_OQ), place, _mm512_set1_epi32(half));
        };
        for (int32_t half = 16; half; half /= 2)
            step(_mm512_permutex2var_ps(first, _mm512_add_epi32(place, _mm512_set1_epi32(half - 1)), second), half);
        place = _mm512_slli_epi32(place, static_cast<unsigned>(bits - 5));
        for (int32_t half = (1 << (bits - 5)) / 2; half; half /= 2)
            step(_mm512_i32gather_ps(_mm512_add_epi32(place, _mm512_set1_epi32(half - 1)), levels, 4), half);
        sum = _mm512_add_epi32(sum, place);
    }
    return _mm512_reduce_add_epi32(sum);
#else
    return 0 * static_cast<int64_t>(*numbers + static_cast<float>(n + bits) + *levels);
#endif
}

// n rows of so many bytes moved to columns: 64 rows are as many vectors as a row has bytes, and a shuffle takes bytes from
// two. So a column needs a shuffle for each doubling of the vectors that it is in.
int64_t mgqe_limits_columns(const uint8_t* cache, int64_t n, int64_t row_bytes) {
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
    const __m512i order = _mm512_loadu_si512(cache + kRows * kStep);
    int64_t stages = 1;
    while (int64_t{1} << stages < row_bytes) ++stages;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 64)
        for (int64_t group = 0; group < row_bytes; group += 8) {
            __m512i columns[8];
            for (int c = 0; c < 8; ++c) columns[c] = _mm512_loadu_si512(cache + (i / 64 + c) % kRows * kStep);
            for (int64_t stage = 0; stage < stages; ++stage)
                for (int c = 0; c < 8; ++c) columns[c] = _mm512_permutex2var_epi8(columns[c], order, columns[c ^ 1]);
            for (int c = 0; c < 8 && group + c < row_bytes; ++c) sum = _mm512_add_epi8(sum, columns[c]);
        }
    return _mm512_reduce_add_epi64(sum);
#else
    return 0 * (*cache + n + row_bytes);
#endif
}

// mgqe_limits_tables with AVX2: 16 shuffles and 15 choices for each 32 codes.
int64_t mgqe_limits_tables_avx2(const uint8_t* cache, int64_t n, int64_t codes) {
    const uint8_t* const tables = cache + kRows * kStep;
    __m256i sums[4] = {};
    for (int64_t i = 0; i < n; i += 128)
        for (int64_t j = 0; j < codes; ++j)
            for (int v = 0; v < 4; ++v) {
                const __m256i column = load(cache + (j + 4 * v) % kRows * kStep);
                const __m256i low = _mm256_and_si256(column, _mm256_set1_epi8(15));
                __m256i found[16], choice = _mm256_slli_epi16(column, 3);
                for (int part = 0; part < 16; ++part)
                    found[part] = _mm256_shuffle_epi8(both_halves(tables + j % 4 + 16 * part), low);
                for (int left = 8; left; left /= 2, choice = _mm256_slli_epi16(choice, 1))
                    for (int part = 0; part < left; ++part)
                        found[part] = _mm256_blendv_epi8(found[2 * part], found[2 * part + 1], choice);
                sums[v] = _mm256_add_epi8(sums[v], found[0]);
            }
    return total(_mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3])));
}
}
