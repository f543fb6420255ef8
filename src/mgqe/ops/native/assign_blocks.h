// Nearest centroids of blocks of rows: lays the centroids of subspaces out for the kernels, and turns the rows.
#ifndef MGQE_ASSIGN_BLOCKS_H
#define MGQE_ASSIGN_BLOCKS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "isa.h"

namespace {

constexpr int64_t kPad = 16;  // strides of lanes, in floats
constexpr int64_t kTaskRows = 192;  // that meet one subspace's centroids in the cache: a multiple of both blocks of rows

inline int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

// Floats that the lanes of K centroids of s numbers take.
inline int64_t lane_floats(int64_t K, int64_t s) { return padded(K) * (s + 1) + padded(s); }

// Memory of `count` floats for the kernels, null where there is none.
inline float* aligned_floats(int64_t count) {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, static_cast<size_t>(count) * sizeof(float)) ? nullptr : static_cast<float*>(memory);
}

// The lanes of K centroids (K, s) in `values`, which has room for lane_floats.
inline void lay_out(const mgqe_kernels& kernels, const float* centroids, const float* bias, int64_t K, int64_t s,
                    float* values, mgqe_lanes& lanes) {
    const int64_t stride = padded(K);
    float* const start = values + stride * s;
    lanes = {values, start, centroids, bias, start + stride, 0, 0, K, stride, s};
    kernels.lay_out(lanes, values, start, start + stride);
}

// ---- subspaces of one number ----

constexpr int64_t kMostLevels = 256, kLeastLevels = 32;

inline int64_t level_count(int64_t K) { return K < kLeastLevels ? kLeastLevels : K; }

// Floats that the levels of K centroids take.
inline int64_t level_floats(int64_t K) { return 3 * level_count(K) + 4 * kLeastLevels; }

// The levels of K centroids of one number, K a power of two up to kMostLevels, in `room` for level_floats. False where
// they cannot be searched: centroids that are not finite, or so large that sums of them may not be, or so close together
// that rows far from them have the same squared distance to both in double precision.
inline bool set_levels(const float* centroids, int64_t K, float* room, mgqe_levels& levels) {
    int32_t order[kMostLevels];
    for (int64_t k = 0; k < K; ++k) {
        const float value = centroids[k];
        if (!(fabsf(value) < 1e37f)) return false;
        int64_t at = k;  // mostly in order already; equal ones stay in the order of k
        for (; at > 0 && centroids[order[at - 1]] > value; --at) order[at] = order[at - 1];
        order[at] = static_cast<int32_t>(k);
    }
    const int64_t count = level_count(K);
    float *const low = room, *const high = low + count, *const top = high + count, *const seventh = top + 2 * kLeastLevels;
    int32_t* const codes = reinterpret_cast<int32_t*>(seventh + 2 * kLeastLevels);
    int64_t found = 0;
    int32_t in_order = 1;
    float gap = 0;
    double before = 0;
    const double closest = 1e-6 * (static_cast<double>(centroids[order[K - 1]]) - centroids[order[0]]);
    for (int64_t i = 0; i < K; ++i) {
        const double value = centroids[order[i]];
        if (found && value == before) continue;
        if (found && value - before < closest) return false;
        // Half-way, and what roundings amount to: of the bounds, and of squares in double precision.
        const double middle = 0.5 * (before + value), margin = 1e-6 * (fabs(before) + fabs(value)) + 1e-42;
        if (found) low[found - 1] = static_cast<float>(middle - margin);
        high[found] = found ? static_cast<float>(middle + margin) : -FLT_MAX;
        if (found && high[found] - low[found - 1] > gap) gap = high[found] - low[found - 1];
        in_order &= order[i] == found;
        codes[found++] = order[i];
        before = value;
    }
    for (int64_t i = found - 1; i < count; ++i) low[i] = FLT_MAX;
    for (int64_t i = found; i < count; ++i) high[i] = FLT_MAX, codes[i] = 0;
    int32_t bits = 5;
    while ((1 << bits) < count) ++bits;
    const int64_t step = count / kLeastLevels;
    for (int64_t i = 0; i < kLeastLevels; ++i) {
        top[i] = low[(i + 1) * step - 1];
        if (step > 1) top[kLeastLevels + i] = low[i * step + step / 2 - 1];
        for (int64_t half = 0; step > 2 && half < 2; ++half)
            seventh[2 * i + half] = low[i * step + half * step / 2 + step / 4 - 1];
    }
    // A difference in single precision may be rounded up to the gap.
    levels = {low, high, top, seventh, codes, bits, in_order, nextafterf(nextafterf(gap, FLT_MAX), FLT_MAX)};
    return true;
}

// ---- blocks of rows ----

