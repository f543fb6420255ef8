// Rows through the codes of a mixed table in one pass over memory, and the gradient of its centroids.
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "assign_blocks.h"
#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"

namespace {

typedef float Float4 __attribute__((vector_size(16)));

int64_t stepped(int64_t dim) { return (dim + MGQE_MATRIX_STEP - 1) / MGQE_MATRIX_STEP * MGQE_MATRIX_STEP; }

// A table of nothing but a mean (null: zeros), a matrix and column scales, for the kernel that multiplies; their rows are
// filled up with zeros.
class Matrix {
  public:
    Matrix() = default;
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;
    ~Matrix() { free(filled_); }

    bool set(const float* mean, const float* matrix, const float* column_scales, int64_t rows, int64_t dim) {
        const int64_t step = stepped(dim);
        filled_ = static_cast<float*>(calloc(static_cast<size_t>((rows + 2) * step), sizeof(float)));
        if (!filled_) return false;
        const size_t bytes = static_cast<size_t>(dim) * sizeof(float);
        if (mean) memcpy(filled_, mean, bytes);
        if (column_scales) memcpy(filled_ + step, column_scales, bytes);
        for (int64_t k = 0; k < rows; ++k) memcpy(filled_ + (k + 2) * step, matrix + k * dim, bytes);
        table_.mean = filled_;
        table_.column_scales = column_scales ? filled_ + step : nullptr;
        table_.matrix = filled_ + 2 * step;
        table_.num_coordinates = rows;
        table_.embedding_dim = dim;
        table_.diagonal = column_scales && rows == dim;
        for (int64_t k = 0; table_.diagonal && k < rows; ++k)
            for (int64_t t = 0; t < dim; ++t)
                if (matrix[k * dim + t] != (k == t ? 1.0f : 0.0f)) table_.diagonal = 0;
        return true;
    }

    const mgqe_table& table() const { return table_; }

  private:
    float* filled_ = nullptr;
    mgqe_table table_ = {};
};

// error = weight * (z - chosen); returns the sum of error * (z - chosen).
float row_error(const float* z, const float* chosen, float weight, int64_t L, float* error) {
    Float4 sums[2] = {};
    int64_t k = 0;
    for (; k + 8 <= L; k += 8)
        for (int half = 0; half < 2; ++half) {
            Float4 a, b;
            __builtin_memcpy(&a, z + k + 4 * half, sizeof a);
            __builtin_memcpy(&b, chosen + k + 4 * half, sizeof b);
            const Float4 difference = a - b;
            const Float4 weighted = difference * weight;
            sums[half] += weighted * difference;
            __builtin_memcpy(error + k + 4 * half, &weighted, sizeof weighted);
        }
    const Float4 both = sums[0] + sums[1];
    float total = (both[0] + both[1]) + (both[2] + both[3]);
    for (; k < L; ++k) {
        const float difference = z[k] - chosen[k];
        error[k] = weight * difference;
        total += error[k] * difference;
    }
    return total;
}

// The numbers (L) that codes (D) name in a flat codebook. Four are copied at a time: there is room behind the codebook,
// and what goes too far is written over by the next subspace or the next row.
void gather_row(const int32_t* codes, const float* codebook, const mgqe_piece* pieces, int64_t D, float* to) {
    for (int64_t j = 0; j < D; ++j) {
        const int64_t width = pieces[j].width;
        const float* const from = codebook + pieces[j].entry + codes[j] * width;
        float* const at = to + pieces[j].coordinate;
        for (int64_t t = 0; t < width; t += 4) __builtin_memcpy(at + t, from + t, 4 * sizeof(float));
    }
}

// The same where every subspace has one number.
void gather_levels(const int32_t* codes, const float* codebook, const mgqe_piece* pieces, int64_t D, float* to) {
    for (int64_t j = 0; j < D; ++j) to[j] = codebook[pieces[j].entry + codes[j]];
}

// to += from (width).
template <int kWidth>
inline void add(float* to, const float* from, int64_t run_time_width) {
    const int64_t width = kWidth ? kWidth : run_time_width;
    for (int64_t t = 0; t < width; ++t) to[t] += from[t];
}

inline void add(float* to, const float* from, int64_t width) {
    switch (width) {
        case 1:
            return add<1>(to, from, 1);
        case 2:
            return add<2>(to, from, 2);
        case 3:
            return add<3>(to, from, 3);
        case 4:
            return add<4>(to, from, 4);
        case 5:
            return add<5>(to, from, 5);
        case 6:
            return add<6>(to, from, 6);
        default:
            return add<0>(to, from, width);
    }
}

// Half to even, of numbers up to 127 in size.
inline float round_small(float x) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23, whose neighbours are whole numbers
    return (x + kShift) - kShift;
}

