// Look-ups and sums in tables of whole numbers, included by each whole_*.cpp.
//
// A centroid is some bytes, each 128 more than a coordinate. A row's codes are unpacked many at a time into the places
// of its centroids, which are copied into a row of bytes. Where coordinates share their centroids, the levels, codes are
// unpacked and levels found in registers. Bags add up rows of bytes.
// What an instruction set `W` offers is listed where it is used:
//   PlaceCodes, kPlaces, lay_out_places(), places();
//   LevelCodes, kLevels, lay_out_levels(), decode_levels(); decode_row(), if kDecodesRows;
//   Matrix, which multiplies (whole_matrix.h has one for sets that add four products of bytes at once);
//   Ints and Floats, vectors of kLanes numbers; widen(), as many bytes or 16-bit numbers as Ints;
//   Words, a vector of 16-bit numbers; write(), Floats to a row, of which `left` numbers are missing; fence();
//   kMultipliesWords, and then multiply_words(): sums of bags with the matrix.
#ifndef MGQE_WHOLE_KERNEL_H
#define MGQE_WHOLE_KERNEL_H

#include <stdint.h>

#include <new>

#include "mgqe_native.h"
#include "whole.h"
#include "whole_lookup.h"
#include "whole_rows.h"

namespace {

template <typename W>
Whole<W>* own(mgqe_whole* whole) {
    return reinterpret_cast<Whole<W>*>(whole);
}

template <typename W>
const Whole<W>* own(const mgqe_whole* whole) {
    return reinterpret_cast<const Whole<W>*>(whole);
}

template <typename W>
mgqe_whole* prepare_whole(const mgqe_table& table) {
    Whole<W>* whole = new (std::nothrow) Whole<W>(table);
    if (whole && !whole->reserve()) {
        delete whole;
        whole = nullptr;
    }
    return reinterpret_cast<mgqe_whole*>(whole);
}

template <typename W>
constexpr mgqe_whole_kernels whole_kernels() {
    return {lookup_whole<W>,
            prepare_whole<W>,
            [](mgqe_whole* whole) { delete own<W>(whole); },
            [](const mgqe_table& table) { return round_up(table.num_coordinates, 64); },
            [](mgqe_whole* whole, const mgqe_row* rows, const int32_t* tiers, int64_t n, const uint8_t** bytes) {
                own<W>(whole)->read(rows, tiers, n, bytes);
            },
            [](const mgqe_whole* whole, const uint8_t* bytes, float* out) { own<W>(whole)->row(bytes, out); },
            [](const mgqe_whole* whole, const uint8_t* const* bytes, int64_t n, bool fresh, float* out) {
                own<W>(whole)->sum(bytes, n, fresh, out);
            },
            [](const mgqe_whole* whole) { return own<W>(whole)->sums_lots(); },
            [](const mgqe_whole* whole, const mgqe_lot& lot, bool fresh, float* out) {
                own<W>(whole)->sum(lot, fresh, out);
            },
            [](const mgqe_whole* whole) { return own<W>(whole)->most_multiplied(); },
            [](mgqe_whole* whole, const uint8_t* const* bytes, int64_t n, int64_t bag) {
                own<W>(whole)->sum_bag(bytes, n, bag);
            },
            [](mgqe_whole* whole, const mgqe_lot& lot, bool fresh, int64_t bag) {
                own<W>(whole)->sum_bag(lot, fresh, bag);
            },
            [](const mgqe_whole* whole, const float* shares, int64_t n, float* const* out) {
                own<W>(whole)->multiply_bags(shares, n, out);
            }};
}

}  // namespace

#endif