typedef float Four __attribute__((vector_size(16)));

#if defined(__clang__)
#define MGQE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t FourPlaces __attribute__((vector_size(16)));
#define MGQE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourPlaces{__VA_ARGS__})
#endif
inline Four zip_low(Four a, Four b) { return MGQE_SHUFFLE(a, b, 0, 4, 1, 5); }
inline Four zip_high(Four a, Four b) { return MGQE_SHUFFLE(a, b, 2, 6, 3, 7); }
#undef MGQE_SHUFFLE

// Turns a matrix of numbers of four bytes: to[t][i] = from[i][t], i < rows, t < columns.
inline void turn(const void* from_memory, int64_t from_step, int64_t rows, int64_t columns, void* to_memory,
                 int64_t to_step) {
    const char* const from = static_cast<const char*>(from_memory);
    char* const to = static_cast<char*>(to_memory);
    const auto in = [&](int64_t i, int64_t t) { return from + (i * from_step + t) * 4; };
    const auto out = [&](int64_t t, int64_t i) { return to + (t * to_step + i) * 4; };
    int64_t t = 0;
    for (; t + 4 <= columns; t += 4) {
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4) {
            Four a, b, c, d;
            __builtin_memcpy(&a, in(i, t), sizeof a);
            __builtin_memcpy(&b, in(i + 1, t), sizeof b);
            __builtin_memcpy(&c, in(i + 2, t), sizeof c);
            __builtin_memcpy(&d, in(i + 3, t), sizeof d);
            const Four ac = zip_low(a, c), bd = zip_low(b, d), ac_after = zip_high(a, c), bd_after = zip_high(b, d);
            const Four turned[4] = {zip_low(ac, bd), zip_high(ac, bd), zip_low(ac_after, bd_after),
                                    zip_high(ac_after, bd_after)};
            for (int k = 0; k < 4; ++k) __builtin_memcpy(out(t + k, i), &turned[k], sizeof(Four));
        }
        for (; i < rows; ++i)
            for (int k = 0; k < 4; ++k) __builtin_memcpy(out(t + k, i), in(i, t + k), 4);
    }
    for (; t < columns; ++t)
        for (int64_t i = 0; i < rows; ++i) __builtin_memcpy(out(t, i), in(i, t), 4);
}

// Lanes of K levels, laid out when the first number turns out to need them: few do.
struct LateLanes {
    const float* centroids;
    int64_t count;
    float* room;  // for lane_floats
    mgqe_lanes lanes;
    bool ready;
};

// Codes of n <= kSearchRows numbers, rows (n, row_step) of them; column has them one after another.
inline void search_block(const mgqe_kernels& kernels, const mgqe_levels& levels, LateLanes& late, const float* column,
                         const float* rows, int64_t row_step, int64_t n, int32_t* codes) {
    uint64_t unsure = kernels.search(levels, column, codes);
    if (n < kSearchRows) unsure &= (static_cast<uint64_t>(1) << n) - 1;
    for (; unsure; unsure &= unsure - 1) {
        if (!late.ready) lay_out(kernels, late.centroids, nullptr, late.count, 1, late.room, late.lanes);
        late.ready = true;
        const int64_t row = __builtin_ctzll(unsure);
        float scratch[kAssignRows];
        kernels.assign(late.lanes, rows + row * row_step, row_step, 1, codes + row, 1, scratch);
    }
}

// The lanes of a mixed table's subspaces.
class MixedLanes {
  public:
    MixedLanes() = default;
    MixedLanes(const MixedLanes&) = delete;
    MixedLanes& operator=(const MixedLanes&) = delete;
    ~MixedLanes() {
        free(memory_);
        free(lanes_);
        free(levels_);
    }

    // Of coordinates (n, L) and a flat codebook of so many entries; MGQE_BAD_ARGUMENT where these do not fit together.
    int32_t check(const mgqe_piece* pieces, int64_t D, int64_t L, int64_t entries) {
        if (D < 1 || L < 1) return MGQE_BAD_ARGUMENT;
        for (int64_t j = 0; j < D; ++j) {
            const mgqe_piece& piece = pieces[j];
            if (piece.bits < 0 || piece.bits > 16 || piece.width < 1 || piece.coordinate < 0 || piece.entry < 0)
                return MGQE_BAD_ARGUMENT;
            const int64_t K = static_cast<int64_t>(1) << piece.bits, s = piece.width;
            if (piece.coordinate + s > L || piece.entry + K * s > entries) return MGQE_BAD_ARGUMENT;
            floats_ += searched(piece) ? level_floats(K) : lane_floats(K, s);  // levels take more
            work_ += K * s;
            widest_ = s > widest_ ? s : widest_;
        }
        pieces_ = pieces;
        count_ = D;
        coordinates_ = L;
        return MGQE_OK;
    }

