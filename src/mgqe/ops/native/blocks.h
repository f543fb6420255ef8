// Many queries at once: rows are decoded a block at a time and multiplied with all queries, while they are in the
// caches. The products are rounded otherwise than the scores, so they only show, with a margin, which rows may reach a
// query's k-th best score.
#ifndef MGQE_BLOCKS_H
#define MGQE_BLOCKS_H

#include <stdint.h>
#include <string.h>

#include "bits.h"
#include "mixed_decode.h"
#include "topk.h"

namespace {

constexpr int64_t kBlockRows = 64;

// Rows [first, first + count) of a tier as floats, out (count, dim). Codes beyond the codebook read as its last.
template <int kWidth>
void decode_rows_of(const mgqe_tier_view& view, int64_t first, int64_t count, float* out) {
    const mgqe_tier& tier = *view.tier;
    const int64_t width = kWidth ? kWidth : tier.width, D = tier.num_subspaces, K = tier.num_centroids;
    const int64_t repeat = tier.pieces == 1 ? 1 : tier.pieces / D, step = tier.pieces == 1 ? 0 : K * width;
    const uint32_t mask = (1u << tier.bits) - 1, most = static_cast<uint32_t>(K - 1);
    const uint8_t* end = tier.codes + tier.rows * tier.row_bytes;
    for (int64_t i = first; i < first + count; ++i) {
        const uint8_t* row = tier.codes + i * tier.row_bytes;
        const bool roomy = end - row >= tier.row_bytes + 8;
        const float* book = view.book;
        for (int64_t j = 0; j < D; ++j) {
            const uint32_t code = tier.bits == 8 ? row[j]
                                  : roomy        ? code_at(row, j, tier.bits, mask)
                                                 : code_before(row, j, tier.bits, mask, end);
            const float* from = book + static_cast<int64_t>(code < most ? code : most) * width;
            for (int64_t r = 0; r < repeat; ++r, from += step, out += width)
                memcpy(out, from, static_cast<size_t>(width) * sizeof(float));
            book += step * repeat;
        }
    }
}

// The same of any tier, `stride` floats apart; of a mixed one the coordinates.
inline void decode_rows(const mgqe_tier_view& view, int64_t first, int64_t count, int64_t stride, float* out) {
    if (view.tier->layout) {
        mgqe_row rows[kBlockRows];
        for (int64_t i = 0; i < count; ++i)
            rows[i] = {view.tier->codes + (first + i) * view.tier->row_bytes, out + i * stride};
        return decode_mixed(*view.tier, rows, count, false);
    }
    switch (view.tier->width) {
        case 1:
            return decode_rows_of<1>(view, first, count, out);
        case 2:
            return decode_rows_of<2>(view, first, count, out);
        case 4:
            return decode_rows_of<4>(view, first, count, out);
        case 8:
            return decode_rows_of<8>(view, first, count, out);
        case 16:
            return decode_rows_of<16>(view, first, count, out);
        default:
            return decode_rows_of<0>(view, first, count, out);
    }
}

// Which of kRows rows (kRows, dim), `stride` floats apart, may reach what each of 2 * P::kLanes queries needs: bit q of
// masks[row].
// queries (dim, 2 * P::kLanes); needs: scale * lengths[row] - extra[row], for each query its own scale and its own
// margin, which is taken off.
template <class P, int kRows>
inline void multiply(const float* rows, int64_t stride, int64_t dim, const float* queries, const float* scales,
                     const float* margins, const float* lengths, const float* extra, uint32_t* masks) {
    typename P::Floats sums[kRows][2];
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = P::all(0.0f);
    for (int64_t t = 0; t < dim; ++t, queries += 2 * P::kLanes) {
        const typename P::Floats left = P::load(queries), right = P::load(queries + P::kLanes);
        for (int r = 0; r < kRows; ++r) {
            const typename P::Floats x = P::all(rows[r * stride + t]);
            sums[r][0] = P::multiply_add(x, left, sums[r][0]);
            sums[r][1] = P::multiply_add(x, right, sums[r][1]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        uint32_t mask = 0;
        for (int half = 0; half < 2; ++half) {
            const typename P::Floats needs =
                P::multiply_add(P::load(scales + half * P::kLanes), P::all(lengths[r]), P::all(-extra[r]));
            mask |= P::at_least(P::add(sums[r][half], P::load(margins + half * P::kLanes)), needs)
                    << (half * P::kLanes);
        }
        masks[r] = mask;
    }
}

}  // namespace

#endif
