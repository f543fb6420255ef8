// Decoding of packed rows, specialised by centroid type, width and code layout; included by each isa_*.cpp.
//
// `H` converts float16: convert(from, to) one number, convert4 four; and writes a row around the caches if kStreams:
// stream(from, to, n), n a multiple of 4, then fence(). Every conversion is exact but the product of
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

enum Layout {
    kBytes,   // one byte per code, and a centroid for every byte
    kEight,   // eight codes of 4 to 7 bits, and a centroid for every code: no clamp, nothing that depends on the bits
    kNarrow,  // rows of less than 8 bytes: read at once
    kWide,    // longer rows: read 64 bits at a time, the last 64 ending where the row ends
};

// Decodes one row. Other codes than bytes are clamped to the codebook, so that a damaged file cannot make the kernel
// read elsewhere.
template <typename H, typename T, int kWidth, Layout kLayout, bool kOnePiece>
struct RowDecoder {
    const T* const centroids;
    const float* const scales;  // int8 only: one a piece
    const int64_t D, width, repeat, step, scale_step, row_bytes;
    const int32_t bits, window_codes;
    const uint32_t mask, most;

    explicit RowDecoder(const mgqe_tier& tier)
        : centroids(static_cast<const T*>(tier.centroids)),
          scales(sizeof(T) == 1 ? tier.scales : nullptr),
          D(tier.num_subspaces),
          width(kWidth ? kWidth : tier.width),
          repeat(tier.pieces == 1 ? 1 : tier.pieces / tier.num_subspaces),
          step(tier.pieces == 1 ? 0 : tier.num_centroids * width),
          scale_step(tier.pieces == 1 ? 0 : repeat),
          row_bytes(tier.row_bytes),
          bits(tier.bits),
          window_codes(57 / tier.bits),
          mask((1u << tier.bits) - 1u),
          most(static_cast<uint32_t>(tier.num_centroids - 1)) {}

    float* one(uint32_t code, const T* book, const float* scale, float* to) const {
        return emit_pieces<H, kWidth, kOnePiece>(book + static_cast<int64_t>(code) * width, scale, to, step, repeat,
                                                 width);
    }

    // `count` codes from the low bits of a word on.
    float* several(uint64_t word, int64_t count, const T*& book, const float*& scale, float* to) const {
        for (int64_t j = 0; j < count; ++j) {
            const uint32_t code = static_cast<uint32_t>(word) & mask;
            word >>= bits;
            to = one(code < most ? code : most, book, scale, to);
            book += step * repeat;
            if (sizeof(T) == 1) scale += scale_step;
        }
        return to;
    }

    void row(const uint8_t* codes, float* to) const {
        const T* book = centroids;
        const float* scale = scales;
        if (kLayout == kBytes) {
            for (int64_t j = 0; j < D; ++j) {
                to = one(codes[j], book, scale, to);
                book += step * repeat;
                if (sizeof(T) == 1) scale += scale_step;
            }
        } else if (kLayout == kEight) {
            const int64_t upper = row_bytes - 4;
            uint64_t word = little_endian(codes, 4) | little_endian(codes + upper, 4) << (8 * upper);
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                to = one(static_cast<uint32_t>(word) & mask, book, scale, to);
                word >>= bits;
                book += step * repeat;
                if (sizeof(T) == 1) scale += scale_step;
            }
        } else if (kLayout == kNarrow) {
            several(few_bytes(codes, row_bytes), D, book, scale, to);
        } else {
            for (int64_t j = 0; j < D; j += window_codes) {
                const int64_t at = j * bits;
                const int64_t byte = (at >> 3) < row_bytes - 8 ? at >> 3 : row_bytes - 8;
                const int64_t count = D - j < window_codes ? D - j : window_codes;
                to = several(window(codes + byte) >> (at - 8 * byte), count, book, scale, to);
            }
        }
    }
};

template <typename H, typename T, int kWidth, Layout kLayout, bool kOnePiece>
void decode(const mgqe_tier& tier, const mgqe_row* rows, int64_t n, bool stream) {
    const RowDecoder<H, T, kWidth, kLayout, kOnePiece> decoder(tier);
    const int64_t dim = decoder.D * decoder.repeat * decoder.width;
    alignas(64) float stage[kStage];
    for (int64_t i = 0; i < n; ++i) {
        decoder.row(rows[i].codes, stream ? stage : rows[i].out);
        if (stream) H::stream(stage, rows[i].out, dim);
    }
}

template <typename H, typename T, int kWidth, bool kOnePiece>
mgqe_decoder select_layout(const mgqe_tier& tier) {
    if (tier.bits == 8 && tier.num_centroids >= 256) return decode<H, T, kWidth, kBytes, kOnePiece>;
    if (kOnePiece && tier.num_subspaces == 8 && tier.bits >= 4 && tier.bits < 8 && tier.num_centroids >> tier.bits)
        return decode<H, T, kWidth, kEight, kOnePiece>;
    return tier.row_bytes < 8 ? decode<H, T, kWidth, kNarrow, kOnePiece> : decode<H, T, kWidth, kWide, kOnePiece>;
}

template <typename H, typename T>
mgqe_decoder select_width(const mgqe_tier& tier) {
    if (tier.pieces != 1 && tier.pieces != tier.num_subspaces) return select_layout<H, T, 0, false>(tier);
    switch (tier.width) {
        case 1:
            return select_layout<H, T, 1, true>(tier);
        case 2:
            return select_layout<H, T, 2, true>(tier);
        case 4:
            return select_layout<H, T, 4, true>(tier);
        case 8:
            return select_layout<H, T, 8, true>(tier);
        case 16:
            return select_layout<H, T, 16, true>(tier);
        default:
            return select_layout<H, T, 0, true>(tier);
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
