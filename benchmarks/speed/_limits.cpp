// Parts of look-ups, bags and steps alone, as tight loops: what no kernel with the same codes can do without. Each function
// returns a number that depends on all it read.
#include <immintrin.h>
#include <stdint.h>

namespace {

constexpr int64_t kAhead = 64;  // ids: more did not help

int64_t total(__m256i v) {
    alignas(32) int64_t four[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(four), v);
    return four[0] + four[1] + four[2] + four[3];
}

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// The first and the last byte of the rows of n ids, asked for ahead: use(i, their sum).
template <typename Use>
void read_rows(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n, const Use& use) {
    for (int64_t i = 0; i < n; ++i) {
        if (i + kAhead < n) {
            const uint8_t* const next = codes + ids[i + kAhead] * row_bytes;
            __builtin_prefetch(next, 0, 3);
            __builtin_prefetch(next + row_bytes - 1, 0, 3);
        }
        const uint8_t* const row = codes + ids[i] * row_bytes;
        use(i, row[0] + row[row_bytes - 1]);
    }
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

int64_t mgqe_limits_rows(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n) {
    int64_t sum = 0;
    read_rows(codes, row_bytes, ids, n, [&](int64_t, int both) { sum += both; });
    return sum;
}

// The same, and a row of `dim` numbers (a multiple of 8) written around the caches for each.
int64_t mgqe_limits_look_up(const uint8_t* codes, int64_t row_bytes, const int64_t* ids, int64_t n, int64_t dim,
                           float* out) {
    read_rows(codes, row_bytes, ids, n, [&](int64_t i, int both) {
        const __m256 numbers = _mm256_set1_ps(static_cast<float>(both));
        for (int64_t t = 0; t < dim; t += 8) _mm256_stream_ps(out + i * dim + t, numbers);
    });
    _mm_sfence();
    return n;
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
}