// The centroids of a tier, and what the matrix takes for them.
void round_book(const mgqe_coder& coder, const mgqe_coder_tier& tier, const float* values, float* centroids,
                float* numbers) {
    for (int64_t j = 0; j < coder.num_subspaces; ++j) {
        const mgqe_piece& piece = tier.pieces[j];
        const int64_t s = piece.width, count = static_cast<int64_t>(piece.num_centroids) * s;
        const float* const from = values + piece.entry;
        float *const number = numbers + piece.entry, *const centroid = centroids + piece.entry;
        if (!coder.steps) {
            memcpy(number, from, static_cast<size_t>(count) * sizeof(float));
            memcpy(centroid, from, static_cast<size_t>(count) * sizeof(float));
            continue;
        }
        for (int64_t t = 0; t < s; ++t) {
            const float unit = coder.units[piece.coordinate + t], step = coder.steps[piece.coordinate + t];
            for (int64_t at = t; at < count; at += s) {
                const float exact = from[at] * unit / step;
                const float within = exact < -127.0f ? -127.0f : exact > 127.0f ? 127.0f : exact;
                number[at] = round_small(within);
                centroid[at] = number[at] * step;
            }
        }
    }
}

// What all rows of a tier have in common.
class Tier {
  public:
    Tier() = default;
    Tier(const Tier&) = delete;
    Tier& operator=(const Tier&) = delete;
    ~Tier() { free(book_); }

    int32_t set(const mgqe_kernels& kernels, const mgqe_coder& coder, const mgqe_coder_tier& tier, const float* values) {
        constexpr int64_t kRoom = 4;  // behind the numbers
        book_ = aligned_floats(2 * tier.entries + kRoom);
        if (!book_) return MGQE_NO_MEMORY;
        memset(book_ + 2 * tier.entries, 0, kRoom * sizeof(float));
        numbers = book_ + tier.entries;
        round_book(coder, tier, values + tier.start, book_, book_ + tier.entries);
        return lanes.set(kernels, book_);
    }

    MixedLanes lanes;
    const float* numbers = nullptr;

  private:
    float* book_ = nullptr;
};

bool well_formed(const mgqe_coder& coder) {
    if (coder.dim < 1 || coder.num_coordinates < 1 || coder.num_subspaces < 1 || coder.num_tiers < 1) return false;
    for (int64_t g = 0; g < coder.num_tiers; ++g) {
        const mgqe_coder_tier& tier = coder.tiers[g];
        int64_t coordinate = 0, entry = 0;
        for (int64_t j = 0; j < coder.num_subspaces; ++j) {
            const mgqe_piece& piece = tier.pieces[j];
            if (piece.coordinate != coordinate || piece.entry != entry || piece.bits < 0 || piece.bits > 16 ||
                piece.width < 1 || piece.num_centroids < 1 << piece.bits)
                return false;
            coordinate += piece.width;
            entry += static_cast<int64_t>(piece.num_centroids) * piece.width;
        }
        if (coordinate != coder.num_coordinates || entry != tier.entries || tier.start < 0) return false;
    }
    return coder.units && (!coder.encoder_scales || coder.dim == coder.num_coordinates);
}

}  // namespace

