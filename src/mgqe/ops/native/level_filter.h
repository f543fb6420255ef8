// The filter of tiers whose coordinates share levels (mgqe_tier's `levels`): coordinates are bytes there, and queries are
// rounded to bytes, so that products of bytes bound a row's score from above.
//
// With v the values of a query, z a row's coordinates and v = step * w + r, w whole numbers up to 127 in size,
//     <v, z> = step * <w, z> + <r, z> <= step * <w, z> + the most that <r, z> can be with the levels that there are.
#ifndef MGQE_LEVEL_FILTER_H
#define MGQE_LEVEL_FILTER_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "level_rows.h"
#include "topk.h"

namespace {

constexpr int32_t kNoRow = 1 << 30;  // a sum that no row reaches, with any bias

// The queries of a scan in whole numbers, and room for some rows as bytes.
class LevelFilter {
public:
    uint8_t* bytes = nullptr;
    int32_t* needs = nullptr;    // (queries): the sum that a row must reach
    uint16_t* passed = nullptr;  // (queries, kMostLevelRows)
    int32_t* counts = nullptr;   // (queries)
    mgqe_level_hit* hits = nullptr;  // (queries * kMostLevelRows)
    float* scores = nullptr;         // of the hits
    mgqe_level_queries queries = {};

    LevelFilter() = default;
    LevelFilter(const LevelFilter&) = delete;
    LevelFilter& operator=(const LevelFilter&) = delete;
    ~LevelFilter() { free(memory); }

    // False without memory. Nothing is done where no tier has levels.
    bool prepare(const mgqe_scan& of) {
        scan = &of;
        int64_t most = 0;
        for (int32_t g = 0; g < of.table->num_tiers; ++g) {
            const mgqe_tier_view& view = of.tiers[g];
            if (!view.level_rows) continue;
            const int64_t held = level_bytes(*view.level_rows);
            most = held > most ? held : most;
        }
        if (!most) return true;
        const int64_t D = of.table->num_coordinates, n = of.num_queries;
        queries.number = n;
        queries.coordinates = (D + 63) / 64 * 64;
        lots = (n + kLevelLot - 1) / kLevelLot;
        if (!allocate(most)) return false;
        for (int64_t q = 0; q < n; ++q) round(q);
        return true;
    }

    // What a query's rows of a tier must reach for a score of `least`, which is -infinity as long as all rows count.
    int32_t needed(int64_t q, int64_t tier, double least) const {
        if (!(steps[q] > 0)) return -kNoRow;
        const double beyond = reaches[q * scan->table->num_tiers + tier];
        const double sum = ceil((least - scan->queries[q].start - beyond) / steps[q] + offsets[q] - 1e-3);
        return sum >= kNoRow ? kNoRow : sum <= -kNoRow ? -kNoRow : static_cast<int32_t>(sum);
    }

    // The rows passed, query by query; returns how many.
    int64_t list_hits() {
        int64_t number = 0;
        for (int64_t q = 0; q < queries.number; ++q)
            for (int32_t i = 0; i < counts[q]; ++i)
                hits[number++] = {values + q * queries.coordinates, scan->queries[q].start,
                                  passed[q * kMostLevelRows + i]};
        return number;
    }

private:
    const mgqe_scan* scan = nullptr;
    int64_t lots = 0;
    void* memory = nullptr;
    int8_t* whole = nullptr;
    int8_t* by_lot = nullptr;
    int32_t* biases = nullptr;
    float* values = nullptr;
    double* steps = nullptr;    // 0 where there is no bound
    double* offsets = nullptr;  // coordinates are bytes, 128 more than they are
    double* reaches = nullptr;  // (queries, tiers): by how much a score may be above step * <w, z>

