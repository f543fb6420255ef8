// Kernels for any processor, with the compiler's portable 16-byte vectors: SSE2 on x86-64, NEON on arm64.
#if defined(__x86_64__)
#include <xmmintrin.h>
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
    static F mul(F a, F b) { return a * b; }
    static F sub(F a, F b) { return a - b; }
    static I iota(int32_t first) { return I{first, first + 1, first + 2, first + 3}; }
    static I next(I k) { return k + kLanes; }
    static void keep_less(F& best, I& index, F score, I k) {
        const I less = score < best;
        best = reinterpret_cast<F>((reinterpret_cast<I>(score) & less) | (reinterpret_cast<I>(best) & ~less));
        index = (k & less) | (index & ~less);
    }
    static float least(F v) {
        const float low = v[0] < v[1] ? v[0] : v[1];
        const float high = v[2] < v[3] ? v[2] : v[3];
        return low < high ? low : high;
    }
    static int32_t least_index(F best, float least, const int32_t* index) {
        int32_t found = INT32_MAX;
        for (int lane = 0; lane < kLanes; ++lane) {
            const int32_t k = best[lane] == least ? index[lane] : INT32_MAX;
            found = k < found ? k : found;
        }
        return found;
    }
    static uint64_t deposit(uint64_t word, uint64_t lanes, int64_t bits) {
        uint64_t bytes = 0;
        for (int j = 0; j < 8; ++j) bytes |= (word << ((8 - bits) * j)) & (lanes & (static_cast<uint64_t>(255) << (8 * j)));
        return bytes;
    }
    static constexpr bool kSpreads = false;
};

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

const mgqe_kernels mgqe_kernels_scalar = {assign_lanes<Vec, 4>, lookup_ids<Half>, pool_bags<Half, Vec>,
                                             write_book<Half>};
