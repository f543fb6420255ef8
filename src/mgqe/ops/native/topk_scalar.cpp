// The scan for any processor. On arm64 it has a byte filter: NEON looks bytes up in tables of 64.
#include "topk_kernel.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "byte_table.h"
#include "columns.h"
#endif

namespace {

#if defined(__aarch64__)
struct Vectors {
    static constexpr bool kFilters = true;
    static constexpr int kLanes = 16;
    static constexpr int kVectors = 4;
    using Bytes = uint8x16_t;
    struct Words {
        uint16x8_t low, high;
    };

    template <int kEntries>
    using Table = ByteTable<kEntries>;

    static Bytes zero() { return vdupq_n_u8(0); }
    static Bytes load(const uint8_t* p) { return vld1q_u8(p); }
    static Bytes add(Bytes a, Bytes b) { return vaddq_u8(a, b); }
    static Words no_words() { return {vdupq_n_u16(0), vdupq_n_u16(0)}; }
    static Words widen(Words to, Bytes from) {
        return {vaddw_u8(to.low, vget_low_u8(from)), vaddw_u8(to.high, vget_high_u8(from))};
    }

    // One bit per lane that is all ones.
    static uint64_t bits(Bytes lanes) {
        const Bytes weights = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const Bytes kept = vandq_u8(lanes, weights);
        return static_cast<uint64_t>(vaddv_u8(vget_low_u8(kept))) |
               static_cast<uint64_t>(vaddv_u8(vget_high_u8(kept))) << 8;
    }
    static void at_least(const Bytes* sums, int64_t needed, uint64_t* masks, int64_t row) {
        uint64_t mask = 0;
        if (needed < 256)
            for (int v = 0; v < kVectors; ++v)
                mask |= bits(vcgeq_u8(sums[v], vdupq_n_u8(static_cast<uint8_t>(needed)))) << (16 * v);
        masks[row / 64] = mask;
    }
    static void words_at_least(const Words* words, int64_t needed, uint64_t* masks, int64_t row) {
        const uint16x8_t least = vdupq_n_u16(static_cast<uint16_t>(needed));
        uint64_t mask = 0;
        for (int v = 0; v < kVectors; ++v)
            mask |= bits(vcombine_u8(vmovn_u16(vcgeq_u16(words[v].low, least)),
                                     vmovn_u16(vcgeq_u16(words[v].high, least))))
                    << (16 * v);
        masks[row / 64] = mask;
    }

    static void columns(const PackedBlocks& from, uint8_t* out, int64_t step) { spread_columns(from, out, step); }
};
#else
// 16-byte vectors of plain x86-64 have no byte look-up: every row is scored.
struct Vectors {
    static constexpr bool kFilters = false;
    static constexpr int kLanes = 64;
    static constexpr int kVectors = 4;
    using Bytes = int;
    using Words = int;
    template <int kEntries>
    struct Table {
        explicit Table(const uint8_t*) {}
        Bytes look_up(Bytes codes) const { return codes; }
    };
    static Bytes zero() { return 0; }
    static Bytes load(const uint8_t*) { return 0; }
    static Bytes add(Bytes, Bytes) { return 0; }
    static Words no_words() { return 0; }
    static Words widen(Words, Bytes) { return 0; }
    static void at_least(const Bytes*, int64_t, uint64_t*, int64_t) {}
    static void words_at_least(const Words*, int64_t, uint64_t*, int64_t) {}
    static void columns(const PackedBlocks&, uint8_t*, int64_t) {}
};
#endif

struct Products {
    static constexpr int kLanes = 4;
    typedef float Floats __attribute__((vector_size(16)));
    typedef int32_t Ints __attribute__((vector_size(16)));
    static Floats all(float x) { return Floats{x, x, x, x}; }
    static Floats load(const float* p) {
        Floats loaded;
        __builtin_memcpy(&loaded, p, sizeof loaded);
        return loaded;
    }
    static Floats add(Floats a, Floats b) { return a + b; }
    static Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__aarch64__)
        return vfmaq_f32(c, a, b);
#else
        return a * b + c;
#endif
    }
    static uint32_t at_least(Floats a, Floats b) {
        const Ints which = a >= b;
        uint32_t mask = 0;
        for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<uint32_t>(which[lane] & 1) << lane;
        return mask;
    }
};

}  // namespace

int32_t mgqe_scan_scalar(const mgqe_scan& scan, int64_t begin, int64_t end, mgqe_worker& worker) {
    return Scanner<Vectors, Products>(scan, worker).run(begin, end);
}