    bool allocate(int64_t of_bytes) {
        const int64_t n = queries.number, padded = lots * kLevelLot, C = queries.coordinates;
        constexpr int kParts = 12;
        int64_t sizes[kParts] = {of_bytes, padded * 4, n * kMostLevelRows * 2, n * 4, n * C, padded * C,
                                 scan->bias ? padded * 256 * 4 : 0, n * C * 4, 2 * n * 8,
                                 n * scan->table->num_tiers * 8,
                                 n * kMostLevelRows * static_cast<int64_t>(sizeof(mgqe_level_hit)),
                                 n * kMostLevelRows * 4};
        int64_t total = 0;
        for (int64_t& size : sizes) total += size = (size + 63) / 64 * 64;
        if (posix_memalign(&memory, 64, static_cast<size_t>(total)) != 0) return false;
        char* parts[kParts];
        char* at = static_cast<char*>(memory);
        for (int i = 0; i < kParts; at += sizes[i++]) parts[i] = at;
        bytes = reinterpret_cast<uint8_t*>(parts[0]);
        needs = reinterpret_cast<int32_t*>(parts[1]);
        passed = reinterpret_cast<uint16_t*>(parts[2]);
        counts = reinterpret_cast<int32_t*>(parts[3]);
        whole = reinterpret_cast<int8_t*>(parts[4]);
        by_lot = reinterpret_cast<int8_t*>(parts[5]);
        biases = reinterpret_cast<int32_t*>(parts[6]);
        values = reinterpret_cast<float*>(parts[7]);
        steps = reinterpret_cast<double*>(parts[8]);
        offsets = steps + n;
        reaches = reinterpret_cast<double*>(parts[9]);
        hits = reinterpret_cast<mgqe_level_hit*>(parts[10]);
        scores = reinterpret_cast<float*>(parts[11]);
        const int zeros[] = {4, 5, 6, 7, 8};
        for (int part : zeros) memset(parts[part], 0, static_cast<size_t>(sizes[part]));
        queries.values = whole;
        queries.by_lot = by_lot;
        queries.biases = scan->bias ? biases : nullptr;
        for (int64_t q = 0; q < padded; ++q) needs[q] = kNoRow;
        return true;
    }

    void round(int64_t q) {
        const int64_t D = scan->table->num_coordinates;
        const float* const from = scan->queries[q].values;
        float most = 0;
        for (int64_t k = 0; k < D; ++k) {
            values[q * queries.coordinates + k] = from[k];
            most = fabsf(from[k]) > most ? fabsf(from[k]) : most;
        }
        const double step = static_cast<double>(most) / 127;
        const double wide = scan->bias ? static_cast<double>(scan->bias_levels[255]) - scan->bias_levels[0] : 0;
        if (!(step > 1e-30) || !(wide / step < 1e8)) return;
        steps[q] = step;
        int8_t* const own = whole + q * queries.coordinates;
        int8_t* const lot = by_lot + q / kLevelLot * queries.coordinates * kLevelLot + q % kLevelLot * 4;
        int64_t sum = 0;
        for (int64_t k = 0; k < D; ++k) {
            own[k] = static_cast<int8_t>(lrint(from[k] / step));
            lot[k / 4 * 4 * kLevelLot + k % 4] = own[k];
            sum += own[k];
        }
        offsets[q] = 128.0 * static_cast<double>(sum);
        for (int32_t g = 0; g < scan->table->num_tiers; ++g)
            if (scan->tiers[g].level_rows) reaches[q * scan->table->num_tiers + g] = reach(q, *scan->tiers[g].tier);
        if (!scan->bias) return;
        int32_t* const to = biases + q / kLevelLot * 256 * kLevelLot + q % kLevelLot;
        for (int64_t c = 0; c < 256; ++c) {
            const double above = static_cast<double>(scan->bias_levels[c]) - scan->bias_levels[0];
            to[c * kLevelLot] = static_cast<int32_t>(ceil(above / step));
        }
    }

    double reach(int64_t q, const mgqe_tier& tier) const {
        // The coordinates that codes of so many bits can have.
        double low[8], high[8];
        for (int32_t bits = 0; bits < 8; ++bits) {
            const uint8_t* const levels = tier.levels + (bits < 7 ? (1 << bits) - 1 : 128);
            uint8_t least = levels[0], most = levels[0];
            for (int32_t i = 1; i < 1 << bits; ++i) {
                least = levels[i] < least ? levels[i] : least;
                most = levels[i] > most ? levels[i] : most;
            }
            low[bits] = least - 128.0;
            high[bits] = most - 128.0;
        }
        const mgqe_query& query = scan->queries[q];
        const int8_t* const own = whole + q * queries.coordinates;
        double rest = 0, size = fabs(query.start);
        for (int32_t j = 0; j < tier.num_subspaces; ++j) {
            const int32_t bits = tier.layout[j].bits;
            const double value = query.values[j], left = value - steps[q] * own[j];
            rest += fmax(left * low[bits], left * high[bits]);
            size += fabs(value) * fmax(fabs(low[bits]), fabs(high[bits]));
        }
        double bias = 0;
        if (scan->bias) {
            bias = scan->bias_levels[0];
            size += fmax(fabs(scan->bias_levels[0]), fabs(scan->bias_levels[255]));
        }
        // The float32 sum of the score may be above the exact one: twice what D + 3 roundings can add.
        return rest + bias + 1.2e-7 * static_cast<double>(tier.num_subspaces + 3) * size;
    }
};

}  // namespace

#endif
