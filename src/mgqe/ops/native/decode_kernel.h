// Decoding of packed rows, specialised by centroid type, width and code layout; included by each isa_*.cpp.
//
// `H` converts float16: convert(from, to) one number, convert4 four. Every conversion is exact but the product of
// int8 and its scale, which is rounded once, so all instruction sets give the same bits.
#ifndef MGQE_DECODE_KERNEL_H
#define MGQE_DECODE_KERNEL_H

#include <stdint.h>

#include "bits.h"
#include "isa.h"

namespace {

template <typename H>
inline void emit4(const float* from, float* to, float) {
    __builtin_memcpy(to, from, 4 * sizeof(float));
}
template <typename H>
inline void emit1(const float* from, float* to, float) {
    *to = *from;
}
template <typename H>
inline void emit4(const uint16_t* from, float* to, float) {
    H::convert4(from, to);
}
template <typename H>
inline void emit1(const uint16_t* from, float* to, float) {
    H::convert(from, to);
}
template <typename H>
inline void emit4(const int8_t* from, float* to, float scale) {
    for (int t = 0; t < 4; ++t) to[t] = static_cast<float>(from[t]) * scale;
}
template <typename H>
inline void emit1(const int8_t* from, float* to, float scale) {
    *to = static_cast<float>(*from) * scale;
}

// One centroid. Fixed widths of float32 become one or two vector moves.
template <typename H, int kWidth, typename T>
inline void emit(const T* from, float* to, float scale, int64_t run_time_width) {
    if (kWidth && sizeof(T) == sizeof(float)) {
        __builtin_memcpy(to, from, kWidth * sizeof(float));
        return;
    }
    const int64_t width = kWidth ? kWidth : run_time_width;
    int64_t t = 0;
    for (; t + 4 <= width; t += 4) emit4<H>(from + t, to + t, scale);
    for (; t < width; ++t) {
        emit1<H>(from + t, to + t, scale);
        // Keeps the compiler from calling memcpy for at most three numbers.
        __asm__ volatile("" ::: "memory");
    }
}

// All the pieces that one code selects, `step` numbers apart.
template <typename H, int kWidth, bool kOnePiece, typename T>
inline float* emit_pieces(const T* from, const float* scales, float* to, int64_t step, int64_t repeat,
                          int64_t width) {
    if (kOnePiece) {
        emit<H, kWidth>(from, to, scales ? *scales : 1.0f, width);
        return to + (kWidth ? kWidth : width);
    }
    for (int64_t piece = 0; piece < repeat; ++piece) {
        emit<H, kWidth>(from, to, scales ? scales[piece] : 1.0f, width);
        from += step;
        to += kWidth ? kWidth : width;
    }
    return to;
}

// kBytes: every code is one byte and names a centroid whatever its value. Otherwise codes of any width, clamped to
// the codebook, so that a damaged file cannot make the kernel read elsewhere.
template <typename H, typename T, int kWidth, bool kBytes, bool kOnePiece>
void decode(const mgqe_tier& tier, const mgqe_row* rows, int64_t n) {
    const bool shared = tier.pieces == 1;
    const int64_t D = tier.num_subspaces;
    const int64_t width = kWidth ? kWidth : tier.width;
    const int64_t repeat = shared ? 1 : tier.pieces / D;
    const int64_t step = shared ? 0 : tier.num_centroids * width;
    // int8 has a scale a piece; the other types read none.
    const bool scaled = sizeof(T) == 1;
    const int64_t scale_step = shared ? 0 : repeat;
    const int32_t bits = tier.bits;
    const uint32_t mask = (1u << bits) - 1u;
    const uint32_t most = static_cast<uint32_t>(tier.num_centroids - 1);
    const uint8_t* const end = tier.codes + tier.rows * tier.row_bytes;
    for (int64_t i = 0; i < n; ++i) {
        const uint8_t* const codes = rows[i].codes;
        float* to = rows[i].out;
        const T* book = static_cast<const T*>(tier.centroids);
        const float* scales = scaled ? tier.scales : nullptr;
        if (kBytes) {
            for (int64_t j = 0; j < D; ++j) {
                to = emit_pieces<H, kWidth, kOnePiece>(book + codes[j] * width, scales, to, step, repeat, width);
                book += step * repeat;
                if (scaled) scales += scale_step;
            }
            continue;
        }
        const bool roomy = end - codes >= tier.row_bytes + 8;
        for (int64_t j = 0; j < D; ++j) {
            uint32_t code = roomy ? code_at(codes, j, bits, mask) : code_before(codes, j, bits, mask, end);
            code = code < most ? code : most;
            to = emit_pieces<H, kWidth, kOnePiece>(book + code * width, scales, to, step, repeat, width);
            book += step * repeat;
            if (scaled) scales += scale_step;
        }
    }
}

template <typename H, typename T, int kWidth>
mgqe_decoder select_layout(const mgqe_tier& tier) {
    const bool bytes = tier.bits == 8 && tier.num_centroids >= 256;
    const bool one = tier.pieces == 1 || tier.pieces == tier.num_subspaces;
    if (bytes) return one ? decode<H, T, kWidth, true, true> : decode<H, T, kWidth, true, false>;
    return one ? decode<H, T, kWidth, false, true> : decode<H, T, kWidth, false, false>;
}

template <typename H, typename T>
mgqe_decoder select_width(const mgqe_tier& tier) {
    switch (tier.width) {
        case 1:
            return select_layout<H, T, 1>(tier);
        case 2:
            return select_layout<H, T, 2>(tier);
        case 4:
            return select_layout<H, T, 4>(tier);
        case 8:
            return select_layout<H, T, 8>(tier);
        case 16:
            return select_layout<H, T, 16>(tier);
        default:
            return select_layout<H, T, 0>(tier);
    }
}

template <typename H>
mgqe_decoder select_decoder(const mgqe_tier& tier) {
    switch (tier.dtype) {
        case MGQE_FLOAT32:
            return select_width<H, float>(tier);
        case MGQE_FLOAT16:
            return select_width<H, uint16_t>(tier);
        case MGQE_INT8:
            return select_width<H, int8_t>(tier);
        default:
            return nullptr;
    }
}

}  // namespace

#endif
