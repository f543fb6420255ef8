// Random tables and queries: every instruction set and every method of mgqe_topk must find the very same bits, and so
// must look-ups and bags. Without an instruction set of its own a table of whole numbers is looked up in float32.
//
// A program of its own, so that it can run where Python cannot: on an emulated processor, under a memory checker.
// Prints what differed and returns 1; returns 0 if nothing did.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <vector>

#include "mgqe_native.h"

namespace {

std::mt19937 random_bits(1);

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }
float normal() { return std::normal_distribution<float>()(random_bits); }

// A tier map of two tiers: one level that marks the ids of tier 0.
struct Map {
    std::vector<uint64_t> bits;
    std::vector<int32_t> ranks;
    explicit Map(const std::vector<bool>& first) : bits((first.size() + 255) / 256 * 4), ranks((first.size() + 255) / 256) {
        int32_t ones = 0;
        for (size_t i = 0; i < first.size(); ++i) {
            if (i % 256 == 0) ranks[i / 256] = ones;
            if (first[i]) bits[i / 64] |= static_cast<uint64_t>(1) << (i % 64);
            ones += first[i];
        }
    }
};

// Subspaces of widths and bits of their own, and perhaps a matrix. Or coordinates and the matrix are whole numbers, with a
// scale per column: then the matrix may be the identity, and subspaces of one coordinate may share their centroids.
struct Mixed {
    std::vector<std::vector<mgqe_piece>> layouts;
    std::vector<float> matrix, mean, scales;
    std::vector<int8_t> byte_matrix;
    std::vector<int32_t> byte_sums;
    int64_t coordinates = 0, dim = 0;
    const bool whole = pick(0, 1), shared = whole && pick(0, 1), diagonal = whole && pick(0, 2) == 0;

    Mixed(int32_t D, int64_t m, std::vector<std::vector<int32_t>>& bits) : layouts(m) {
        const int32_t widest = static_cast<int32_t>(shared ? pick(5, 7) : whole || pick(0, 4) ? 8 : 11);
        const int32_t usual = widest < 8 ? widest : 8, least = pick(0, 2) ? 0 : usual - 1;
        int64_t left = (1 << 16) - MGQE_BOOK_ROOM - 1;  // numbers that a book of whole numbers may still have
        std::vector<int32_t> most(D), widths(D);
        for (int32_t j = 0; j < D; ++j) {
            widths[j] = static_cast<int32_t>(shared ? 1 : pick(1, pick(0, 9) ? 4 : 20));
            if (whole && left < 256 * (widths[j] + 4 * (D - j - 1))) widths[j] = 1;
            left -= 256 * widths[j];
            for (int64_t g = 0; g < m; ++g) {
                bits[g].push_back(pick(0, 3) ? static_cast<int32_t>(pick(least, widest)) : usual);
                most[j] = std::max(most[j], bits[g][j]);
            }
        }
        for (int64_t g = 0; g < m; ++g) {
            mgqe_piece at = {};
            for (int32_t j = 0; j < D; ++j) {
                at.bits = bits[g][j];
                at.width = widths[j];
                at.num_centroids = 1 << most[j];
                layouts[g].push_back(at);
                at.bit += at.bits;
                at.coordinate += at.width;
                at.entry += static_cast<int64_t>(at.num_centroids) * at.width;
            }
            coordinates = at.coordinate;
            book_floats = at.entry + MGQE_BOOK_ROOM;
        }
        dim = coordinates;
        if (!whole && pick(0, 1)) return;
        if (!diagonal) dim = pick(1, 70);
        const int64_t step = (dim + MGQE_MATRIX_STEP - 1) / MGQE_MATRIX_STEP * MGQE_MATRIX_STEP;
        matrix.resize(coordinates * step);
        mean.resize(step);
        for (int64_t k = 0; k < coordinates; ++k)
            for (int64_t t = 0; t < dim; ++t)
                matrix[k * step + t] = diagonal ? k == t : whole ? static_cast<float>(pick(-127, 127)) : normal();
        for (int64_t t = 0; t < dim; ++t) mean[t] = normal();
        if (!whole) return;
        scales.resize(step);
        byte_matrix.resize((coordinates + 3) / 4 * 4 * step);
        byte_sums.resize(step);
        for (int64_t t = 0; t < dim; ++t) scales[t] = normal();
        for (int64_t k = 0; k < coordinates; ++k)
            for (int64_t t = 0; t < dim; ++t) {
                const int8_t number = static_cast<int8_t>(matrix[k * step + t]);
                byte_matrix[(k / 4 * step + t) * 4 + k % 4] = number;
                byte_sums[t] -= 128 * number;
            }
    }

