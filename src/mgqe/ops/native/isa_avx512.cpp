// Kernels for x86-64 with AVX-512 F, BW, VL and DQ: 16 lanes, 6 rows at a time.
#include <immintrin.h>

#include "assign_kernel.h"
#include "bag_kernel.h"
#include "lookup_kernel.h"

namespace {

struct Vec {
    static constexpr int kLanes = 16;
    using F = __m512;
    using I = __m512i;
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static I load_i(const int32_t* p) { return _mm512_loadu_si512(p); }
    static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
    static void store_i(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
    static F broadcast(float x) { return _mm512_set1_ps(x); }
    static F less_product(F c, F a, F b) { return _mm512_fnmadd_ps(a, b, c); }
    static F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static constexpr int kMatrixVectors = 4;
    static void stream(float* p, F v) { _mm512_stream_ps(p, v); }
    static I iota(int32_t first) {
        return _mm512_add_epi32(_mm512_set1_epi32(first),
                                _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    }
    static I next(I k) { return _mm512_add_epi32(k, _mm512_set1_epi32(kLanes)); }
    static void keep_two(F& best, F& second, I& index, F score, I k) {
        // Both give their second argument where one is NaN.
        second = _mm512_min_ps(_mm512_max_ps(best, score), second);
        const __mmask16 less = _mm512_cmp_ps_mask(score, best, _CMP_LT_OQ);
        best = _mm512_mask_mov_ps(best, less, score);
        index = _mm512_mask_mov_epi32(index, less, k);
    }
    static float least(F v) { return _mm512_reduce_min_ps(v); }
    static uint32_t not_above(F v, float limit) {
        return _cvtmask16_u32(_mm512_cmp_ps_mask(v, _mm512_set1_ps(limit), _CMP_NGT_UQ));
    }
    static constexpr int kSearched = kSearchRows;
    static uint64_t search(const mgqe_levels& levels, const float* column, int32_t* codes) {
        if (levels.bits == 5) return search_bits<5>(levels, column, codes);
        if (levels.bits == 6) return search_bits<6>(levels, column, codes);
        return levels.bits == 7 ? search_bits<7>(levels, column, codes) : search_bits<8>(levels, column, codes);
    }
    // Seven steps in registers: a gather takes as long as some of them. Sure are numbers that are a gap above the last
    // bound that they are above, since bounds come closer and closer.
    template <int kBits>
    static uint64_t search_bits(const mgqe_levels& levels, const float* column, int32_t* codes) {
        const F top = load(levels.top), rest = load(levels.top + 16);
        const F sixth = load(levels.top + 32), sixth_rest = load(levels.top + 48), gap = broadcast(levels.gap);
        F seventh[4];
        for (int i = 0; i < 4; ++i) seventh[i] = load(levels.seventh + 16 * i);
        uint64_t sure = 0;
        for (int64_t first = 0; first < kSearchRows; first += kLanes) {
            const F x = load(column + first);
            F below = broadcast(-FLT_MAX);
            I place = _mm512_setzero_si512();
            const auto step = [&](F bound, int32_t half) {
                const __mmask16 above = _mm512_cmp_ps_mask(bound, x, _CMP_LT_OQ);
                place = _mm512_mask_add_epi32(place, above, place, _mm512_set1_epi32(half));
                below = _mm512_mask_mov_ps(below, above, bound);
            };
            for (int32_t half = 16; half; half /= 2) {
                const I at = _mm512_add_epi32(place, _mm512_set1_epi32(half - 1));
                step(_mm512_permutex2var_ps(top, at, rest), half);
            }
            if (kBits > 5) {
                const F bound = _mm512_permutex2var_ps(sixth, place, sixth_rest);
                place = _mm512_slli_epi32(place, 1);
                step(bound, 1);
            }
            if (kBits > 6) {
                const __mmask16 later = _mm512_test_epi32_mask(place, _mm512_set1_epi32(32));
                const F bound = _mm512_mask_mov_ps(_mm512_permutex2var_ps(seventh[0], place, seventh[1]), later,
                                                   _mm512_permutex2var_ps(seventh[2], place, seventh[3]));
                place = _mm512_slli_epi32(place, 1);
                step(bound, 1);
            }
            if (kBits > 7) {
                place = _mm512_slli_epi32(place, 1);
                step(_mm512_i32gather_ps(place, levels.low, 4), 1);
            }
            store_i(codes + first, levels.in_order ? place : _mm512_i32gather_epi32(place, levels.codes, 4));
            const __mmask16 clear = _mm512_cmp_ps_mask(_mm512_sub_ps(x, below), gap, _CMP_GE_OQ);
            const __mmask16 finite = _mm512_cmp_ps_mask(x, broadcast(FLT_MAX), _CMP_LE_OQ);
            sure |= static_cast<uint64_t>(_cvtmask16_u32(_kand_mask16(clear, finite))) << first;
        }
        return ~sure;
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
        if (reinterpret_cast<uintptr_t>(to) % 64 == 0)
            for (; t + 16 <= n; t += 16) _mm512_stream_ps(to + t, _mm512_load_ps(from + t));
        for (; t < n; t += 4) _mm_stream_ps(to + t, _mm_load_ps(from + t));
    }
    static void fence() { _mm_sfence(); }
    static void convert(const uint16_t* from, float* to) { *to = _cvtsh_ss(*from); }
    static void convert4(const uint16_t* from, float* to) {
        _mm_storeu_ps(to, _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
};

}  // namespace

const mgqe_kernels mgqe_kernels_avx512 = {lay_out_lanes, assign_lanes<Vec, 6>, search_levels<Vec>, lookup_ids<Half, Vec>,
                                            pool_bags<Half, Vec>, write_book<Half>, multiply_dense<Vec>,
                                            square_rows<Vec>};
