// Where the bytes of a row's codes and centroids are, for tables of whole numbers (whole_kernel.h).
#ifndef MGQE_WHOLE_CODES_H
#define MGQE_WHOLE_CODES_H

#include <stdint.h>
#include <string.h>

#include "bits.h"
#include "mgqe_native.h"

namespace {

constexpr int32_t kCopied = 8;  // bytes of a centroid that are copied at once

// Eight bytes of a centroid: those of a piece, from so many on. A wide centroid is several copies.
struct Copy {
    const mgqe_piece* piece;
    int32_t ahead;
};

// Calls use(copy) for each copy of a row, in order. All tiers of a table have as many, for the same coordinates.
template <typename Use>
inline void for_each_copy(const mgqe_tier& tier, const Use& use) {
    for (int32_t j = 0; j < tier.num_subspaces; ++j)
        for (int32_t ahead = 0; ahead < tier.layout[j].width; ahead += kCopied) use(Copy{&tier.layout[j], ahead});
}

// The codes of some copies are in two loads of `half` bytes, which read nothing outside the row. 0: in the whole of a
// row of less than four bytes. With AVX2 16 stands for a single load, which holds eight codes.
struct Halves {
    int64_t low, high, half;
    int64_t row_bytes;

    // `least`: of the powers of two, from 4 on, that a load may be.
    void lay_out(const mgqe_tier& tier, const Copy* copies, int count, int64_t least) {
        const mgqe_piece& last = *copies[count - 1].piece;
        const int64_t begin = copies[0].piece->bit / 8, end = (last.bit + last.bits + 7) / 8;
        row_bytes = tier.row_bytes;
        half = least;
        while (2 * half < end - begin) half *= 2;
        while (half > row_bytes) half /= 2;
        if (half < 4) half = 0;
        low = half == 0 ? 0 : begin + half <= row_bytes ? begin : row_bytes - half;
        high = half && end > half ? end - half : 0;
    }

    // Where byte `byte` of the row is in the two loads, one after the other. A byte behind the row is of no code.
    uint8_t place(int64_t byte) const {
        if (byte >= row_bytes) byte = row_bytes - 1;
        return static_cast<uint8_t>(half == 0 || byte < low + half ? byte - low : half + byte - high);
    }

    uint64_t four_and_four(const uint8_t* row) const {
        return little_endian(row + low, 4) | little_endian(row + high, 4) << 32;
    }
    uint64_t short_row(const uint8_t* row) const { return row_bytes ? few_bytes(row, row_bytes) : 0; }
};

// The same in four loads of 16 bytes, for rows of at least as many.
struct Quarters {
    static constexpr int64_t kBytes = 16;
    int64_t at[4];

    void lay_out(const mgqe_tier& tier, const Copy* copies) {
        const int64_t begin = copies[0].piece->bit / 8, most = tier.row_bytes - kBytes;
        for (int quarter = 0; quarter < 4; ++quarter) {
            const int64_t wanted = begin + kBytes * quarter;
            at[quarter] = wanted < most ? wanted : most;
        }
    }

    // Where byte `byte` of the row is in the loads, one after the other. A byte behind the row is of no code.
    uint8_t place(int64_t byte) const {
        int quarter = 0;
        while (quarter < 3 && byte >= at[quarter] + kBytes) ++quarter;
        const int64_t ahead = byte - at[quarter];
        return static_cast<uint8_t>(kBytes * quarter + (ahead < kBytes ? ahead : kBytes - 1));
    }
};

// A tier's levels (256), those of b bits from 2^b on. In the table each comes one earlier, but for those of seven bits.
inline void copy_levels(const mgqe_tier& tier, uint8_t* levels) {
    levels[0] = 0;
    memcpy(levels + 1, tier.levels, 127);
    memcpy(levels + 128, tier.levels + 128, 128);
}

template <int kBytes>
struct Half {
    static constexpr int kHalf = kBytes;
};

// Calls use(Half<...>) with the bytes of a load, at most kMost, as a constant.
template <int kMost, typename Use>
inline void with_half(int64_t half, const Use& use) {
    if constexpr (kMost == 32)
        if (half == 32) return use(Half<32>{});
    switch (half) {
        case 16: return use(Half<16>{});
        case 8: return use(Half<8>{});
        case 4: return use(Half<4>{});
        default: return use(Half<0>{});
    }
}

}  // namespace

#endif