    // Centroids of whole numbers, as bytes, and the levels that they share.
    void make_book(std::vector<float>& book) {
        std::vector<float> common(128);
        for (float& x : common) x = static_cast<float>(pick(-127, 127));
        for (float& x : book) x = static_cast<float>(pick(-127, 127));
        if (shared)
            for (const mgqe_piece& piece : layouts[0])
                std::copy_n(common.begin(), piece.num_centroids, book.begin() + piece.entry);
        for (const float x : book) bytes.push_back(static_cast<uint8_t>(x + 128));
        levels.resize(256);
        for (int b = 0; b < 8; ++b)
            for (int i = 0; i < 1 << b; ++i)
                levels[(b < 7 ? (1 << b) - 1 : 128) + i] = static_cast<uint8_t>(common[i] + 128);
    }

    int64_t book_floats = 0;
    std::vector<uint8_t> bytes, levels;
};

struct Made {
    std::vector<std::vector<uint8_t>> codes;
    std::vector<float> book;
    std::vector<mgqe_tier> tiers;
    std::vector<int64_t> starts{0};
    mgqe_table table = {};
    mgqe_level level = {};
    std::vector<bool> first;
    std::vector<Mixed> mixed;  // one or none
    Map map{{}};

    Made() {
        const int32_t bits_of[] = {1, 3, 4, 5, 6, 7, 8, 8, 8, 10};
        const int32_t D = static_cast<int32_t>(pick(1, 40)), width = static_cast<int32_t>(pick(1, 3));
        const int64_t m = pick(1, 2);
        int32_t most = 1;
        std::vector<int32_t> bits, counts;
        for (int64_t g = 0; g < m; ++g) {
            bits.push_back(bits_of[pick(0, 9)]);
            counts.push_back(static_cast<int32_t>(pick((1 << (bits[g] - 1)) + 1, 1 << bits[g])));
            most = counts[g] > most ? counts[g] : most;
        }
        const bool shared = pick(0, 4) == 0;
        std::vector<std::vector<int32_t>> code_bits(m);
        if (pick(0, 1)) mixed.emplace_back(D, m, code_bits);
        for (int64_t g = 0; g < m && mixed.empty(); ++g) code_bits[g].assign(D, bits[g]);
        book.resize(mixed.empty() ? (shared ? 1 : D) * static_cast<size_t>(most) * width : mixed[0].book_floats);
        const bool whole = pick(0, 3) == 0;  // whole numbers tie
        for (float& x : book) x = whole ? static_cast<float>(pick(-1, 1)) : normal();
        if (!mixed.empty() && mixed[0].whole) mixed[0].make_book(book);
        for (int64_t g = 0; g < m; ++g) {
            int64_t row_bits = 0;
            for (int32_t b : code_bits[g]) row_bits += b;
            const int64_t rows = pick(g == 0 ? 1 : 0, 3000), row_bytes = (row_bits + 7) / 8;
            codes.emplace_back(rows * row_bytes);
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0, at = 0; j < D; at += code_bits[g][j++]) {
                    const int64_t code = pick(0, mixed.empty() ? counts[g] - 1 : (1 << code_bits[g][j]) - 1);
                    for (int b = 0; b < code_bits[g][j]; ++b)
                        codes[g][i * row_bytes + (at + b) / 8] |= static_cast<uint8_t>((code >> b & 1) << ((at + b) % 8));
                }
            mgqe_tier tier = {};
            tier.rows = rows;
            tier.row_bytes = row_bytes;
            tier.bits = bits[g];
            tier.num_subspaces = D;
            tier.pieces = shared ? 1 : D;
            tier.num_centroids = most;
            tier.width = width;
            if (!mixed.empty()) {
                tier.layout = mixed[0].layouts[g].data();
                tier.book_floats = mixed[0].book_floats;
                tier.bits = std::max(1, *std::max_element(code_bits[g].begin(), code_bits[g].end()));
                tier.bytes = mixed[0].whole ? mixed[0].bytes.data() : nullptr;
                tier.levels = mixed[0].shared ? mixed[0].levels.data() : nullptr;
            }
            tiers.push_back(tier);
            starts.push_back(starts.back() + rows);
        }
        for (int64_t g = 0; g < m; ++g) {
            tiers[g].codes = codes[g].data();
            tiers[g].centroids = book.data();
        }
        table.tiers = tiers.data();
        table.starts = starts.data();
        table.num_embeddings = starts.back();
        table.embedding_dim = mixed.empty() ? D * width : mixed[0].dim;
        table.num_coordinates = mixed.empty() ? D * width : mixed[0].coordinates;
        if (!mixed.empty() && !mixed[0].matrix.empty()) {
            table.matrix = mixed[0].matrix.data();
            table.mean = mixed[0].mean.data();
        }
        if (!mixed.empty() && mixed[0].whole) {
            table.column_scales = mixed[0].scales.data();
            table.byte_matrix = mixed[0].byte_matrix.data();
            table.byte_sums = mixed[0].byte_sums.data();
            table.diagonal = mixed[0].diagonal;
        }
        table.padding_idx = pick(0, 2) ? -1 : pick(0, starts.back() - 1);
        table.num_tiers = static_cast<int32_t>(m);
        if (m == 1 || pick(0, 1)) return;
        for (int64_t i = 0; i < starts.back(); ++i) first.push_back(i < starts[1]);
        std::shuffle(first.begin(), first.end(), random_bits);
        map = Map(first);
        level = {map.bits.data(), map.ranks.data(), starts.back(), 0};
        table.levels = &level;
        table.num_levels = 1;
        table.last_tier = 1;
        table.mapped_tiers = 2;
        table.mapped_ids = starts.back();
    }
};

