// Random tables and queries: every instruction set and every method of mgqe_topk must find the very same bits.
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

struct Made {
    std::vector<std::vector<uint8_t>> codes;
    std::vector<float> book;
    std::vector<mgqe_tier> tiers;
    std::vector<int64_t> starts{0};
    mgqe_table table = {};
    mgqe_level level = {};
    std::vector<bool> first;
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
        book.resize((shared ? 1 : D) * static_cast<size_t>(most) * width);
        const bool whole = pick(0, 3) == 0;  // whole numbers tie
        for (float& x : book) x = whole ? static_cast<float>(pick(-1, 1)) : normal();
        for (int64_t g = 0; g < m; ++g) {
            const int64_t rows = pick(g == 0 ? 1 : 0, 3000), row_bytes = (D * bits[g] + 7) / 8;
            codes.emplace_back(rows * row_bytes);
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < D; ++j) {
                    const int64_t code = pick(0, counts[g] - 1), at = j * bits[g];
                    for (int b = 0; b < bits[g]; ++b)
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
        table.embedding_dim = D * width;
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
        Found expected;
        for (int32_t isa = MGQE_SCALAR; isa <= MGQE_NEON; ++isa) {
            if (mgqe_set_isa(isa) != MGQE_OK) continue;
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
