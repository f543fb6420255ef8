// Partial scores: <query piece, centroid> of every subspace and centroid of a tier, or the centroids' squared norms.
#ifndef MGQE_PARTIAL_SCORES_H
#define MGQE_PARTIAL_SCORES_H

#include <stdint.h>

#include "half.h"
#include "mgqe_native.h"

namespace {

// Entries a subspace for codes of so many bits: byte look-ups come in tables of 16, 64, 128 and 256.
inline int64_t entry_stride(int32_t bits) {
    if (bits <= 4) return 16;
    if (bits <= 6) return 64;
    return static_cast<int64_t>(1) << bits;
}

inline int64_t book_size(const mgqe_tier& tier) {
    return static_cast<int64_t>(tier.pieces) * tier.num_centroids * tier.width;
}

// A codebook as the look-up decodes it.
inline void decode_book(const mgqe_tier& tier, float* out) {
    const int64_t piece = static_cast<int64_t>(tier.num_centroids) * tier.width, size = book_size(tier);
    if (tier.dtype == MGQE_FLOAT16) {
        const uint16_t* from = static_cast<const uint16_t*>(tier.centroids);
        for (int64_t i = 0; i < size; ++i) half_to_float(from + i, out + i);
        return;
    }
    const int8_t* from = static_cast<const int8_t*>(tier.centroids);
    for (int64_t p = 0; p < tier.pieces; ++p, from += piece, out += piece) {
        const float scale = tier.scales[p];
        for (int64_t i = 0; i < piece; ++i) out[i] = static_cast<float>(from[i]) * scale;
    }
}

// A row of zeros has no direction: 0.
inline float cosine_of(float dot, float norm2) { return norm2 > 0 ? dot / __builtin_sqrtf(norm2) : 0.0f; }

// A product sum in the order of dimensions; null for a is b with itself.
template <int kWidth>
inline float dot(const float* a, const float* b, int64_t run_time_width) {
    const int64_t width = kWidth ? kWidth : run_time_width;
    const float* left = a ? a : b;
    float sum = left[0] * b[0];
    for (int64_t t = 1; t < width; ++t) sum += left[t] * b[t];
    return sum;
}

template <int kWidth>
void fill(const mgqe_tier& tier, const float* book, const float* query, int64_t stride, float* out) {
    const int64_t width = kWidth ? kWidth : tier.width, K = tier.num_centroids;
    const int64_t repeat = tier.pieces == 1 ? 1 : tier.pieces / tier.num_subspaces;
    const int64_t reach = K < stride ? K : stride;
    for (int64_t j = 0; j < tier.num_subspaces; ++j, out += stride) {
        for (int64_t r = 0; r < repeat; ++r) {
            const float* own = query ? query + (j * repeat + r) * width : nullptr;
            const float* from = book + (tier.pieces == 1 ? 0 : (j * repeat + r) * K * width);
            for (int64_t k = 0; k < reach; ++k, from += width) {
                const float part = dot<kWidth>(own, from, width);
                out[k] = r ? out[k] + part : part;
            }
        }
        // A code beyond the codebook reads as its last centroid.
        for (int64_t k = reach; k < stride; ++k) out[k] = out[reach - 1];
    }
}

// out (D, stride). Pieces of a subspace are summed one by one, and those sums in their order.
inline void partial_scores(const mgqe_tier& tier, const float* book, const float* query, int64_t stride, float* out) {
    switch (tier.width) {
        case 1:
            return fill<1>(tier, book, query, stride, out);
        case 2:
            return fill<2>(tier, book, query, stride, out);
        case 4:
            return fill<4>(tier, book, query, stride, out);
        case 8:
            return fill<8>(tier, book, query, stride, out);
        case 16:
            return fill<16>(tier, book, query, stride, out);
        default:
            return fill<0>(tier, book, query, stride, out);
    }
}

// Entries of one piece of a mixed tier: out (stride), those beyond the code's bits repeating the last one. `values`: of
// the query, as coordinates are multiplied with; null for squared norms.
inline void piece_scores(const mgqe_piece& piece, const float* book, const float* values, int64_t stride, float* out) {
    const int64_t width = piece.width, count = static_cast<int64_t>(1) << piece.bits;
    const float* const own = values ? values + piece.coordinate : nullptr;
    const float* const from = book + piece.entry;
    const auto fill_piece = [&](const auto& product) {
        for (int64_t k = 0; k < count; ++k) out[k] = product(from + k * width);
    };
    switch (width) {
        case 1:
            fill_piece([=](const float* c) { return dot<1>(own, c, 1); });
            break;
        case 2:
            fill_piece([=](const float* c) { return dot<2>(own, c, 2); });
            break;
        case 3:
            fill_piece([=](const float* c) { return dot<3>(own, c, 3); });
            break;
        case 4:
            fill_piece([=](const float* c) { return dot<4>(own, c, 4); });
            break;
        default:
            fill_piece([=](const float* c) { return dot<0>(own, c, width); });
    }
    for (int64_t k = count; k < stride; ++k) out[k] = out[count - 1];
}

// A query (embedding_dim) as coordinates meet it: turned (num_coordinates) = matrix @ query, the query times
// the column scales if there are any; and <mean, query>. Both are summed over t in order, each product and sum rounded.
inline float turn(const mgqe_table& table, const float* query, float* turned) {
    const int64_t dim = table.embedding_dim;
    const int64_t step = (dim + MGQE_MATRIX_STEP - 1) / MGQE_MATRIX_STEP * MGQE_MATRIX_STEP;
    const float* row = table.matrix;
    const float* const scales = table.column_scales;
    for (int64_t k = 0; k < table.num_coordinates; ++k, row += step) {
        turned[k] = scales ? query[0] * scales[0] * row[0] : dot<0>(query, row, dim);
        for (int64_t t = 1; scales && t < dim; ++t) turned[k] += query[t] * scales[t] * row[t];
    }
    return dot<0>(query, table.mean, dim);
}

}  // namespace

#endif