struct Found {
    std::vector<float> scores;
    std::vector<int64_t> ids;
    bool operator==(const Found& other) const {
        return ids == other.ids && !memcmp(scores.data(), other.scores.data(), scores.size() * sizeof(float));
    }
};

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 100;
    int64_t compared = 0;
    for (int round = 0; round < rounds; ++round) {
        Made made;
        const int64_t n = made.table.num_embeddings, d = made.table.embedding_dim, queries = pick(1, 3);
        std::vector<float> values(queries * d), bias(n), levels(256);
        std::vector<uint8_t> bias_codes(n), hidden(n);
        for (float& x : values) x = pick(0, 9) ? normal() : 0.0f;
        for (float& x : bias) x = normal();
        for (uint8_t& x : hidden) x = pick(0, 3) == 0;
        mgqe_topk_job job = {};
        job.queries = values.data();
        job.num_queries = queries;
        job.k = pick(1, n < 200 ? n : 200);
        job.cosine = pick(0, 2) == 0;
        if (!job.cosine && pick(0, 2) == 0) {
            if (mgqe_bias_codes(&made.table, bias.data(), bias_codes.data(), levels.data()) != MGQE_OK) return 1;
            job.bias = bias.data();
            job.bias_codes = bias_codes.data();
            job.bias_levels = levels.data();
        }
        if (pick(0, 2) == 0) job.hidden = hidden.data();
        std::vector<float> squares(n);
        if (made.table.matrix) {
            const int32_t status = mgqe_row_squares(&made.table, squares.data(), 1 + round % 2);
            if (status != MGQE_OK) return printf("round %d: squares, status %d\n", round, status), 1;
            job.row_squares = squares.data();
        }
        Found expected;
        std::vector<int64_t> ids(n / 5 * 5 + 5);
        const int64_t often = pick(0, 1) ? n : pick(1, n);  // ids below it, which may come again and again
        for (int64_t& id : ids) id = pick(0, often - 1);
        std::vector<float> looked_up, sums, weights(ids.size());
        for (float& x : weights) x = normal();
        for (int32_t isa = MGQE_SCALAR; isa <= MGQE_NEON; ++isa) {
            if (mgqe_set_isa(isa) != MGQE_OK) continue;
            const int64_t asked = static_cast<int64_t>(ids.size());
            std::vector<float> rows(asked * d), bags((asked / 5 + 3) * d);
            if (mgqe_lookup(&made.table, ids.data(), asked, rows.data(), 1 + round % 2) != MGQE_OK) return 1;
            const auto pool = [&](int64_t number, int32_t mode, const float* by, int64_t to) {
                float* const out = bags.data() + to * d;
                return mgqe_bag(&made.table, ids.data(), asked, nullptr, number, mode, by, out, 1) == MGQE_OK;
            };
            bool pooled = pool(asked / 5, round % 3, nullptr, 0) && pool(1, MGQE_SUM, weights.data(), asked / 5);
            pooled = pooled && pool(1, MGQE_SUM, nullptr, asked / 5 + 1) && pool(1, MGQE_MAX, nullptr, asked / 5 + 2);
            if (!pooled) return printf("round %d: isa %d, no bags\n", round, isa), 1;
            if (looked_up.empty()) looked_up = rows, sums = bags;
            if (memcmp(rows.data(), looked_up.data(), rows.size() * sizeof(float)) ||
                memcmp(bags.data(), sums.data(), bags.size() * sizeof(float)))
                return printf("round %d: isa %d, look-ups differ\n", round, isa), 1;
            for (int32_t method : {MGQE_TOPK_SCAN, MGQE_TOPK_FILTER, MGQE_TOPK_BLOCKS, MGQE_TOPK_AUTO}) {
                Found found{std::vector<float>(queries * job.k), std::vector<int64_t>(queries * job.k)};
                job.scores = found.scores.data();
                job.ids = found.ids.data();
                job.method = method;
                const int32_t status = mgqe_topk(&made.table, &job, 1 + round % 2);
                if (status != MGQE_OK) return printf("round %d: status %d\n", round, status), 1;
                if (expected.ids.empty()) expected = found;
                if (!(found == expected)) return printf("round %d: isa %d, method %d differs\n", round, isa, method), 1;
                ++compared;
            }
        }
    }
    printf("%lld searches agree\n", static_cast<long long>(compared));
    return 0;
}
