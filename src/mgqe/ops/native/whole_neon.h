// Tables of whole numbers with NEON, included by whole_neon.cpp and, where the processor adds four products of bytes at
// once, whole_dotprod.cpp: codes by shuffles of 16 bytes, levels by look-ups in 64 bytes.
#ifndef MGQE_WHOLE_NEON_H
#define MGQE_WHOLE_NEON_H

#include <arm_neon.h>

#include "byte_table.h"
#include "whole_eights.h"
#include "whole_kernel.h"
#include "whole_matrix.h"

namespace {

struct Neon : EightPlaces {
    static constexpr int kLanes = 4;
    typedef int32_t Ints __attribute__((vector_size(16)));
    typedef float Floats __attribute__((vector_size(16)));
    typedef uint16_t Words __attribute__((vector_size(16)));

    static Ints widen(const uint8_t* from) {
        uint32_t four;
        __builtin_memcpy(&four, from, 4);
        const uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
        return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
    }
    static Ints widen(const uint16_t* from) { return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from))); }
    static void write(float* to, Floats row, int64_t left, bool) {
        if (left < kLanes)
            for (int64_t t = 0; t < left; ++t) to[t] = row[t];
        else
            __builtin_memcpy(to, &row, sizeof row);
    }

    // A byte less 128, as a signed one, is the byte with its highest bit turned over.
    using Matrix = ByteMatrix<Neon>;
    using Products = int8x16_t;
    static Ints start(const int32_t*) { return Ints{}; }
    static Products load_products(const int8_t* from) { return vld1q_s8(from); }
    static Products spread(int32_t four) {
        return vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(vdupq_n_s32(four)), vdupq_n_u8(kMiddle)));
    }
    static Ints add_products(Ints sums, Products coordinates, Products values) {
#if defined(__ARM_FEATURE_DOTPROD)
        return vdotq_s32(sums, coordinates, values);
#else
        // Numbers are at most 127 in size, so that two products fit in 16 bits.
        const int16x8_t low = vmull_s8(vget_low_s8(coordinates), vget_low_s8(values));
        const int16x8_t high = vmull_high_s8(coordinates, values);
        return vpadalq_s16(sums, vpaddq_s16(low, high));
#endif
    }

    static constexpr int kLevels = 2 * kAtOnce;
    static constexpr int kSegment = 64;
    struct LevelCodes {
        EightCodes eights[2];
        alignas(16) uint8_t mask[kLevels], start[kLevels];
        alignas(16) uint8_t levels[256];  // from the first segment on that has any
        int segments;
    };
    static void lay_out_levels(const mgqe_tier& tier, const Copy* copies, int count, LevelCodes& codes) {
        codes.eights[0].lay_out(tier, copies, count < kAtOnce ? count : kAtOnce);
        if (count > kAtOnce) codes.eights[1].lay_out(tier, copies + kAtOnce, count - kAtOnce);
        else codes.eights[1].halves = codes.eights[0].halves;
        const SegmentRange range(copies, count, 0, 7, kSegment);
        const int before = kSegment * range.first;
        for (int at = 0; at < count; ++at) {
            const int bits = copies[at].piece->bits;
            codes.mask[at] = static_cast<uint8_t>((1 << bits) - 1);
            codes.start[at] = static_cast<uint8_t>((1 << bits) - before);
        }
        uint8_t levels[256];
        copy_levels(tier, levels);
        memcpy(codes.levels, levels + before, static_cast<size_t>(256 - before));
        codes.segments = range.last - range.first;
    }
    // Calls use(i, levels) with those of row i.
    template <typename Use>
    static void decode_levels(const LevelCodes& codes, const uint8_t* const* rows, int64_t n, const Use& use) {
        with_half<16>(codes.eights[0].halves.half, [&](auto half) {
            if (codes.segments == 1) decode_group<half.kHalf, 1>(codes, rows, n, use);
            else if (codes.segments == 2) decode_group<half.kHalf, 2>(codes, rows, n, use);
            else decode_group<half.kHalf, 4>(codes, rows, n, use);
        });
    }
    template <int kHalf, int kSegments, typename Use>
    static void decode_group(const LevelCodes& codes, const uint8_t* const* rows, int64_t n, const Use& use) {
        const ByteTable<kSegments * kSegment> levels(codes.levels);
        const uint8x16_t mask = vld1q_u8(codes.mask), start = vld1q_u8(codes.start);
        const EightCodes eights[2] = {codes.eights[0], codes.eights[1]};  // that no store changes
        for (int64_t i = 0; i < n; ++i) {
            const Word8 first = eights[0].lifted<kHalf>(rows[i]), second = eights[1].lifted<kHalf>(rows[i]);
            const uint8x16_t code = vuzp2q_u8(vreinterpretq_u8_u16(first), vreinterpretq_u8_u16(second));
            use(i, reinterpret_cast<Words>(levels.look_up(vaddq_u8(vandq_u8(code, mask), start))));
        }
    }

    static constexpr bool kDecodesRows = false;
    static constexpr bool kMultipliesWords = false;  // four products at once, as with float32

    static void fence() {}
};

}  // namespace

#endif
