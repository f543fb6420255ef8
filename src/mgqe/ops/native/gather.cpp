// Decoding of unpacked codes, and its transpose for gradients.
#include <string.h>

#include "mgqe_native.h"
#include "parallel.h"

namespace {

typedef float Float4 __attribute__((vector_size(16)));

bool bad_shape(int64_t n, int64_t D, int64_t pieces, int64_t K, int64_t width) {
    return n < 0 || D < 1 || pieces < 1 || K < 1 || width < 1 || (pieces != 1 && pieces % D != 0);
}

bool codes_in_range(const int32_t* codes, int64_t count, int64_t K) {
    uint32_t most = 0;  // a negative code becomes a huge unsigned one
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t code = static_cast<uint32_t>(codes[i]);
        most = code > most ? code : most;
    }
    return count == 0 || static_cast<int64_t>(most) < K;
}

template <int kWidth>
void gather_rows(const int32_t* codes, const float* codebook, int64_t begin, int64_t end, int64_t D, int64_t repeat,
                 int64_t step, int64_t run_time_width, float* out) {
    const int64_t width = kWidth ? kWidth : run_time_width;
    float* to = out + begin * D * repeat * width;
    if (kWidth && repeat == 1) {
        const int32_t* code = codes + begin * D;
        for (int64_t i = begin; i < end; ++i) {
            const float* book = codebook;
            for (int64_t j = 0; j < D; ++j, book += step, to += kWidth)
                __builtin_memcpy(to, book + static_cast<int64_t>(*code++) * kWidth, kWidth * sizeof(float));
        }
        return;
    }
    for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < D; ++j) {
            const int64_t code = codes[i * D + j];
            const float* from = codebook + j * repeat * step + code * width;
            for (int64_t piece = 0; piece < repeat; ++piece, from += step, to += width)
                for (int64_t t = 0; t < width; ++t) to[t] = from[t];
        }
}

typedef void (*gather_function)(const int32_t* codes, const float* codebook, int64_t begin, int64_t end, int64_t D,
                                int64_t repeat, int64_t step, int64_t run_time_width, float* out);

gather_function gather_for(int64_t width) {
    switch (width) {
        case 1:
            return gather_rows<1>;
        case 2:
            return gather_rows<2>;
        case 4:
            return gather_rows<4>;
        case 8:
            return gather_rows<8>;
        case 16:
            return gather_rows<16>;
        default:
            return gather_rows<0>;
    }
}

// error = weight * (row - vector); returns the sum of error * (row - vector). A row that is NaN or infinite makes its
// vector NaN.
inline float row_error(const float* row, float weight, int64_t dim, float* vector, float* error) {
    Float4 sums[2] = {};
    int64_t t = 0;
    for (; t + 8 <= dim; t += 8)
        for (int half = 0; half < 2; ++half) {
            Float4 q, c;
            __builtin_memcpy(&q, row + t + 4 * half, sizeof q);
            __builtin_memcpy(&c, vector + t + 4 * half, sizeof c);
            const Float4 difference = q - c;
            const Float4 weighted = difference * weight;
            c += q - q;
            sums[half] += weighted * difference;
            __builtin_memcpy(error + t + 4 * half, &weighted, sizeof weighted);
            __builtin_memcpy(vector + t + 4 * half, &c, sizeof c);
        }
    const Float4 both = sums[0] + sums[1];
    float total = (both[0] + both[1]) + (both[2] + both[3]);
    for (; t < dim; ++t) {
        const float difference = row[t] - vector[t];
        error[t] = weight * difference;
        vector[t] += row[t] - row[t];
        total += error[t] * difference;
    }
    return total;
}

// to += weight * from. A fixed width goes through locals: `to` and `from` may not overlap then, and four go at once.
template <int kWidth>
inline void add(float* to, const float* from, float weight, int64_t run_time_width) {
    if (kWidth) {
        float sum[kWidth ? kWidth : 1];
        __builtin_memcpy(sum, to, sizeof sum);
        for (int t = 0; t < kWidth; ++t) sum[t] += weight * from[t];
        __builtin_memcpy(to, sum, sizeof sum);
        return;
    }
    for (int64_t t = 0; t < run_time_width; ++t) to[t] += weight * from[t];
}

// Pieces [first, last) of every row, which reads the rows in order; the additions to an entry run in the order of rows
// however the pieces are split.
template <int kWidth>
void scatter_pieces(const float* grad, const int32_t* codes, const float* weights, int64_t n, int64_t D, int64_t repeat,
                    int64_t K, int64_t run_time_width, int64_t first, int64_t last, float* sums, float* counts) {
    const int64_t width = kWidth ? kWidth : run_time_width;
    const int64_t pieces = D * repeat;
    for (int64_t i = 0; i < n; ++i) {
        const float weight = weights ? weights[i] : 1.0f;
        const int32_t* code = codes + i * D + first / repeat;
        int64_t left = repeat - first % repeat;
        const float* from = grad + (i * pieces + first) * width;
        for (int64_t piece = first; piece < last; ++piece, from += width) {
            const int64_t entry = piece * K + *code;
            add<kWidth>(sums + entry * width, from, weight, width);
            counts[entry] += weight;
            if (--left == 0) {
                ++code;
                left = repeat;
            }
        }
    }
}

