// Kernels for x86-64 with AVX2, FMA, BMI2 and F16C: 8 lanes, 3 rows at a time.
#include <immintrin.h>

#include "assign_kernel.h"
#include "bag_kernel.h"
#include "lookup_kernel.h"

namespace {

struct Vec {
    static constexpr int kLanes = 8;
    using F = __m256;
    using I = __m256i;
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static I load_i(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
    static void store_i(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
    static F broadcast(float x) { return _mm256_set1_ps(x); }
    static F less_product(F c, F a, F b) { return _mm256_fnmadd_ps(a, b, c); }
    static F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static constexpr int kMatrixVectors = 2;
    static void stream(float* p, F v) { _mm256_stream_ps(p, v); }
    static I iota(int32_t first) {
        return _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static I next(I k) { return _mm256_add_epi32(k, _mm256_set1_epi32(kLanes)); }
    static void keep_two(F& best, F& second, I& index, F score, I k) {
        // Both give their second argument where one is NaN.
        second = _mm256_min_ps(_mm256_max_ps(best, score), second);
        const F less = _mm256_cmp_ps(score, best, _CMP_LT_OQ);
        best = _mm256_blendv_ps(best, score, less);
        index = _mm256_castps_si256(
            _mm256_blendv_ps(_mm256_castsi256_ps(index), _mm256_castsi256_ps(k), less));
    }
    static float least(F v) {
        __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        m = _mm_min_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
    }
    static uint32_t not_above(F v, float limit) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_set1_ps(limit), _CMP_NGT_UQ)));
    }
    static constexpr int kSearched = 8;
    static uint32_t search(const mgqe_levels& levels, const float* x, int32_t* codes) {
        return search_eight(levels, x, codes);
    }
    static uint64_t deposit(uint64_t word, uint64_t lanes, int64_t) { return _pdep_u64(word, lanes); }
    static constexpr bool kSpreads = true;
    static constexpr bool kHasWhole = true;
    template <int kShift>
    static void spread(uint64_t bytes, uint32_t* to) {
        const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_slli_epi32(wide, kShift));
    }
};

struct Half {
    static constexpr bool kStreams = true;
    static void stream(const float* from, float* to, int64_t n) {
        int64_t t = 0;
        if (reinterpret_cast<uintptr_t>(to) % 32 == 0)
            for (; t + 8 <= n; t += 8) _mm256_stream_ps(to + t, _mm256_load_ps(from + t));
        for (; t < n; t += 4) _mm_stream_ps(to + t, _mm_load_ps(from + t));
    }
    static void fence() { _mm_sfence(); }
    static void convert(const uint16_t* from, float* to) { *to = _cvtsh_ss(*from); }
    static void convert4(const uint16_t* from, float* to) {
        _mm_storeu_ps(to, _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
};

}  // namespace

const mgqe_kernels mgqe_kernels_avx2 = {lay_out_lanes, assign_lanes<Vec, 3>, search_levels<Vec>, lookup_ids<Half, Vec>,
                                          pool_bags<Half, Vec>, write_book<Half>, multiply_dense<Vec>,
                                          square_rows<Vec>};
