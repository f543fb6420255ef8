// Nearest centroid with the running minimum in registers; included by each isa_*.cpp after its vector type.
//
// The answer is defined by scores in double precision (exact_score below, which the torch twin repeats bit by bit), and
// found by scores in single precision of rows and centroids less a shift: where the least of these is below all others
// by more than rounding can amount to, it is the answer; else those that are near it are scored again. So every
// instruction set agrees, whatever the order and the rounding of its sums.
//
// Lanes run over k. A vector `V` offers: kLanes, F (floats), I (int32), load, store, broadcast; less_product(c, a, b),
// c - a * b rounded once or twice; iota(first) = first, first + 1, ...; next(k) = k + kLanes; keep_two(best, second,
// index, score, k), which keeps the least two scores of a lane and the k of the least one, and passes over NaN;
// least(v), the smallest lane; not_above(v, limit), a bit for each lane that is not larger than the limit; and search, for
// kSearched numbers at once (search_levels).
#ifndef MGQE_ASSIGN_KERNEL_H
#define MGQE_ASSIGN_KERNEL_H

#include <float.h>
#include <math.h>
#include <stdint.h>

#include "isa.h"

namespace {

constexpr int64_t kMaxLanes = 16;
// Bytes of centroids swept by one group of rows before the next group: half of a small first-level cache.
constexpr int64_t kTileBytes = 16 * 1024;
// Rows that are farther than 2^20 times the longest centroid from the shift: squared distances would all be equal.
constexpr double kFar = 1099511627776.0;

struct RunningMin {
    alignas(64) float best[kAssignRows][kMaxLanes];
    alignas(64) float second[kAssignRows][kMaxLanes];
    alignas(64) int32_t index[kAssignRows][kMaxLanes];
};

// ---- the definition ----

// Whether squared distances of a row lose the differences between centroids.
inline bool is_far(const mgqe_lanes& lanes, const float* x) {
    double length = 0.0;
    for (int64_t t = 0; t < lanes.width; ++t) {
        const double centred = static_cast<double>(x[t]) - lanes.shift[t];
        length += centred * centred;
    }
    return length > kFar * lanes.longest && length < INFINITY;
}

// With a bias, bias - <x, c>; else the squared distance, or, of far rows, the squared distance less that of the shift.
inline double exact_score(const mgqe_lanes& lanes, const float* x, bool far, int64_t k) {
    const float* c = lanes.centroids + k * lanes.width;
    double score = lanes.bias ? static_cast<double>(lanes.bias[k]) : 0.0;
    for (int64_t t = 0; t < lanes.width; ++t) {
        const double value = x[t], centroid = c[t];
        if (lanes.bias) {
            score -= value * centroid;
            continue;
        }
        const double p = far ? static_cast<double>(lanes.shift[t]) : value;
        const double q = far ? 2.0 * value - lanes.shift[t] : value;
        score += (centroid - p) * (centroid - q);
    }
    return score;
}

// ---- the layout ----

inline float finite_or_zero(float x) { return x - x == 0.0f ? x : 0.0f; }

constexpr int64_t kPart = 16;  // centroids that are worked on together: the stride is a multiple of it

// Half-way between the least and the largest of n numbers, n a multiple of kPart. Any shift is right; this one depends
// on no order.
inline float middle_of(const float* values, int64_t n) {
    float low[kPart], high[kPart];
    for (int l = 0; l < kPart; ++l) low[l] = high[l] = finite_or_zero(values[l]);
    for (int64_t at = kPart; at < n; at += kPart)
        for (int l = 0; l < kPart; ++l) {
            const float c = finite_or_zero(values[at + l]);
            low[l] = c < low[l] ? c : low[l];
            high[l] = c > high[l] ? c : high[l];
        }
    for (int l = 1; l < kPart; ++l) {
        low[0] = low[l] < low[0] ? low[l] : low[0];
        high[0] = high[l] > high[0] ? high[l] : high[0];
    }
    return 0.5f * low[0] + 0.5f * high[0];
}

// See mgqe_kernels.
inline void lay_out_lanes(mgqe_lanes& lanes, float* values, float* start, float* shift) {
    const int64_t K = lanes.count, s = lanes.width, stride = lanes.stride;
    for (int64_t k = 0; k < K; ++k)
        for (int64_t t = 0; t < s; ++t) values[t * stride + k] = lanes.centroids[k * s + t];
    for (int64_t t = 0; t < s; ++t) {
        float* const own = values + t * stride;
        for (int64_t k = K; k < stride; ++k) own[k] = own[0];
        shift[t] = lanes.bias ? 0.0f : middle_of(own, stride);
    }
    for (int64_t at = 0; at < stride; at += kPart) {
        double lengths[kPart] = {};
        float spoilt[kPart] = {};  // NaN where a number is not finite
        for (int64_t t = 0; t < s; ++t) {
            float* const own = values + t * stride + at;
            const float middle = shift[t];
            for (int l = 0; l < kPart; ++l) {
                const double centred = static_cast<double>(finite_or_zero(own[l])) - static_cast<double>(middle);
                lengths[l] += centred * centred;
                spoilt[l] += own[l] - own[l];
                own[l] -= middle;
            }
        }
        for (int l = 0; l < kPart; ++l) {
            lanes.longest = lengths[l] > lanes.longest ? lengths[l] : lanes.longest;
            if (!lanes.bias) start[at + l] = static_cast<float>(0.5 * lengths[l]) + spoilt[l];
        }
    }
    for (int64_t k = 0; lanes.bias && k < K; ++k) {
        start[k] = lanes.bias[k];
        const double size = fabs(finite_or_zero(start[k]));
        lanes.largest_bias = size > lanes.largest_bias ? size : lanes.largest_bias;
    }
    for (int64_t k = K; k < stride; ++k) start[k] = NAN;
}

// ---- the search ----

// R rows against centroids [first, last) (multiples of kLanes). kWidth = 0: width known at run time only.
// kFresh: nothing is in `state` yet.
template <typename V, int R, int kWidth, bool kFresh>
inline void sweep(const mgqe_lanes& lanes, const float* x, int64_t first, int64_t last, RunningMin& state,
                  int64_t row) {
    const int64_t width = kWidth ? kWidth : lanes.width;
    const int64_t stride = lanes.stride;
    typename V::F best[R], second[R];
    typename V::I index[R];
    for (int r = 0; r < R; ++r) {
        best[r] = kFresh ? V::broadcast(INFINITY) : V::load(state.best[row + r]);
        second[r] = kFresh ? V::broadcast(INFINITY) : V::load(state.second[row + r]);
        index[r] = kFresh ? V::iota(0) : V::load_i(state.index[row + r]);
    }
    typename V::I k = V::iota(static_cast<int32_t>(first));
    for (int64_t at = first; at < last; at += V::kLanes) {
        // Without this the compiler hoists the broadcasts of x out of the loop, runs out of registers and spills
        // them as whole vectors; reading x again costs nothing.
        __asm__ volatile("" ::: "memory");
        typename V::F score[R];
        const typename V::F start = V::load(lanes.start + at);
        for (int r = 0; r < R; ++r) score[r] = start;
        const float* c = lanes.values + at;
#pragma GCC unroll 8
        for (int64_t t = 0; t < width; ++t, c += stride) {
            const typename V::F centroid = V::load(c);
            for (int r = 0; r < R; ++r)
                score[r] = V::less_product(score[r], V::broadcast(x[r * width + t]), centroid);
        }
        for (int r = 0; r < R; ++r) V::keep_two(best[r], second[r], index[r], score[r], k);
        k = V::next(k);
    }
    for (int r = 0; r < R; ++r) {
        V::store(state.best[row + r], best[r]);
        V::store(state.second[row + r], second[r]);
        V::store_i(state.index[row + r], index[r]);
    }
}

// The exact answer among the centroids whose score in single precision is at most `limit`, or NaN: the lowest k of
// the least score; NaN loses against all others, nothing but NaN gives 0. `centred`: the row less the shift.
template <typename V>
inline int32_t exact_code(const mgqe_lanes& lanes, const float* x, const float* centred, float limit) {
    const bool far = !lanes.bias && is_far(lanes, x);
    int64_t code = -1;
    double least = INFINITY;
    for (int64_t at = 0; at < lanes.count; at += V::kLanes) {
        typename V::F score = V::load(lanes.start + at);
        for (int64_t t = 0; t < lanes.width; ++t)
            score = V::less_product(score, V::broadcast(centred[t]), V::load(lanes.values + t * lanes.stride + at));
        uint32_t near = V::not_above(score, limit);
        if (lanes.count - at < V::kLanes) near &= (1u << (lanes.count - at)) - 1;
        for (; near; near &= near - 1) {
            const int64_t k = at + __builtin_ctz(near);
            const double exact = exact_score(lanes, x, far, k);
            if (!(exact == exact) || !(code < 0 || exact < least)) continue;
            code = k;
            least = exact;
        }
    }
    return static_cast<int32_t>(code < 0 ? 0 : code);
}

// By how much two scores of a row in single precision may be off together. Sums of `width` rounded products, of
// centroids and a row that are rounded themselves; and what is lost where products are too small for normal numbers.
// Infinite where scores may overflow. `squares`: of the row's length, a little more than it is.
inline float margin_of(const mgqe_lanes& lanes, float squares) {
    const float starts = static_cast<float>(lanes.bias ? lanes.largest_bias : 0.5 * lanes.longest);
    const float size = starts + __builtin_sqrtf(squares) * static_cast<float>(sqrt(lanes.longest));
    return size < 1e37f ? static_cast<float>(lanes.width + 4) * (1.21e-7f * size + 1e-37f) : INFINITY;
}

// A row less the shift, and a little more than the squares of its length.
template <int kWidth>
inline float centre(const float* x, const float* shift, int64_t run_time_width, float* to) {
    typedef float Four __attribute__((vector_size(16)));
    const int64_t width = kWidth ? kWidth : run_time_width;
    float squares = 1e-36f;  // more than squares too small for float32 can amount to
    Four sums = {};
    int64_t t = 0;
    for (; t + 4 <= width; t += 4) {
        Four value, middle;
        __builtin_memcpy(&value, x + t, sizeof value);
        __builtin_memcpy(&middle, shift + t, sizeof middle);
        value -= middle;
        sums += value * value;
        __builtin_memcpy(to + t, &value, sizeof value);
    }
    for (; t < width; ++t) {
        to[t] = x[t] - shift[t];
        squares += to[t] * to[t];
    }
    return squares + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename V>
inline int32_t winner(const mgqe_lanes& lanes, const float* x, const float* centred, float margin,
                      const RunningMin& state, int64_t row) {
    const typename V::F best = V::load(state.best[row]);
    const float limit = V::least(best) + margin;
    const uint32_t near = V::not_above(best, limit);
    if (near & (near - 1) || V::not_above(V::load(state.second[row]), limit))
        return exact_code<V>(lanes, x, centred, limit);
    return state.index[row][__builtin_ctz(near)];
}

template <typename V, int R, int kWidth>
inline void assign_width(const mgqe_lanes& lanes, const float* rows, int64_t row_step, int64_t n, int32_t* codes,
                         int64_t codes_step, float* scratch) {
    RunningMin state;
    float margins[kAssignRows];
    const int64_t width = kWidth ? kWidth : lanes.width;
    int64_t tile = kTileBytes / (4 * (width + 1)) / kMaxLanes * kMaxLanes;
    if (tile < 4 * kMaxLanes) tile = 4 * kMaxLanes;
    const int64_t end = (lanes.count + V::kLanes - 1) / V::kLanes * V::kLanes;
    for (int64_t start = 0; start < n; start += kAssignRows) {
        const int64_t chunk = n - start < kAssignRows ? n - start : kAssignRows;
        for (int64_t row = 0; row < chunk; ++row) {
            const float squares =
                centre<kWidth>(rows + (start + row) * row_step, lanes.shift, width, scratch + row * width);
            margins[row] = margin_of(lanes, squares);
        }
        if (!kWidth)  // narrow widths start in registers, which slows the loop of run-time width down
            for (int64_t row = 0; row < chunk; ++row)
                for (int lane = 0; lane < V::kLanes; ++lane) {
                    state.best[row][lane] = INFINITY;
                    state.second[row][lane] = INFINITY;
                    state.index[row][lane] = 0;
                }
        for (int64_t first = 0; first < end; first += tile) {
            const int64_t last = first + tile < end ? first + tile : end;
            int64_t row = 0;
            for (; row + R <= chunk; row += R) {
                if (kWidth && first == 0)
                    sweep<V, R, kWidth, true>(lanes, scratch + row * width, first, last, state, row);
                else
                    sweep<V, R, kWidth, false>(lanes, scratch + row * width, first, last, state, row);
            }
            for (; row < chunk; ++row) {
                if (kWidth && first == 0)
                    sweep<V, 1, kWidth, true>(lanes, scratch + row * width, first, last, state, row);
                else
                    sweep<V, 1, kWidth, false>(lanes, scratch + row * width, first, last, state, row);
            }
        }
        for (int64_t row = 0; row < chunk; ++row)
            codes[(start + row) * codes_step] =
                winner<V>(lanes, rows + (start + row) * row_step, scratch + row * width, margins[row], state, row);
    }
}

template <typename V, int R>
inline void assign_lanes(const mgqe_lanes& lanes, const float* rows, int64_t row_step, int64_t n, int32_t* codes,
                         int64_t codes_step, float* scratch) {
    switch (lanes.width) {
        case 1:
            return assign_width<V, R, 1>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 2:
            return assign_width<V, R, 2>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 3:
            return assign_width<V, R, 3>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 4:
            return assign_width<V, R, 4>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 5:
            return assign_width<V, R, 5>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 6:
            return assign_width<V, R, 6>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 7:
            return assign_width<V, R, 7>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 8:
            return assign_width<V, R, 8>(lanes, rows, row_step, n, codes, codes_step, scratch);
        case 16:
            return assign_width<V, R, 16>(lanes, rows, row_step, n, codes, codes_step, scratch);
        default:
            return assign_width<V, R, 0>(lanes, rows, row_step, n, codes, codes_step, scratch);
    }
}

// ---- subspaces of one number ----

// See mgqe_kernels.
template <typename V>
inline uint64_t search_levels(const mgqe_levels& levels, const float* column, int32_t* codes) {
    uint64_t unsure = 0;
    for (int64_t first = 0; first < kSearchRows; first += V::kSearched)
        unsure |= static_cast<uint64_t>(V::search(levels, column + first, codes + first)) << first;
    return unsure;
}

// Eight numbers, a step of all of them at a time.
inline uint32_t search_eight(const mgqe_levels& levels, const float* x, int32_t* codes) {
    int64_t place[8] = {};
    for (int64_t half = (static_cast<int64_t>(1) << levels.bits) / 2; half; half /= 2)
        for (int i = 0; i < 8; ++i) place[i] += levels.low[place[i] + half - 1] < x[i] ? half : 0;
    uint32_t unsure = 0;
    for (int i = 0; i < 8; ++i) {
        codes[i] = levels.codes[place[i]];
        unsure |= static_cast<uint32_t>(!(x[i] >= levels.high[place[i]] && x[i] <= FLT_MAX)) << i;
    }
    return unsure;
}

}  // namespace

#endif
