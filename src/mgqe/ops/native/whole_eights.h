// Eight codes at a time, for instruction sets that shuffle 16 bytes: AVX2 and NEON.
#ifndef MGQE_WHOLE_EIGHTS_H
#define MGQE_WHOLE_EIGHTS_H

#include <stdint.h>

#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include "whole_kernel.h"

namespace {

constexpr int kAtOnce = 8;  // codes in 16 bytes of a row

typedef uint8_t Byte16 __attribute__((vector_size(16)));
typedef uint16_t Word8 __attribute__((vector_size(16)));
typedef uint64_t Long2 __attribute__((vector_size(16)));

inline Byte16 shuffle(Byte16 bytes, Byte16 from) {
#if defined(__aarch64__)
    return vqtbl1q_u8(bytes, from);
#else
    const __m128i shuffled = _mm_shuffle_epi8(reinterpret_cast<__m128i>(bytes), reinterpret_cast<__m128i>(from));
    return reinterpret_cast<Byte16>(shuffled);
#endif
}

template <int kHalf>
inline Byte16 load_codes(const uint8_t* row, const Halves& halves) {
    if constexpr (kHalf >= 16) return load_vector<Byte16>(row + halves.low);
    if constexpr (kHalf == 8)
        return reinterpret_cast<Byte16>(Long2{window(row + halves.low), window(row + halves.high)});
    return reinterpret_cast<Byte16>(Long2{kHalf == 4 ? halves.four_and_four(row) : halves.short_row(row), 0});
}

// The code at each 16-bit number: its first two bytes, lifted until its highest bit is the highest, and shifted down.
struct EightCodes {
    alignas(16) uint8_t from[2 * kAtOnce];
    alignas(16) uint16_t lift[kAtOnce];
    Halves halves;

    void lay_out(const mgqe_tier& tier, const Copy* copies, int count) {
        halves.lay_out(tier, copies, count, 16);
        for (int at = 0; at < count; ++at) {
            const mgqe_piece& piece = *copies[at].piece;
            if (piece.bits == 0) continue;
            from[2 * at] = halves.place(piece.bit / 8);
            from[2 * at + 1] = halves.place(piece.bit / 8 + 1);
            lift[at] = static_cast<uint16_t>(256 >> piece.bit % 8);
        }
    }

    // The codes are the high bytes, with other bits above them.
    template <int kHalf>
    Word8 lifted(const uint8_t* row) const {
        const Byte16 pairs = shuffle(load_codes<kHalf>(row, halves), load_vector<Byte16>(from));
        return reinterpret_cast<Word8>(pairs) * load_vector<Word8>(lift);
    }
};

// What whole_kernel.h wants of places.
struct EightPlaces {
    static constexpr int kPlaces = kAtOnce;
    struct PlaceCodes {
        EightCodes eight;
        alignas(16) uint16_t mask[kAtOnce], width[kAtOnce], entry[kAtOnce];
    };
    static void lay_out_places(const mgqe_tier& tier, const Copy* copies, int count, PlaceCodes& codes) {
        codes.eight.lay_out(tier, copies, count);
        for (int at = 0; at < count; ++at) {
            const mgqe_piece& piece = *copies[at].piece;
            codes.mask[at] = static_cast<uint16_t>((1 << piece.bits) - 1);
            codes.width[at] = static_cast<uint16_t>(piece.width);
            codes.entry[at] = static_cast<uint16_t>(piece.entry + copies[at].ahead);
        }
    }
    // Those of row i go to out + i * stride.
    static void places(const PlaceCodes& codes, const RowsOfTier& mine, uint16_t* out, int64_t stride) {
        const auto mask = load_vector<Word8>(codes.mask), width = load_vector<Word8>(codes.width);
        const auto entry = load_vector<Word8>(codes.entry);
        with_half<16>(codes.eight.halves.half, [&](auto half) {
            for (int64_t i = 0; i < mine.count; ++i) {
                const int64_t at = mine.at[i];
                const Word8 code = codes.eight.lifted<half.kHalf>(mine.codes[i]) >> 8 & mask;
                const Word8 place = code * width + entry;
                __builtin_memcpy(out + at * stride, &place, sizeof place);
            }
        });
    }
};

// Levels are in segments of so many: [first, last) are those of codes of `least` to `most` bits. None: last is 0.
struct SegmentRange {
    int first, last;

    SegmentRange(const Copy* copies, int count, int least, int most, int segment) : first(256 / segment), last(0) {
        for (int at = 0; at < count; ++at) {
            const int bits = copies[at].piece->bits, begin = (1 << bits) / segment, end = begin ? 2 * begin : 1;
            if (bits < least || bits > most) continue;
            first = begin < first ? begin : first;
            last = end > last ? end : last;
        }
    }
};

}  // namespace

#endif
