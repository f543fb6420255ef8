// The byte filter: partial scores rounded up to bytes, so that their sum bounds a row's score from above and rows
// that cannot reach the k-th best score are passed over 16, 32 or 64 at a time.
//
// Bytes are in units of `step`, counted from the lowest entry of each subspace. Up to 8 columns share one sum of 8
// bits; more are summed 4 at a time and the groups in 16 bits, which allows a finer step.
#ifndef MGQE_BYTE_FILTER_H
#define MGQE_BYTE_FILTER_H

#include <math.h>
#include <stdint.h>

#include "topk.h"

namespace {

constexpr int64_t kNarrowColumns = 8;    // summed in 8 bits
constexpr int64_t kGroup = 4;            // of more columns
constexpr int64_t kMostColumns = 1024;   // 16 bits hold 257 groups
constexpr double kRounding = 1e-3;       // by how much of a step an entry may be too low, see byte_above

// A query's bound in one tier.
struct ByteBound {
    double base;     // the sum of the lowest entries
    double inverse;  // 1 / step
    double slack;    // in steps: what rounding may have taken from a bound
    bool usable;     // false: rows do not differ, or partial scores overflow
};

inline int64_t group_size(int64_t columns) { return columns <= kNarrowColumns ? columns : kGroup; }

// The lowest and highest of n numbers, n a multiple of 16. NaN may go unseen; the sums below do not miss it.
inline void extremes(const float* values, int64_t n, float& low, float& high) {
    float lows[16], highs[16];
    for (int l = 0; l < 16; ++l) lows[l] = highs[l] = values[l];
    for (int64_t i = 16; i < n; i += 16)
        for (int l = 0; l < 16; ++l) {
            const float x = values[i + l];
            lows[l] = x < lows[l] ? x : lows[l];
            highs[l] = x > highs[l] ? x : highs[l];
        }
    low = lows[0];
    high = highs[0];
    for (int l = 1; l < 16; ++l) {
        low = lows[l] < low ? lows[l] : low;
        high = highs[l] > high ? highs[l] : high;
    }
}

// x rounded up to a whole number, or down where it is less than kRounding above one. At least 0.
inline uint8_t byte_above(float x) { return static_cast<uint8_t>(static_cast<int32_t>(x + 0.9991f)); }

// Entries (columns, stride), the last column of last_stride entries, as bytes in the same places. `magnitude`: of the
// numbers that the entries were worked out from, where those are larger.
inline ByteBound bound_tables(const float* entries, int64_t columns, int64_t stride, int64_t last_stride,
                              double magnitude, uint8_t* bytes) {
    float lows[kMostColumns];
    const int64_t group = group_size(columns);
    double base = 0, widest = 0, largest = magnitude, range = 0;
    for (int64_t j = 0; j < columns; ++j) {
        float high;
        extremes(entries + j * stride, j + 1 == columns ? last_stride : stride, lows[j], high);
        if (j % group == 0) range = 0;
        range += static_cast<double>(high) - lows[j];
        widest = range > widest ? range : widest;
        base += lows[j];
        const double magnitude = fabs(high) > fabs(lows[j]) ? fabs(high) : fabs(lows[j]);
        largest += magnitude;
    }
    ByteBound bound{base, 0, 0, false};
    if (!(widest > 0) || !(largest < 1e30) || widest < 1e-30) return bound;
    bound.inverse = static_cast<double>(255 - group) / widest;
    // What the float32 sum of the score itself may be above the exact one, in steps; and the rounding of bytes.
    bound.slack = static_cast<double>(columns + 1) * kRounding +
                  static_cast<double>(columns + 4) * 2.4e-7 * largest * bound.inverse;
    bound.usable = true;
    const float inverse = static_cast<float>(bound.inverse);
    for (int64_t j = 0; j < columns; ++j) {
        const int64_t n = j + 1 == columns ? last_stride : stride;
        const float* from = entries + j * stride;
        uint8_t* to = bytes + j * stride;
        const float low = lows[j];
        for (int64_t i = 0; i < n; ++i) to[i] = byte_above((from[i] - low) * inverse);
    }
    return bound;
}

// The sum that a row needs to reach score `threshold`: 0 lets all rows pass, 65,536 none.
inline int64_t needed_sum(const ByteBound& bound, double threshold) {
    const double steps = ceil((threshold - bound.base) * bound.inverse - bound.slack);
    return steps <= 0 ? 0 : steps >= 65536 ? 65536 : static_cast<int64_t>(steps);
}

// Adds one column of byte entries to the sums of kVectors vectors of rows.
template <class F, int kEntries>
inline void add_column(const uint8_t* column, const uint8_t* table, typename F::Bytes* sums) {
    const typename F::template Table<kEntries> entries(table);
    for (int v = 0; v < F::kVectors; ++v)
        sums[v] = F::add(sums[v], entries.look_up(F::load(column + v * F::kLanes)));
}

template <class F>
inline void add_column(const uint8_t* column, const uint8_t* table, int64_t stride, typename F::Bytes* sums) {
    switch (stride) {
        case 16:
            return add_column<F, 16>(column, table, sums);
        case 64:
            return add_column<F, 64>(column, table, sums);
        case 128:
            return add_column<F, 128>(column, table, sums);
        default:
            return add_column<F, 256>(column, table, sums);
    }
}

// Which of `rows` rows (a multiple of 512) may reach the needed sum: one bit per row. `columns` (number, column_step)
// holds one byte per row. `entries` (number - 1): how many each column can name, where that differs, else null.
template <class F, int64_t kStride>
inline void pass_rows(const uint8_t* columns, int64_t rows, int64_t number, int64_t column_step,
                      const uint8_t* tables, const int32_t* entries, int64_t last_entries, int64_t needed,
                      uint64_t* masks) {
    constexpr int64_t kRows = F::kVectors * F::kLanes;
    const auto add = [&](int64_t j, const uint8_t* column, const uint8_t* table, typename F::Bytes* sums) {
        if (!entries && (j + 1 < number || last_entries == kStride)) return add_column<F, kStride>(column, table, sums);
        add_column<F>(column, table, j + 1 < number ? entries[j] : last_entries, sums);
    };
    for (int64_t row = 0; row < rows; row += kRows) {
        typename F::Bytes sums[F::kVectors];
        const uint8_t* column = columns + row;
        const uint8_t* table = tables;
        if (number <= kNarrowColumns) {
            for (int v = 0; v < F::kVectors; ++v) sums[v] = F::zero();
#pragma GCC unroll 1
            for (int64_t j = 0; j < number; ++j, column += column_step, table += kStride) add(j, column, table, sums);
            F::at_least(sums, needed, masks, row);
            continue;
        }
        typename F::Words words[F::kVectors];
        for (int v = 0; v < F::kVectors; ++v) words[v] = F::no_words();
        for (int64_t first = 0; first < number; first += kGroup) {
            for (int v = 0; v < F::kVectors; ++v) sums[v] = F::zero();
            const int64_t stop = first + kGroup < number ? first + kGroup : number;
#pragma GCC unroll 1
            for (int64_t j = first; j < stop; ++j, column += column_step, table += kStride) add(j, column, table, sums);
            for (int v = 0; v < F::kVectors; ++v) words[v] = F::widen(words[v], sums[v]);
        }
        F::words_at_least(words, needed, masks, row);
    }
}

template <class F>
inline void pass_rows(const uint8_t* columns, int64_t rows, int64_t number, int64_t column_step,
                      const uint8_t* tables, int64_t stride, const int32_t* entries, int64_t last_entries,
                      int64_t needed, uint64_t* masks) {
    switch (stride) {
        case 16:
            return pass_rows<F, 16>(columns, rows, number, column_step, tables, entries, last_entries, needed, masks);
        case 64:
            return pass_rows<F, 64>(columns, rows, number, column_step, tables, entries, last_entries, needed, masks);
        case 128:
            return pass_rows<F, 128>(columns, rows, number, column_step, tables, entries, last_entries, needed, masks);
        default:
            return pass_rows<F, 256>(columns, rows, number, column_step, tables, entries, last_entries, needed, masks);
    }
}

}  // namespace

#endif
