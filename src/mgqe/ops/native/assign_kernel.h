// Nearest centroid with the running minimum in registers; included by each isa_*.cpp after its vector type.
//
// Lanes run over k. A vector `V` offers: kLanes, F (floats), I (int32), load, store, broadcast, mul, sub,
// iota(first) = first, first + 1, ...; next(k) = k + kLanes; keep_less(best, index, score, k), which replaces the
// lanes where score < best; least(v), the smallest lane; least_index(best, least, index), the smallest of the
// indices at `index` among the lanes of best that equal least.
// Every score is bias - x_0 * c_0 - x_1 * c_1 - ..., each product and difference rounded, in this order, whatever
// the blocking: a row's code depends on nothing but the row, and every instruction set agrees.
#ifndef MGQE_ASSIGN_KERNEL_H
#define MGQE_ASSIGN_KERNEL_H

#include <math.h>
#include <stdint.h>

#include "isa.h"

namespace {

constexpr int64_t kMaxLanes = 16;
// Bytes of centroids swept by one group of rows before the next group: half of a small first-level cache.
constexpr int64_t kTileBytes = 16 * 1024;
constexpr int64_t kRowChunk = 64;

struct RunningMin {
    alignas(64) float best[kRowChunk][kMaxLanes];
    alignas(64) int32_t index[kRowChunk][kMaxLanes];
};

// R rows against centroids [first, last) (multiples of kLanes). kWidth = 0: width known at run time only.
// kFresh: nothing is in `state` yet.
template <typename V, int R, int kWidth, bool kFresh>
inline void sweep(const mgqe_lanes& lanes, const float* const* x, int64_t first, int64_t last, RunningMin& state,
                  int64_t row) {
    const int64_t width = kWidth ? kWidth : lanes.width;
    const int64_t stride = lanes.stride;
    typename V::F best[R];
    typename V::I index[R];
    for (int r = 0; r < R; ++r) {
        best[r] = kFresh ? V::broadcast(INFINITY) : V::load(state.best[row + r]);
        index[r] = kFresh ? V::iota(0) : V::load_i(state.index[row + r]);
    }
    typename V::I k = V::iota(static_cast<int32_t>(first));
    for (int64_t at = first; at < last; at += V::kLanes) {
        // Without this the compiler hoists the broadcasts of x out of the loop, runs out of registers and spills
        // them as whole vectors; reading x again costs nothing.
        __asm__ volatile("" ::: "memory");
        typename V::F score[R];
        const typename V::F bias = V::load(lanes.bias + at);
        for (int r = 0; r < R; ++r) score[r] = bias;
        const float* c = lanes.values + at;
#pragma GCC unroll 8
        for (int64_t t = 0; t < width; ++t, c += stride) {
            const typename V::F centroid = V::load(c);
            for (int r = 0; r < R; ++r) score[r] = V::sub(score[r], V::mul(V::broadcast(x[r][t]), centroid));
        }
        for (int r = 0; r < R; ++r) V::keep_less(best[r], index[r], score[r], k);
        k = V::next(k);
    }
    for (int r = 0; r < R; ++r) {
        V::store(state.best[row + r], best[r]);
        V::store_i(state.index[row + r], index[r]);
    }
}

// No score was below +inf: the first that is not NaN wins (so +inf beats NaN), else 0.
inline int32_t first_number(const mgqe_lanes& lanes, const float* x) {
    for (int64_t k = 0; k < lanes.count; ++k) {
        float score = lanes.bias[k];
        for (int64_t t = 0; t < lanes.width; ++t) score -= x[t] * lanes.values[t * lanes.stride + k];
        if (score == score) return static_cast<int32_t>(k);
    }
    return 0;
}

template <typename V>
inline int32_t winner(const mgqe_lanes& lanes, const float* x, const RunningMin& state, int64_t row) {
    const typename V::F best = V::load(state.best[row]);
    const float least = V::least(best);
    if (!(least < INFINITY)) return first_number(lanes, x);
    return V::least_index(best, least, state.index[row]);
}

template <typename V, int R, int kWidth>
inline void assign_width(const mgqe_lanes& lanes, const float* rows, int64_t row_step, int64_t n, int32_t* codes,
                         int64_t codes_step) {
    RunningMin state;
    int64_t tile = kTileBytes / (4 * (lanes.width + 1)) / kMaxLanes * kMaxLanes;
    if (tile < 4 * kMaxLanes) tile = 4 * kMaxLanes;
    const int64_t end = (lanes.count + V::kLanes - 1) / V::kLanes * V::kLanes;
    for (int64_t start = 0; start < n; start += kRowChunk) {
        const int64_t chunk = n - start < kRowChunk ? n - start : kRowChunk;
        if (!kWidth)  // narrow widths start in registers, which slows the loop of run-time width down
            for (int64_t row = 0; row < chunk; ++row)
                for (int lane = 0; lane < V::kLanes; ++lane) {
                    state.best[row][lane] = INFINITY;
                    state.index[row][lane] = 0;
                }
        for (int64_t first = 0; first < end; first += tile) {
            const int64_t last = first + tile < end ? first + tile : end;
            int64_t row = 0;
            for (; row + R <= chunk; row += R) {
                const float* x[R];
                for (int r = 0; r < R; ++r) x[r] = rows + (start + row + r) * row_step;
                if (kWidth && first == 0)
                    sweep<V, R, kWidth, true>(lanes, x, first, last, state, row);
                else
                    sweep<V, R, kWidth, false>(lanes, x, first, last, state, row);
            }
            for (; row < chunk; ++row) {
                const float* x[1] = {rows + (start + row) * row_step};
                if (kWidth && first == 0)
                    sweep<V, 1, kWidth, true>(lanes, x, first, last, state, row);
                else
                    sweep<V, 1, kWidth, false>(lanes, x, first, last, state, row);
            }
        }
        for (int64_t row = 0; row < chunk; ++row)
            codes[(start + row) * codes_step] = winner<V>(lanes, rows + (start + row) * row_step, state, row);
    }
}

template <typename V, int R>
inline void assign_lanes(const mgqe_lanes& lanes, const float* rows, int64_t row_step, int64_t n, int32_t* codes,
                         int64_t codes_step) {
    switch (lanes.width) {
        case 1:
            return assign_width<V, R, 1>(lanes, rows, row_step, n, codes, codes_step);
        case 2:
            return assign_width<V, R, 2>(lanes, rows, row_step, n, codes, codes_step);
        case 4:
            return assign_width<V, R, 4>(lanes, rows, row_step, n, codes, codes_step);
        case 8:
            return assign_width<V, R, 8>(lanes, rows, row_step, n, codes, codes_step);
        case 16:
            return assign_width<V, R, 16>(lanes, rows, row_step, n, codes, codes_step);
        default:
            return assign_width<V, R, 0>(lanes, rows, row_step, n, codes, codes_step);
    }
}

}  // namespace

#endif
