// Kernels for any processor, with the compiler's portable 16-byte vectors: SSE2 on x86-64, NEON on arm64.
#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "assign_kernel.h"
#include "bag_kernel.h"
#include "half.h"
#include "lookup_kernel.h"

namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Vec {
    static constexpr int kLanes = 4;
    using F = Float4;
    using I = Int4;
    static F load(const float* p) {
        F v;
        __builtin_memcpy(&v, p, sizeof v);
        return v;
    }
    static I load_i(const int32_t* p) {
        I v;
        __builtin_memcpy(&v, p, sizeof v);
        return v;
    }
    static void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }
    static void store_i(int32_t* p, I v) { __builtin_memcpy(p, &v, sizeof v); }
    static F broadcast(float x) { return F{x, x, x, x}; }
    static F less_product(F c, F a, F b) { return c - a * b; }
    static F multiply_add(F a, F b, F c) {
#if defined(__aarch64__)
        return vfmaq_f32(c, a, b);
#else
        // Right on every processor, and slow on those without the instruction.
        for (int lane = 0; lane < kLanes; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
        return c;
#endif
    }
    static constexpr int kMatrixVectors = 4;
    static void stream(float* p, F v) {
#if defined(__x86_64__)
        _mm_stream_ps(p, v);
#else
        store(p, v);
#endif
    }
    static I iota(int32_t first) { return I{first, first + 1, first + 2, first + 3}; }
    static I next(I k) { return k + kLanes; }
    // The larger and the smaller of two, b where one is NaN: as SSE has it.
    static F larger(F a, F b) {
#if defined(__x86_64__)
        return _mm_max_ps(a, b);
#else
        return a > b ? a : b;
#endif
    }
    static F smaller(F a, F b) {
#if defined(__x86_64__)
        return _mm_min_ps(a, b);
#else
        return a < b ? a : b;
#endif
    }
    static void keep_two(F& best, F& second, I& index, F score, I k) {
        const I less = score < best;
        second = smaller(larger(best, score), second);
        best = smaller(score, best);
        index = (k & less) | (index & ~less);
    }
    static float least(F v) {
        const float low = v[0] < v[1] ? v[0] : v[1];
        const float high = v[2] < v[3] ? v[2] : v[3];
        return low < high ? low : high;
    }
    static uint32_t not_above(F v, float limit) {
        const I above = v > broadcast(limit);
        uint32_t lanes = 0;
        for (int lane = 0; lane < kLanes; ++lane) lanes |= static_cast<uint32_t>(above[lane] + 1) << lane;
        return lanes;
    }
    static constexpr int kSearched = 8;
    static uint32_t search(const mgqe_levels& levels, const float* x, int32_t* codes) {
        return search_eight(levels, x, codes);
    }
    static uint64_t deposit(uint64_t word, uint64_t lanes, int64_t bits) {
        uint64_t bytes = 0;
        for (int j = 0; j < 8; ++j) bytes |= (word << ((8 - bits) * j)) & (lanes & (static_cast<uint64_t>(255) << (8 * j)));
        return bytes;
    }
    static constexpr bool kSpreads = false;
#if defined(__aarch64__)
    static constexpr bool kHasWhole = true;
#else
    static constexpr bool kHasWhole = false;
#endif
};

// Each row takes four registers: a score, the two least scores, and the index.
#if defined(__aarch64__)
constexpr int kRowsAtOnce = 6;
#else
constexpr int kRowsAtOnce = 3;
#endif

struct Half {
#if defined(__x86_64__)
    static constexpr bool kStreams = true;
    static void stream(const float* from, float* to, int64_t n) {
        for (int64_t t = 0; t < n; t += 4) _mm_stream_ps(to + t, _mm_load_ps(from + t));
    }
    static void fence() { _mm_sfence(); }
#else
    static constexpr bool kStreams = false;
    static void stream(const float*, float*, int64_t) {}
    static void fence() {}
#endif
    static void convert(const uint16_t* from, float* to) { half_to_float(from, to); }
    static void convert4(const uint16_t* from, float* to) {
        for (int t = 0; t < 4; ++t) half_to_float(from + t, to + t);
    }
};

}  // namespace

const mgqe_kernels mgqe_kernels_scalar = {lay_out_lanes, assign_lanes<Vec, kRowsAtOnce>, search_levels<Vec>, lookup_ids<Half, Vec>,
                                            pool_bags<Half, Vec>, write_book<Half>, multiply_dense<Vec>,
                                            square_rows<Vec>};