int32_t mgqe_quantize_mixed(const mgqe_coder* coder, const float* rows, const int64_t* counts, const int64_t* tier_rows,
                            const float* values, int32_t* codes, float* vectors, float* errors, float* loss,
                            int32_t threads) {
    if (!well_formed(*coder)) return MGQE_BAD_ARGUMENT;
    const int64_t dim = coder->dim, L = coder->num_coordinates, D = coder->num_subspaces;
    int64_t n = 0, total = 0;
    for (int64_t g = 0; g < coder->num_tiers; ++g) n += tier_rows[g];
    for (int64_t i = 0; i < n; ++i) total += counts[i];
    const float share = static_cast<float>((total > 1 ? total : 1) * dim);
    const mgqe_kernels& kernels = mgqe_active();
    Matrix encode, decode;
    float* const losses = aligned_floats(n + 1);
    const float* const scales = coder->encoder_scales;
    if (!losses || (!scales && !encode.set(nullptr, coder->encoder, nullptr, dim, L)) ||
        !decode.set(coder->mean, coder->matrix, coder->column_scales, L, dim)) {
        free(losses);
        return MGQE_NO_MEMORY;
    }
    const auto gather = D == L ? gather_levels : gather_row;
    std::atomic<int32_t> result{MGQE_OK};
    int64_t start = 0;
    for (int64_t g = 0; g < coder->num_tiers; start += tier_rows[g++]) {
        if (tier_rows[g] == 0) continue;
        const mgqe_piece* const pieces = coder->tiers[g].pieces;
        Tier tier;
        int32_t status = tier.lanes.check(pieces, D, L, coder->tiers[g].entries);
        if (status == MGQE_OK) status = tier.set(kernels, *coder, coder->tiers[g], values);
        if (status != MGQE_OK) {
            result.store(status);
            break;
        }
        const int64_t at_once = tier.lanes.rows_at_once();
        const int64_t end_of_tier = start + tier_rows[g], blocks = (tier_rows[g] + at_once - 1) / at_once;
        const int team = mgqe_team(tier_rows[g] * (tier.lanes.work() + 2 * L * dim), 1 << 17, threads);
        mgqe_parallel(blocks, team, [&](int64_t begin, int64_t end) {
            const int64_t wider = dim > L ? dim : L;
            float* const room = aligned_floats(tier.lanes.room() + (wider + L) * at_once + L + 2 * MGQE_MATRIX_STEP);
            if (!room) return result.store(MGQE_NO_MEMORY);
            float* const chosen = room + tier.lanes.room();
            float* const z = chosen + padded(L);
            float* const centred = z + L * at_once;  // later what the matrix takes
            for (int64_t block = begin; block < end; ++block) {
                const int64_t first = start + block * at_once;
                const int64_t some = end_of_tier - first < at_once ? end_of_tier - first : at_once;
                const float* const from = rows + first * dim;
                int32_t* const found = codes + first * D;
                float* const less_mean = scales ? z : centred;
                for (int64_t i = 0; i < some; ++i)
                    for (int64_t t = 0; t < dim; ++t)
                        less_mean[i * dim + t] = (from[i * dim + t] - coder->mean[t]) * (scales ? scales[t] : 1.0f);
                if (!scales) kernels.multiply(encode.table(), centred, some, z);
                tier.lanes.assign(kernels, z, some, found, room);
                for (int64_t i = 0; i < some; ++i) {
                    float* const taken = centred + i * L;
                    gather(found + i * D, tier.numbers, pieces, D, taken);
                    for (int64_t k = 0; k < L; ++k) chosen[k] = coder->steps ? taken[k] * coder->steps[k] : taken[k];
                    const float weight = static_cast<float>(counts[first + i]) / share;
                    losses[first + i] = row_error(z + i * L, chosen, weight, L, errors + (first + i) * L);
                }
                float* const to = vectors + first * dim;
                kernels.multiply(decode.table(), centred, some, to);
                for (int64_t at = 0; at < some * dim; ++at) to[at] += from[at] - from[at];
            }
            free(room);
        });
    }
    double sum = 0;
    for (int64_t i = 0; result.load() == MGQE_OK && i < n; ++i) sum += losses[i];
    *loss = static_cast<float>(sum);
    free(losses);
    return result.load();
}

int32_t mgqe_scatter_mixed(const mgqe_coder* coder, const float* grad, const int32_t* codes, const int64_t* tier_rows,
                           float scale, float* sums, int64_t size, int32_t threads) {
    if (!well_formed(*coder)) return MGQE_BAD_ARGUMENT;
    const int64_t D = coder->num_subspaces, L = coder->num_coordinates;
    int64_t n = 0;
    for (int64_t g = 0; g < coder->num_tiers; ++g) {
        const mgqe_coder_tier& tier = coder->tiers[g];
        if (tier.start + tier.entries > size) return MGQE_BAD_ARGUMENT;
        for (int64_t i = n; i < n + tier_rows[g]; ++i)
            for (int64_t j = 0; j < D; ++j)
                if (static_cast<uint32_t>(codes[i * D + j]) >> tier.pieces[j].bits) return MGQE_OUT_OF_RANGE;
        n += tier_rows[g];
    }
    memset(sums, 0, static_cast<size_t>(size) * sizeof(float));
    // Threads own subspaces, and each adds in the order of rows, so that any team gives the same sums.
    mgqe_parallel(D, mgqe_team(n * L, 1 << 16, threads), [&](int64_t begin, int64_t end) {
        int64_t i = 0;
        for (int64_t g = 0; g < coder->num_tiers; ++g) {
            const mgqe_coder_tier& tier = coder->tiers[g];
            for (const int64_t stop = i + tier_rows[g]; i < stop; ++i)
                for (int64_t j = begin; j < end; ++j) {
                    const mgqe_piece& piece = tier.pieces[j];
                    add(sums + tier.start + piece.entry + static_cast<int64_t>(codes[i * D + j]) * piece.width,
                        grad + i * L + piece.coordinate, piece.width);
                }
        }
    });
    // Once for each codebook, however many tiers read it.
    for (int64_t g = 0; g < coder->num_tiers; ++g) {
        const mgqe_coder_tier& tier = coder->tiers[g];
        bool is_first = true;
        for (int64_t before = 0; before < g; ++before) is_first = is_first && coder->tiers[before].start != tier.start;
        for (int64_t j = 0; is_first && j < D; ++j) {
            const mgqe_piece& piece = tier.pieces[j];
            float* to = sums + tier.start + piece.entry;
            for (int32_t k = 0; k < piece.num_centroids; ++k)
                for (int32_t t = 0; t < piece.width; ++t)
                    *to++ *= scale * coder->units[piece.coordinate + t];
        }
    }
    return MGQE_OK;
}
