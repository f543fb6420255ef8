// Decoding of rows whose subspaces differ in width or in bits.
//
// A block of rows is decoded one subspace after another, so that widths and bits are constants of the inner loop and
// the subspace's centroids stay in the first-level cache. Centroids are copied in 1, 2, 4, 8 or 16 floats: what is copied
// beyond a centroid lies in the coordinates of the next subspaces, which are written later, or in room behind the row.
#ifndef MGQE_MIXED_DECODE_H
#define MGQE_MIXED_DECODE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "isa.h"
#include "mixed_codes.h"

namespace {

inline bool is_mixed(const mgqe_table& table) { return table.tiers->layout != nullptr; }

// The least of 1, 2, 4, 8, 16 and multiples of 16 that holds a width.
inline int64_t copied_floats(int64_t width) {
    if (width > 8) return (width + 15) / 16 * 16;
    return width > 4 ? 8 : width > 2 ? 4 : width;
}

// How many floats from its start are written when a row is decoded.
inline int64_t reach_of_row(const mgqe_tier& tier) {
    int64_t reach = 0;
    for (int32_t j = 0; j < tier.num_subspaces; ++j) {
        const mgqe_piece& piece = tier.layout[j];
        const int64_t end = piece.coordinate + copied_floats(piece.width);
        reach = end > reach ? end : reach;
    }
    return reach;
}

// Floats between decoded rows, a multiple of 16.
inline int64_t coordinate_stride(const mgqe_table& table) {
    int64_t reach = 0;
    for (int32_t g = 0; g < table.num_tiers; ++g) {
        const int64_t own = reach_of_row(table.tiers[g]);
        reach = own > reach ? own : reach;
    }
    return (reach + 15) / 16 * 16;
}

// Whether rows can be decoded straight into a dense matrix (n, embedding_dim), in any order.
inline bool rows_fit(const mgqe_table& table) {
    for (int32_t g = 0; g < table.num_tiers; ++g)
        if (reach_of_row(table.tiers[g]) > table.embedding_dim) return false;
    return !table.matrix;
}

template <int kFloats, typename Reader>
inline void decode_piece(const mgqe_piece& piece, const float* book, const Reader& read, const mgqe_row* rows,
                         int64_t n) {
    const float* const centroids = book + piece.entry;
    const int64_t width = piece.width, coordinate = piece.coordinate;
    for (int64_t i = 0; i < n; ++i) {
        const float* const from = centroids + read(rows[i].codes) * width;
        float* const to = rows[i].out + coordinate;
        if (kFloats) {
            __builtin_memcpy(to, from, kFloats * sizeof(float));
        } else {
            for (int64_t t = 0; t < width; t += 16) __builtin_memcpy(to + t, from + t, 16 * sizeof(float));
        }
    }
}

// Coordinates of n rows of a mixed tier. Writes reach_of_row(tier) floats a row; `stream` is not for it.
inline void decode_mixed(const mgqe_tier& tier, const mgqe_row* rows, int64_t n, bool) {
    const float* const book = static_cast<const float*>(tier.centroids);
    for (int32_t j = 0; j < tier.num_subspaces; ++j) {
        const mgqe_piece& piece = tier.layout[j];
        with_reader(piece, tier.row_bytes, [&](const auto& read) {
            switch (copied_floats(piece.width)) {
                case 1:
                    return decode_piece<1>(piece, book, read, rows, n);
                case 2:
                    return decode_piece<2>(piece, book, read, rows, n);
                case 4:
                    return decode_piece<4>(piece, book, read, rows, n);
                case 8:
                    return decode_piece<8>(piece, book, read, rows, n);
                case 16:
                    return decode_piece<16>(piece, book, read, rows, n);
                default:
                    return decode_piece<0>(piece, book, read, rows, n);
            }
        });
    }
}

// Room for some rows of coordinates, zeros at first: what lies between rows is pooled with them.
class CoordinateRows {
public:
    const int64_t stride;
    explicit CoordinateRows(const mgqe_table& table) : stride(is_mixed(table) ? coordinate_stride(table) : 0) {}
    CoordinateRows(const CoordinateRows&) = delete;
    CoordinateRows& operator=(const CoordinateRows&) = delete;
    ~CoordinateRows() { free(memory); }
    bool reserve(int64_t rows) {
        const size_t bytes = static_cast<size_t>(rows * stride) * sizeof(float);
        void* room = nullptr;
        if (posix_memalign(&room, 64, bytes) != 0) return false;
        memset(room, 0, bytes);
        memory = static_cast<float*>(room);
        return true;
    }
    float* row(int64_t i) const { return memory + i * stride; }

private:
    float* memory = nullptr;
};

}  // namespace

#endif