// One codebook for all subspaces: this call adds only to the entries [first, last).
void scatter_shared(const float* grad, const int32_t* codes, const float* weights, int64_t n, int64_t D,
                    int64_t width, int64_t first, int64_t last, float* sums, float* counts) {
    for (int64_t i = 0; i < n; ++i) {
        const float weight = weights ? weights[i] : 1.0f;
        for (int64_t j = 0; j < D; ++j) {
            const int64_t code = codes[i * D + j];
            if (code < first || code >= last) continue;
            const float* from = grad + (i * D + j) * width;
            add<0>(sums + code * width, from, weight, width);
            counts[code] += weight;
        }
    }
}

}  // namespace

int32_t mgqe_gather(const int32_t* codes, const float* codebook, int64_t n, int64_t D, int64_t pieces, int64_t K,
                    int64_t width, float* out, int32_t threads) {
    if (bad_shape(n, D, pieces, K, width)) return MGQE_BAD_ARGUMENT;
    if (!codes_in_range(codes, n * D, K)) return MGQE_OUT_OF_RANGE;
    const int64_t repeat = pieces == 1 ? 1 : pieces / D;
    const int64_t step = pieces == 1 ? 0 : K * width;
    const gather_function rows = gather_for(width);
    mgqe_parallel(n, mgqe_team(n * D * repeat * width, 1 << 16, threads), [&](int64_t begin, int64_t end) {
        rows(codes, codebook, begin, end, D, repeat, step, width, out);
    });
    return MGQE_OK;
}

int32_t mgqe_decode_error(const float* rows, const int32_t* codes, const float* codebook, const float* weights,
                          int64_t n, int64_t D, int64_t pieces, int64_t K, int64_t width, float* vectors,
                          float* errors, float* losses, int32_t threads) {
    if (bad_shape(n, D, pieces, K, width)) return MGQE_BAD_ARGUMENT;
    if (!codes_in_range(codes, n * D, K)) return MGQE_OUT_OF_RANGE;
    const int64_t repeat = pieces == 1 ? 1 : pieces / D;
    const int64_t step = pieces == 1 ? 0 : K * width;
    const int64_t dim = D * repeat * width;
    const gather_function decode = gather_for(width);
    mgqe_parallel(n, mgqe_team(n * dim, 1 << 15, threads), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            decode(codes, codebook, i, i + 1, D, repeat, step, width, vectors);
            losses[i] = row_error(rows + i * dim, weights[i], dim, vectors + i * dim, errors + i * dim);
        }
    });
    return MGQE_OK;
}

int32_t mgqe_scatter(const float* grad, const int32_t* codes, const float* weights, int64_t n, int64_t D,
                     int64_t pieces, int64_t K, int64_t width, float* sums, float* counts, int32_t threads) {
    if (bad_shape(n, D, pieces, K, width)) return MGQE_BAD_ARGUMENT;
    if (!codes_in_range(codes, n * D, K)) return MGQE_OUT_OF_RANGE;
    memset(sums, 0, static_cast<size_t>(pieces * K * width) * sizeof(float));
    memset(counts, 0, static_cast<size_t>(pieces * K) * sizeof(float));
    const int64_t total = n * (pieces == 1 ? D : pieces) * width;
    const int team = mgqe_team(total, 1 << 16, threads);
    // Threads own disjoint outputs and each adds in the order of rows, so any team gives the same sums.
    if (pieces == 1) {
        mgqe_parallel(K, team, [&](int64_t begin, int64_t end) {
            scatter_shared(grad, codes, weights, n, D, width, begin, end, sums, counts);
        });
        return MGQE_OK;
    }
    const int64_t repeat = pieces / D;
    const auto some = width == 1   ? scatter_pieces<1>
                      : width == 2 ? scatter_pieces<2>
                      : width == 4 ? scatter_pieces<4>
                      : width == 8 ? scatter_pieces<8>
                      : width == 16 ? scatter_pieces<16>
                                    : scatter_pieces<0>;
    mgqe_parallel(pieces, team, [&](int64_t begin, int64_t end) {
        some(grad, codes, weights, n, D, repeat, K, width, begin, end, sums, counts);
    });
    return MGQE_OK;
}

int32_t mgqe_sum_rows(const float* grad, const int64_t* index, int64_t n, int64_t dim, int64_t rows, float* sums,
                      int32_t threads) {
    if (n < 0 || dim < 1 || rows < 0) return MGQE_BAD_ARGUMENT;
    for (int64_t i = 0; i < n; ++i)
        if (static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(rows)) return MGQE_OUT_OF_RANGE;
    // Threads own rows of the sums.
    mgqe_parallel(rows, mgqe_team(n * dim, 1 << 16, threads), [&](int64_t begin, int64_t end) {
        memset(sums + begin * dim, 0, static_cast<size_t>((end - begin) * dim) * sizeof(float));
        for (int64_t i = 0; i < n; ++i) {
            if (index[i] < begin || index[i] >= end) continue;
            float* const to = sums + index[i] * dim;
            const float* const from = grad + i * dim;
            for (int64_t t = 0; t < dim; ++t) to[t] += from[t];
        }
    });
    return MGQE_OK;
}
