// The product of rows of bytes with the matrix of a table of whole numbers, as the table has it: columns of four
// coordinates, a byte each. For instruction sets that add four products of bytes at once. Of such a set `W` it wants
//   Products, a vector of four bytes for each of kLanes columns; load_products(), of the matrix;
//   spread(), four bytes of a row for every column; start(), what sums start from;
//   add_products(): sums of the four products of each column.
#ifndef MGQE_WHOLE_MATRIX_H
#define MGQE_WHOLE_MATRIX_H

#include <stdint.h>

#include "whole_kernel.h"

namespace {

template <typename W>
class ByteMatrix {
public:
    explicit ByteMatrix(const mgqe_table& of) : table(of) {}
    bool reserve() { return true; }

    template <int kRows>
    void multiply_rows(const uint8_t* const* bytes, const mgqe_row* rows, bool stream) const {
        const int64_t dim = table.embedding_dim;
        int64_t first = 0;
        for (; first + 3 * kLanes < dim; first += 4 * kLanes) multiply_columns<kRows, 4>(bytes, rows, first, stream);
        for (; first < dim; first += kLanes) multiply_columns<kRows, 1>(bytes, rows, first, stream);
    }

private:
    static constexpr int64_t kLanes = W::kLanes;
    const mgqe_table& table;

    // Columns [first, first + kLanes * kVectors) of kRows rows: mean + scale * (coordinates @ matrix).
    template <int kRows, int kVectors>
    void multiply_columns(const uint8_t* const* bytes, const mgqe_row* rows, int64_t first, bool stream) const {
        typedef typename W::Floats Floats;
        const int64_t dim = table.embedding_dim, quads = (table.num_coordinates + 3) / 4;
        const int64_t step = 4 * round_up(dim, MGQE_MATRIX_STEP);
        typename W::Ints sums[kRows][kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) sums[r][v] = W::start(table.byte_sums + first + kLanes * v);
        const int8_t* from = table.byte_matrix + 4 * first;
        for (int64_t quad = 0; quad < quads; ++quad, from += step) {
            typename W::Products values[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) values[v] = W::load_products(from + 4 * kLanes * v);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                int32_t four;
                __builtin_memcpy(&four, bytes[r] + 4 * quad, 4);
                const typename W::Products z = W::spread(four);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sums[r][v] = W::add_products(sums[r][v], z, values[v]);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = first + kLanes * v;
            const Floats mean = load_vector<Floats>(table.mean + at);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                float* const to = rows[r].out + at;
                W::write(to, add_scaled<W>(mean, table, at, sums[r][v]), dim - at, goes_around<W>(to, stream));
            }
        }
    }
};

}  // namespace

#endif