    int32_t set(const mgqe_kernels& kernels, const float* codebook) {
        memory_ = aligned_floats(floats_);
        lanes_ = static_cast<mgqe_lanes*>(malloc(static_cast<size_t>(count_) * sizeof(mgqe_lanes)));
        levels_ = static_cast<mgqe_levels*>(calloc(static_cast<size_t>(count_), sizeof(mgqe_levels)));
        if (!memory_ || !lanes_ || !levels_) return MGQE_NO_MEMORY;
        float* values = memory_;
        for (int64_t j = 0; j < count_; ++j) {
            const int64_t K = static_cast<int64_t>(1) << pieces_[j].bits, s = pieces_[j].width;
            const float* const centroids = codebook + pieces_[j].entry;
            lanes_[j].centroids = centroids;
            if (searched(pieces_[j]) && set_levels(centroids, K, values, levels_[j])) {
                searches_ = true;
            } else {
                lay_out(kernels, centroids, nullptr, K, s, values, lanes_[j]);
                sweeps_ = sweeps_ || K > 1;
            }
            values += searched(pieces_[j]) ? level_floats(K) : lane_floats(K, s);
        }
        return MGQE_OK;
    }

    // Floats that assign needs.
    int64_t room() const {
        return widest_ * kAssignRows + kTaskRows * (coordinates_ + count_) + lane_floats(kMostLevels, 1);
    }

    // Rows to assign at once: where there are levels alone, so few that they stay in the first cache.
    int64_t rows_at_once() const { return sweeps_ ? kTaskRows : kSearchRows; }

    // Codes (n, D) of n <= kTaskRows rows of coordinates (n, L). Subspaces come one after the other, so that each one's
    // centroids are read for all rows while they are in the cache.
    void assign(const mgqe_kernels& kernels, const float* coordinates, int64_t n, int32_t* codes, float* room) const {
        const int64_t L = coordinates_, D = count_;
        if (searches_) search(kernels, coordinates, n, codes, room + widest_ * kAssignRows);
        for (int64_t j = 0; j < D; ++j) {
            if (levels_[j].bits) continue;
            if (pieces_[j].bits == 0)
                for (int64_t i = 0; i < n; ++i) codes[i * D + j] = 0;
            else
                kernels.assign(lanes_[j], coordinates + pieces_[j].coordinate, L, n, codes + j, D, room);
        }
    }

    int64_t work() const { return work_; }  // products of a row

  private:
    // The codes of subspaces with levels; those of others are left open.
    void search(const mgqe_kernels& kernels, const float* coordinates, int64_t n, int32_t* codes, float* room) const {
        const int64_t L = coordinates_, D = count_;
        int32_t* const found = reinterpret_cast<int32_t*>(room + kTaskRows * L);
        for (int64_t first = 0; first < n; first += kSearchRows) {
            const int64_t rows = n - first < kSearchRows ? n - first : kSearchRows;
            float* const columns = room + first * L;
            turn(coordinates + first * L, L, rows, L, columns, kSearchRows);
            for (int64_t t = 0; t < L; ++t)
                for (int64_t i = rows; i < kSearchRows; ++i) columns[t * kSearchRows + i] = 0.0f;
        }
        float* const lanes = room + kTaskRows * (L + D);
        for (int64_t j = 0; j < D; ++j) {
            LateLanes late = {lanes_[j].centroids, static_cast<int64_t>(1) << pieces_[j].bits, lanes, {}, false};
            for (int64_t first = 0; levels_[j].bits && first < n; first += kSearchRows)
                search_block(kernels, levels_[j], late, room + first * L + pieces_[j].coordinate * kSearchRows,
                             coordinates + first * L + pieces_[j].coordinate, L,
                             n - first < kSearchRows ? n - first : kSearchRows, found + first * D + j * kSearchRows);
        }
        for (int64_t first = 0; first < n; first += kSearchRows)
            turn(found + first * D, kSearchRows, D, n - first < kSearchRows ? n - first : kSearchRows,
                 codes + first * D, D);
    }

    static bool searched(const mgqe_piece& piece) {
        return piece.width == 1 && piece.bits > 0 && (1 << piece.bits) <= kMostLevels;
    }

    const mgqe_piece* pieces_ = nullptr;
    float* memory_ = nullptr;
    mgqe_lanes* lanes_ = nullptr;
    mgqe_levels* levels_ = nullptr;
    int64_t count_ = 0, coordinates_ = 0, floats_ = 0, work_ = 0, widest_ = 1;
    bool searches_ = false, sweeps_ = false;  // whether there are subspaces with levels; with lanes to go through
};

}  // namespace

#endif
