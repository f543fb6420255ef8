// Rows as mean + coordinates @ matrix, included by each isa_*.cpp.
//
// A vector `Vec` offers multiply_add(a, b, c): a * b + c rounded once; kMatrixVectors: how many vectors of four rows
// its registers hold; and stream(p, v), which writes around the caches where its instruction set can. Products are
// added in the order of coordinates, so that all instruction sets give the same bits. Column scales come last.
#ifndef MGQE_MATRIX_KERNEL_H
#define MGQE_MATRIX_KERNEL_H

#include <stdint.h>

#include "isa.h"
#include "mixed_decode.h"

namespace {

// Writes the first n floats of a vector.
template <typename Vec>
inline void store_first(float* to, typename Vec::F v, int64_t n) {
    float all[Vec::kLanes];
    Vec::store(all, v);
    for (int64_t t = 0; t < n; ++t) to[t] = all[t];
}

// Columns [first, first + kVectors * kLanes) of kRows rows. See multiply_rows.
template <typename Vec, int kRows, int kVectors>
inline void multiply_tile(const mgqe_table& table, const float* coordinates, int64_t stride, const float* shares,
                          float* const* out, int64_t first, bool stream) {
    typedef typename Vec::F F;
    const int64_t L = table.num_coordinates, dim = table.embedding_dim;
    const int64_t step = (dim + MGQE_MATRIX_STEP - 1) / MGQE_MATRIX_STEP * MGQE_MATRIX_STEP;
    F sums[kRows][kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        const F mean = Vec::load(table.mean + first + v * Vec::kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
            sums[r][v] = table.column_scales ? Vec::broadcast(0.0f) : shares ? mean * Vec::broadcast(shares[r]) : mean;
    }
    const float* row = table.matrix + first;
    for (int64_t k = 0; k < L; ++k, row += step) {
        F values[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) values[v] = Vec::load(row + v * Vec::kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const F z = Vec::broadcast(coordinates[r * stride + k]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec::multiply_add(z, values[v], sums[r][v]);
        }
    }
    if (table.column_scales) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const F mean = Vec::load(table.mean + first + v * Vec::kLanes);
            const F scale = Vec::load(table.column_scales + first + v * Vec::kLanes);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                const F start = shares ? mean * Vec::broadcast(shares[r]) : mean;
                sums[r][v] = start + sums[r][v] * scale;
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = first + v * Vec::kLanes;
            float* const to = out[r] + at;
            if (at + Vec::kLanes > dim) {
                if (at < dim) store_first<Vec>(to, sums[r][v], dim - at);
            } else if (stream && reinterpret_cast<uintptr_t>(to) % sizeof(F) == 0) {
                Vec::stream(to, sums[r][v]);
            } else {
                Vec::store(to, sums[r][v]);
            }
        }
}

template <typename Vec, int kRows>
inline void multiply_few(const mgqe_table& table, const float* coordinates, int64_t stride, const float* shares,
                         float* const* out, bool stream) {
    constexpr int kMost = Vec::kMatrixVectors;
    const int64_t dim = table.embedding_dim;
    int64_t first = 0;
    for (; first + (kMost - 1) * Vec::kLanes < dim; first += kMost * Vec::kLanes)
        multiply_tile<Vec, kRows, kMost>(table, coordinates, stride, shares, out, first, stream);
    for (; first < dim; first += Vec::kLanes)
        multiply_tile<Vec, kRows, 1>(table, coordinates, stride, shares, out, first, stream);
}

// One row where the matrix is the identity.
template <typename Vec>
inline void scale_row(const mgqe_table& table, const float* coordinates, float share, float* out, bool stream) {
    typedef typename Vec::F F;
    const int64_t dim = table.embedding_dim;
    stream = stream && reinterpret_cast<uintptr_t>(out) % sizeof(F) == 0;
    for (int64_t t = 0; t < dim; t += Vec::kLanes) {
        // The mean times 1 is the mean.
        const F start = Vec::load(table.mean + t) * Vec::broadcast(share);
        const F row = start + Vec::load(coordinates + t) * Vec::load(table.column_scales + t);
        if (t + Vec::kLanes > dim) store_first<Vec>(out + t, row, dim - t);
        else if (stream) Vec::stream(out + t, row);
        else Vec::store(out + t, row);
    }
}

// Rows out[i] (embedding_dim) = shares[i] * mean + coordinates[i] @ matrix, i < n; shares null: 1.
template <typename Vec>
void multiply_rows(const mgqe_table& table, const float* coordinates, int64_t stride, const float* shares, int64_t n,
                   float* const* out, bool stream) {
    int64_t i = 0;
    if (table.diagonal) {
        for (; i < n; ++i)
            scale_row<Vec>(table, coordinates + i * stride, shares ? shares[i] : 1.0f, out[i], stream);
        return;
    }
    for (; i + 4 <= n; i += 4)
        multiply_few<Vec, 4>(table, coordinates + i * stride, stride, shares ? shares + i : nullptr, out + i, stream);
    for (; i < n; ++i)
        multiply_few<Vec, 1>(table, coordinates + i * stride, stride, shares ? shares + i : nullptr, out + i, stream);
}

// The same of dense rows.
template <typename Vec>
void multiply_dense(const mgqe_table& table, const float* rows, int64_t n, float* out) {
    constexpr int64_t kAtOnce = 64;
    const int64_t L = table.num_coordinates, dim = table.embedding_dim;
    for (int64_t first = 0; first < n; first += kAtOnce) {
        const int64_t some = n - first < kAtOnce ? n - first : kAtOnce;
        float* to[kAtOnce];
        for (int64_t i = 0; i < some; ++i) to[i] = out + (first + i) * dim;
        multiply_rows<Vec>(table, rows + first * L, L, nullptr, some, to, false);
    }
}

// squares[i] = the squared length of row first + i of a tier, i < count: summed over t in order, each product and sum
// rounded. scratch has room for kSquaredRows rows of coordinates, rows for as many of embedding_dim floats.
constexpr int64_t kSquaredRows = 32;

template <typename Vec>
void square_rows(const mgqe_table& table, int64_t tier_index, int64_t first, int64_t count, float* scratch,
                 float* rows, float* squares) {
    const mgqe_tier& tier = table.tiers[tier_index];
    const int64_t dim = table.embedding_dim, stride = coordinate_stride(table);
    mgqe_row located[kSquaredRows];
    float* out[kSquaredRows];
    for (int64_t done = 0; done < count; done += kSquaredRows) {
        const int64_t some = count - done < kSquaredRows ? count - done : kSquaredRows;
        for (int64_t i = 0; i < some; ++i) {
            located[i] = {tier.codes + (first + done + i) * tier.row_bytes, scratch + i * stride};
            out[i] = rows + i * dim;
        }
        decode_mixed(tier, located, some, false);
        multiply_rows<Vec>(table, scratch, stride, nullptr, some, out, false);
        for (int64_t i = 0; i < some; ++i) {
            float sum = out[i][0] * out[i][0];
            for (int64_t t = 1; t < dim; ++t) sum += out[i][t] * out[i][t];
            squares[done + i] = sum;
        }
    }
}

}  // namespace

#endif
