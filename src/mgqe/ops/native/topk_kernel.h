// The scan of tiles of rows for the best k of each query, included by each topk_*.cpp with its vectors: `F` of bytes,
// `P` of floats.
//
// A tile is scored row by row, or, where F has byte look-ups, first put through the byte filter, which leaves the few
// rows that may reach the k-th best score. The k-th best score rises quickly because tiles are visited in three
// passes, every 64th, every 8th of the rest, the rest: rows in an unlucky order (the best ones last) then cost little.
#ifndef MGQE_TOPK_KERNEL_H
#define MGQE_TOPK_KERNEL_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "best.h"
#include "bits.h"
#include "blocks.h"
#include "byte_filter.h"
#include "level_filter.h"
#include "mixed_codes.h"
#include "packed_blocks.h"
#include "partial_scores.h"
#include "topk.h"

namespace {

constexpr int64_t kMostTileRows = 1024;
constexpr int64_t kRefresh = 8;  // per cent by which the k-th score may rise before a cosine bound is made again

// What a thread keeps of a query in a tier.
struct Bound {
    ByteBound bytes;
    double threshold;  // cosine: the k-th score that the bound was made for
    double shift;      // cosine: added to the needed score, see make_bound
    bool made;
};

// After tiles in which most rows passed, some go without the filter.
struct Patience {
    int32_t skip;
    int32_t next;
};

struct Tile {
    const mgqe_tier_view* view;
    int64_t tier;
    int64_t first;  // row
    int64_t rows;
    const uint8_t* codes;
    const uint8_t* upcoming;  // the codes of the tile after it
};

inline Tile tile_at(const mgqe_scan& scan, int64_t index, int64_t upcoming) {
    int64_t g = 0;
    while (g + 1 < scan.table->num_tiers && index >= scan.tiers[g + 1].first_tile) ++g;
    const mgqe_tier_view& view = scan.tiers[g];
    const int64_t first = (index - view.first_tile) * view.tile_rows;
    const int64_t left = view.tier->rows - first;
    const uint8_t* codes = view.tier->codes + first * view.tier->row_bytes;
    const int64_t ahead = (upcoming - index) * view.tile_rows * view.tier->row_bytes;
    return {&view, g, first, left < view.tile_rows ? left : view.tile_rows, codes, codes + ahead};
}

// Partial scores of one row, summed in the order of subspaces. `code(j)` gives its codes.
template <typename Code>
inline float sum_entries(const float* table, int64_t stride, int64_t D, const Code& code) {
    float sum = table[code(0)];
    for (int64_t j = 1; j < D; ++j) sum += table[j * stride + code(j)];
    return sum;
}

// Keeps the compiler from gathering sums of several rows into one vector: collecting the numbers costs more than
// adding them saves.
inline void alone(float& sum) {
#if defined(__x86_64__)
    __asm__("" : "+x"(sum));
#elif defined(__aarch64__)
    __asm__("" : "+w"(sum));
#endif
}

// Rows of a tier that are scored straight from their packed codes.
struct PackedRows {
    const mgqe_tier& tier;
    const int64_t stride;
    const uint32_t mask;
    const uint8_t* const end;

    explicit PackedRows(const mgqe_tier_view& view)
        : tier(*view.tier),
          stride(view.stride),
          mask((1u << view.tier->bits) - 1),
          end(view.tier->codes + view.tier->rows * view.tier->row_bytes) {}

    // Any row: reads nothing beyond the codes.
    float one(const float* table, int64_t rank) const {
        const uint8_t* row = tier.codes + rank * tier.row_bytes;
        if (tier.layout)
            return sum_entries(table, stride, tier.num_subspaces,
                               [&](int64_t j) { return code_of(tier.layout[j], tier.row_bytes, row); });
        return sum_entries(table, stride, tier.num_subspaces,
                           [&](int64_t j) { return code_before(row, j, tier.bits, mask, end); });
    }

    // Rows [first, first + count): four side by side, since each sum waits for the one before.
    void many(const float* table, int64_t first, int64_t count, float* scores) const {
        const int64_t bytes = tier.row_bytes;
        int64_t i = 0;
        if (tier.layout) return by_pieces(table, first, count, scores);
        if (tier.bits == 8) {
            for (; i + 4 <= count; i += 4) four_of_bytes(table, tier.codes + (first + i) * bytes, scores + i);
        } else {
            // The last of four rows is read up to 8 bytes past its end.
            const int64_t safe = (end - tier.codes - 8) / bytes - first;
            const int64_t stop = count < safe ? count : safe;
            for (; i + 4 <= stop; i += 4) {
                const uint8_t* rows = tier.codes + (first + i) * bytes;
                if (tier.bits < 8)
                    four_packed(table, rows, scores + i);
                else
                    four_wide(table, rows, scores + i);
            }
        }
        for (; i < count; ++i) scores[i] = one(table, first + i);
    }

    // One subspace of all rows after another: how its codes are read is then the same for all of them.
    void by_pieces(const float* table, int64_t first, int64_t count, float* scores) const {
        const int64_t bytes = tier.row_bytes;
        const uint8_t* const rows = tier.codes + first * bytes;
        for (int32_t j = 0; j < tier.num_subspaces; ++j, table += stride)
            with_reader(tier.layout[j], bytes, [&](const auto& read) {
                if (j == 0)
                    for (int64_t i = 0; i < count; ++i) scores[i] = table[read(rows + i * bytes)];
                else
                    for (int64_t i = 0; i < count; ++i) scores[i] += table[read(rows + i * bytes)];
            });
    }

    void four_of_bytes(const float* table, const uint8_t* rows, float* scores) const {
        const int64_t bytes = tier.row_bytes, D = tier.num_subspaces;
        const uint8_t *a = rows, *b = a + bytes, *c = b + bytes, *d = c + bytes;
        float first = table[*a], second = table[*b], third = table[*c], fourth = table[*d];
        for (int64_t j = 1; j < D; ++j) {
            table += stride;
            alone(first += table[a[j]]);
            alone(second += table[b[j]]);
            alone(third += table[c[j]]);
            alone(fourth += table[d[j]]);
        }
        scores[0] = first;
        scores[1] = second;
        scores[2] = third;
        scores[3] = fourth;
    }

    void four_wide(const float* table, const uint8_t* rows, float* scores) const {
        for (int r = 0; r < 4; ++r) {
            const uint8_t* row = rows + r * tier.row_bytes;
            scores[r] = sum_entries(table, stride, tier.num_subspaces,
                                    [&](int64_t j) { return code_at(row, j, tier.bits, mask); });
        }
    }

    // 8 codes take a whole number of bytes, `bits` of them.
    void four_packed(const float* table, const uint8_t* rows, float* scores) const {
        const int64_t D = tier.num_subspaces;
        const int32_t bits = tier.bits;
        float sums[4];
        for (int64_t j = 0; j < D; j += 8) {
            uint64_t words[4];
            for (int r = 0; r < 4; ++r) words[r] = window(rows + r * tier.row_bytes + j / 8 * bits);
            const int64_t stop = D - j < 8 ? D - j : 8;
            for (int64_t t = 0; t < stop; ++t, table += stride)
                for (int r = 0; r < 4; ++r) {
                    const float entry = table[words[r] & mask];
                    sums[r] = j + t == 0 ? entry : sums[r] + entry;
                    words[r] >>= bits;
                }
        }
        memcpy(scores, sums, sizeof sums);
    }
};

// Scans tiles for all queries of a scan; memory for it is found once.
template <class F, class P>
class Scanner {
public:
    Scanner(const mgqe_scan& of, mgqe_worker& to)
        : scan(of),
          worker(to),
          filters(of.method == MGQE_TOPK_FILTER && F::kFilters),
          multiplies(of.method == MGQE_TOPK_BLOCKS),
          dim(of.table->num_coordinates),
          block_stride(of.table->tiers->layout ? coordinate_stride(*of.table) : dim),
          lots((of.num_queries + kLot - 1) / kLot) {}

    int32_t run(int64_t begin, int64_t end) {
        if (!allocate() || (filters && !levels.prepare(scan))) {
            free(memory);
            return MGQE_NO_MEMORY;
        }
        const int64_t passes[3][2] = {{64, 0}, {8, 64}, {1, 8}};  // every .. th, but not every .. th
        for (const auto& pass : passes) {
            const int64_t step = pass[0];
            for (int64_t index = (begin + step - 1) / step * step; index < end; index += step) {
                if (pass[1] && index % pass[1] == 0) continue;
                int64_t next = index + step;
                if (pass[1] && next % pass[1] == 0) next += step;
                visit(tile_at(scan, index, next < end ? next : index));
            }
        }
        free(memory);
        return MGQE_OK;
    }

private:
    const mgqe_scan& scan;
    mgqe_worker& worker;
    const bool filters, multiplies;
    const int64_t dim;                              // numbers of a row that are multiplied
    const int64_t block_stride;                     // and their distance from those of the next row
    const int64_t lots;                             // of queries that are multiplied together
    static constexpr int64_t kLot = 2 * P::kLanes;
    static constexpr int kProductRows = 6;          // whose sums, of a lot, stay in registers
    char* memory = nullptr;
    uint8_t* columns = nullptr;    // (D + 8, of which one is for biases; tile rows)
    uint8_t* rows_copy = nullptr;  // the last rows of a tier with room behind them
    float* scores = nullptr;
    float* norms = nullptr;
    float* entries = nullptr;      // of one query, where they are not its partial scores as they are
    uint8_t* byte_tables = nullptr;
    Bound* bounds = nullptr;       // (queries, tiers)
    Patience* patience = nullptr;  // (queries)
    float* lot_queries = nullptr;  // (lots, dim, kLot)
    float* lot_needs = nullptr;    // (lots, kLot): the scores that their rows must reach
    float* lot_margins = nullptr;  // (tiers, lots, kLot): by how much a product may be less than the score
    bool* multiplied = nullptr;    // (tiers): whether all margins are finite
    float* block = nullptr;        // (kBlockRows, block_stride)
    uint16_t* passing = nullptr;   // (kLot, kBlockRows): which rows of a block
    int64_t tables_step = 0;       // bytes of a query's tables
    LevelFilter levels;

    int64_t columns_of(const mgqe_tier_view& view) const {
        return view.tier->num_subspaces + (scan.bias != nullptr ? 1 : 0);
    }
    int64_t last_stride(const mgqe_tier_view& view) const { return scan.bias ? 256 : view.stride; }
    // How many of these the last column can name.
    int64_t last_entries(const mgqe_tier_view& view) const {
        return scan.bias ? 256 : view.entries ? view.entries[view.tier->num_subspaces - 1] : view.stride;
    }
    // Where a tier's byte entries start among a query's: its own 256 for the bias after each tier before it.
    int64_t bytes_offset(int64_t tier) const { return scan.tiers[tier].table_offset + 256 * tier; }

    bool allocate() {
        int64_t most_columns = 0, most_entries = 0, most_row_bytes = 0;
        for (int32_t g = 0; g < scan.table->num_tiers; ++g) {
            const mgqe_tier_view& view = scan.tiers[g];
            if (!view.filtered) continue;
            const int64_t D = view.tier->num_subspaces;
            const int64_t held = (D + 8) * view.tile_rows;
            most_columns = held > most_columns ? held : most_columns;
            most_entries = D * view.stride + 256 > most_entries ? D * view.stride + 256 : most_entries;
            most_row_bytes = view.tier->row_bytes > most_row_bytes ? view.tier->row_bytes : most_row_bytes;
            tables_step = bytes_offset(g) + D * view.stride + 256;
        }
        const int64_t m = scan.table->num_tiers, n = scan.num_queries;
        const int64_t lot_floats = multiplies ? lots * kLot : 0;
        constexpr int kParts = 14;
        int64_t sizes[kParts] = {most_columns, 64 * most_row_bytes + kBeyond, kMostTileRows * 4, kMostTileRows * 4,
                            most_entries * 4, n * tables_step, n * m * static_cast<int64_t>(sizeof(Bound)),
                            n * static_cast<int64_t>(sizeof(Patience)), lot_floats * dim * 4, lot_floats * 4,
                            lot_floats * m * 4, m,
                            multiplies ? (kBlockRows + kProductRows) * block_stride * 4 : 0, kLot * kBlockRows * 2};
        int64_t total = 64;
        for (int64_t& size : sizes) {
            size = (size + 63) / 64 * 64;
            total += size;
        }
        memory = static_cast<char*>(malloc(static_cast<size_t>(total)));
        if (!memory) return false;
        char* at = memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64);
        void* parts[kParts];
        for (int i = 0; i < kParts; ++i) {
            parts[i] = at;
            at += sizes[i];
        }
        columns = static_cast<uint8_t*>(parts[0]);
        rows_copy = static_cast<uint8_t*>(parts[1]);
        memset(rows_copy, 0, static_cast<size_t>(sizes[1]));
        scores = static_cast<float*>(parts[2]);
        norms = static_cast<float*>(parts[3]);
        entries = static_cast<float*>(parts[4]);
        byte_tables = static_cast<uint8_t*>(parts[5]);
        bounds = static_cast<Bound*>(parts[6]);
        patience = static_cast<Patience*>(parts[7]);
        lot_queries = static_cast<float*>(parts[8]);
        lot_needs = static_cast<float*>(parts[9]);
        lot_margins = static_cast<float*>(parts[10]);
        multiplied = static_cast<bool*>(parts[11]);
        block = static_cast<float*>(parts[12]);
        passing = static_cast<uint16_t*>(parts[13]);
        if (multiplies) fill_lots();
        for (int64_t i = 0; i < n * m; ++i) bounds[i].made = false;
        for (int64_t i = 0; i < n; ++i) patience[i] = {0, 1};
        return true;
    }

    // The score that a row must reach: the k-th best here, or what another thread knows.
    float threshold(int64_t q) const {
        const float known = from_ordered_bits(__atomic_load_n(scan.queries[q].shared_threshold, __ATOMIC_RELAXED));
        const float own = worker.bests[q].full ? worker.bests[q].worst.score : kLowest;
        return own > known ? own : known;
    }

    void publish(int64_t q) {
        if (!worker.bests[q].full) return;
        const uint32_t mine = ordered_bits(worker.bests[q].worst.score);
        uint32_t known = __atomic_load_n(scan.queries[q].shared_threshold, __ATOMIC_RELAXED);
        while (mine > known && !__atomic_compare_exchange_n(scan.queries[q].shared_threshold, &known, mine, true,
                                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    }

    void visit(const Tile& tile) {
        if (multiplies && multiplied[tile.tier]) return visit_blocks(tile);
        if (filters && tile.view->level_rows) return visit_levels(tile);
        bool have_columns = false;
        for (int64_t q = 0; q < scan.num_queries; ++q) {
            if (filters && tile.view->filtered && patience[q].skip == 0) {
                const float least = threshold(q);
                // Nothing to compare with yet: all rows count.
                if (least > kLowest && bound(q, tile, least).bytes.usable) {
                    if (!have_columns) make_columns(tile);
                    have_columns = true;
                    filtered(q, tile, least);
                    continue;
                }
            }
            if (patience[q].skip) --patience[q].skip;
            all_rows(q, tile);
        }
    }

    // The byte bound of a query in a tile's tier.
    //
    // Cosine: x.q / |x| >= t if and only if x.q - t |x| >= 0. For t > 0 the concave |x| = sqrt(|x|^2) lies above its
    // secant a + b |x|^2 between the shortest and the longest row, and |x|^2 is a sum over subspaces as x.q is: the
    // bound is that of the entries x.q - t b |x|^2, and the score needed is t a. A bound for a lower t stays valid.
    const Bound& bound(int64_t q, const Tile& tile, float least) {
        Bound& made = bounds[q * scan.table->num_tiers + tile.tier];
        const double t = least;
        if (made.made && (!scan.cosine || t <= made.threshold * (1 + kRefresh * 0.01))) return made;
        const mgqe_tier_view& view = *tile.view;
        const int64_t D = view.tier->num_subspaces, cells = D * view.stride;
        const float* from = scan.queries[q].tables + view.table_offset;
        double magnitude = 0;
        made.made = true;
        made.threshold = t;
        made.shift = 0;
        made.bytes.usable = false;
        if (scan.cosine) {
            // Squares of very short rows lose digits.
            if (!(t > 0) || !(view.norm_high > 1e-15)) {
                made.made = false;
                return made;
            }
            const double low = view.norm_low, high = view.norm_high;
            const double slope = high + low > 0 ? 1 / (high + low) : 0;  // of the secant: b
            const float scale = static_cast<float>(t * slope);
            made.shift = t * low * high * slope;  // t a, a = low - b low^2
            for (int64_t i = 0; i < cells; ++i) entries[i] = from[i] - scale * view.norms[i];
            for (int64_t j = 0; j < D; ++j) {
                float least_dot, most_dot, least_norm, most_norm;
                extremes(from + j * view.stride, view.stride, least_dot, most_dot);
                extremes(view.norms + j * view.stride, view.stride, least_norm, most_norm);
                magnitude += fabs(least_dot) + fabs(most_dot) + scale * most_norm;
            }
            magnitude += t * high;
            from = entries;
        } else if (scan.bias) {
            memcpy(entries, from, static_cast<size_t>(cells) * sizeof(float));
            memcpy(entries + cells, scan.bias_levels, 256 * sizeof(float));
            from = entries;
        }
        made.bytes = bound_tables(from, columns_of(view), view.stride, last_stride(view), magnitude,
                                  byte_tables + q * tables_step + bytes_offset(tile.tier));
        return made;
    }

    // ---- rows of levels ----

    void visit_levels(const Tile& tile) {
        const mgqe_tier_view& view = *tile.view;
        const mgqe_tier& tier = *view.tier;
        const uint8_t* const end = tier.codes + tier.rows * tier.row_bytes;
        const uint8_t* const bias = scan.bias ? scan.bias_codes + view.first_position + tile.first : nullptr;
        for (int64_t q = 0; q < scan.num_queries; ++q) levels.needs[q] = levels.needed(q, tile.tier, threshold(q));
        mgqe_pass_levels(*view.level_rows, tile.codes, end, tile.rows, tile.upcoming, levels.queries, levels.needs, bias,
                         levels.bytes, levels.passed, levels.counts);
        mgqe_score_levels(*view.level_rows, tile.codes, end, levels.hits, levels.list_hits(), tier.num_subspaces,
                          levels.bytes, levels.scores);
        const float* found = levels.scores;
        for (int64_t q = 0; q < scan.num_queries; found += levels.counts[q++]) {
            const int64_t count = levels.counts[q];
            if (!count) continue;
            memcpy(scores, found, static_cast<size_t>(count) * sizeof(float));
            offer_rows(q, tile, levels.passed + q * kMostLevelRows, count);
        }
    }

    // ---- decoded blocks times queries ----

    void fill_lots() {
        memset(lot_queries, 0, static_cast<size_t>(lots * kLot * dim) * sizeof(float));
        for (int64_t q = 0; q < scan.num_queries; ++q) {
            float* to = lot_queries + q / kLot * kLot * dim + q % kLot;
            for (int64_t t = 0; t < dim; ++t) to[t * kLot] = scan.queries[q].values[t];
        }
        for (int32_t g = 0; g < scan.table->num_tiers; ++g) {
            // Lengths of rows are summed in float32.
            multiplied[g] = !scan.cosine || scan.tiers[g].norm_high < 1e18;
            for (int64_t q = 0; q < lots * kLot; ++q) {
                const double off = q < scan.num_queries ? margin(q, scan.tiers[g]) : 0;
                lot_margins[g * lots * kLot + q] = static_cast<float>(off);
                if (!(off < 1e25)) multiplied[g] = false;  // products may overflow
            }
        }
    }

    // By how much a product may be less than the score: both sum dim products, in another order, in float32.
    double margin(int64_t q, const mgqe_tier_view& view) const {
        const double bias = scan.bias ? fabs(scan.bias_levels[0]) + fabs(scan.bias_levels[255]) : 0;
        const double relative = 2.4e-7 * static_cast<double>(dim + 16);
        // Numbers near 1e-38 lose digits, and squares of numbers below 1e-19 do so too.
        const double tiny = 1e-17 * (1 + scan.queries[q].length) * static_cast<double>(dim);
        return relative * (scan.queries[q].length * view.norm_high + fabs(scan.queries[q].start) + bias) + tiny;
    }

    void visit_blocks(const Tile& tile) {
        const mgqe_tier_view& view = *tile.view;
        for (int64_t first = 0; first < tile.rows; first += kBlockRows) {
            const int64_t left = tile.rows - first, rows = left < kBlockRows ? left : kBlockRows;
            decode_rows(view, tile.first + first, rows, block_stride, block);
            // A row's length for cosine (the score needed is that of the unit row), and the most its bias may be.
            float lengths[kBlockRows + kProductRows], extra[kBlockRows + kProductRows];
            for (int64_t i = 0; i < rows; ++i) {
                lengths[i] = 1;
                extra[i] = 0;
                if (scan.bias)
                    extra[i] = scan.bias_levels[scan.bias_codes[view.first_position + tile.first + first + i]];
                if (!scan.cosine) continue;
                float squares = 0;
                for (int64_t t = 0; t < dim; ++t) squares += block[i * block_stride + t] * block[i * block_stride + t];
                lengths[i] = __builtin_sqrtf(squares);
            }
            Tile part = tile;
            part.first = tile.first + first;
            part.rows = rows;
            for (int64_t lot = 0; lot < lots; ++lot) multiply_lot(lot, part, lengths, extra);
        }
    }

    void multiply_lot(int64_t lot, const Tile& part, const float* lengths, const float* extra) {
        float* needs = lot_needs + lot * kLot;
        const float* margins = lot_margins + (part.tier * lots + lot) * kLot;
        const int64_t first = lot * kLot, left = scan.num_queries - first, queries = left < kLot ? left : kLot;
        for (int64_t i = 0; i < kLot; ++i) {
            needs[i] = i < queries ? threshold(first + i) : -kLowest;
            // A query that has no k hits yet takes every row: the lowest finite number, which any margin leaves low.
            if (needs[i] == kLowest) needs[i] = -3e38f;
            else if (i < queries) needs[i] -= scan.queries[first + i].start;
        }
        int32_t counts[kLot] = {};
        uint32_t masks[kProductRows];
        const float* values = lot_queries + lot * kLot * dim;
        for (int64_t row = 0; row < part.rows; row += kProductRows) {
            multiply<P, kProductRows>(block + row * block_stride, block_stride, dim, values, needs, margins,
                                      lengths + row, extra + row, masks);
            const int64_t some = part.rows - row < kProductRows ? part.rows - row : kProductRows;
            for (int64_t r = 0; r < some; ++r)
                for (uint32_t mask = masks[r]; mask; mask &= mask - 1) {
                    const int64_t i = __builtin_ctz(mask);
                    passing[i * kBlockRows + counts[i]++] = static_cast<uint16_t>(row + r);
                }
        }
        const PackedRows rows(*part.view);
        for (int64_t i = 0; i < queries; ++i) {
            const uint16_t* passed = passing + i * kBlockRows;
            const float* table = scan.queries[first + i].tables + part.view->table_offset;
            for (int32_t n = 0; n < counts[i]; ++n) {
                scores[n] = rows.one(table, part.first + passed[n]);
                if (scan.cosine) norms[n] = rows.one(part.view->norms, part.first + passed[n]);
            }
            if (counts[i]) offer_rows(first + i, part, passed, counts[i]);
        }
    }

    // ---- the byte filter ----

    void make_columns(const Tile& tile) {
        const mgqe_tier_view& view = *tile.view;
        const mgqe_tier& tier = *view.tier;
        const int64_t block_bytes = 64 * tier.row_bytes;
        // Blocks that may be read in place, then the last ones of the tier from a copy with room behind it.
        const int64_t readable = tier.codes + tier.rows * tier.row_bytes - tile.codes - kBeyond;
        const int64_t all = (tile.rows + 63) / 64;
        int64_t done = readable < 0 ? 0 : readable / block_bytes;
        done = done < all ? done : all;
        F::columns({tile.codes, done, tier.row_bytes, view.groups, view.num_groups, tile.upcoming}, columns,
                   view.tile_rows);
        for (; done < all; ++done) {
            const uint8_t* from = tile.codes + done * block_bytes;
            const int64_t left = readable + kBeyond - done * block_bytes;
            memcpy(rows_copy, from, static_cast<size_t>(left < block_bytes ? left : block_bytes));
            F::columns({rows_copy, 1, tier.row_bytes, view.groups, view.num_groups, rows_copy}, columns + 64 * done,
                       view.tile_rows);
        }
        if (scan.bias)
            memcpy(columns + tier.num_subspaces * view.tile_rows,
                   scan.bias_codes + view.first_position + tile.first, static_cast<size_t>(tile.rows));
    }

    void filtered(int64_t q, const Tile& tile, float least) {
        const mgqe_tier_view& view = *tile.view;
        const Bound& bound = bounds[q * scan.table->num_tiers + tile.tier];
        const double score = scan.cosine ? bound.shift : least;
        const int64_t needed = needed_sum(bound.bytes, score);
        if (needed == 65536) return;
        uint64_t masks[kMostTileRows / 64];
        const uint8_t* tables = byte_tables + q * tables_step + bytes_offset(tile.tier);
        pass_rows<F>(columns, tile.rows, columns_of(view), view.tile_rows, tables, view.stride, view.entries,
                     last_entries(view), needed, masks);
        uint16_t passed[kMostTileRows];
        int64_t count = 0;
        for (int64_t row = 0; row < tile.rows; row += 64) {
            uint64_t mask = masks[row / 64];
            if (tile.rows - row < 64) mask &= (static_cast<uint64_t>(1) << (tile.rows - row)) - 1;
            for (; mask; mask &= mask - 1) passed[count++] = static_cast<uint16_t>(row + __builtin_ctzll(mask));
        }
        if (!count) return;
        const float* table = scan.queries[q].tables + view.table_offset;
        score_columns(table, view, passed, count, scores);
        if (scan.cosine) score_columns(view.norms, view, passed, count, norms);
        offer_rows(q, tile, passed, count);
        // A filter that lets most rows pass only costs.
        if (2 * count > tile.rows) {
            patience[q].skip = patience[q].next;
            patience[q].next = patience[q].next < 64 ? 2 * patience[q].next : 64;
        } else {
            patience[q].next = 1;
        }
    }

    // Partial scores of the rows passed, summed from their columns.
    void score_columns(const float* table, const mgqe_tier_view& view, const uint16_t* passed, int64_t count,
                       float* out) const {
        const int64_t D = view.tier->num_subspaces, step = view.tile_rows, stride = view.stride;
        int64_t i = 0;
        for (; i + 4 <= count; i += 4) {
            const uint8_t* column = columns;
            const float* entry = table;
            float sums[4];
            for (int r = 0; r < 4; ++r) sums[r] = entry[column[passed[i + r]]];
            for (int64_t j = 1; j < D; ++j) {
                column += step;
                entry += stride;
                for (int r = 0; r < 4; ++r) sums[r] += entry[column[passed[i + r]]];
            }
            memcpy(out + i, sums, sizeof sums);
        }
        for (; i < count; ++i)
            out[i] = sum_entries(table, stride, D, [&](int64_t j) { return columns[j * step + passed[i]]; });
    }

    void all_rows(int64_t q, const Tile& tile) {
        const mgqe_tier_view& view = *tile.view;
        const PackedRows rows(view);
        rows.many(scan.queries[q].tables + view.table_offset, tile.first, tile.rows, scores);
        if (scan.row_squares)
            memcpy(norms, scan.row_squares + view.first_position + tile.first,
                   static_cast<size_t>(tile.rows) * sizeof(float));
        else if (scan.cosine)
            rows.many(view.norms, tile.first, tile.rows, norms);
        offer_rows(q, tile, nullptr, tile.rows);
    }

    // Turns sums into scores and offers them. `passed`: which rows of the tile they are, null for all.
    void offer_rows(int64_t q, const Tile& tile, const uint16_t* passed, int64_t count) {
        worker.rescored += count;
        if (scan.cosine)
            for (int64_t i = 0; i < count; ++i) scores[i] = cosine_of(scores[i], norms[i]);
        Best best{*scan.table, worker.hits + q * room_for(scan.k), scan.k, worker.bests[q]};
        float least = threshold(q);
        constexpr int64_t kAtOnce = 16;
        int64_t i = 0;
        // Most rows fall short: 16 are compared at once.
        for (; i + kAtOnce <= count; i += kAtOnce) {
            int near = 0;
            for (int64_t l = 0; l < kAtOnce; ++l) near |= bound_of(tile, passed, i + l) >= least;
            if (near)
                for (int64_t l = 0; l < kAtOnce; ++l) offer_row(q, tile, passed, i + l, best, least);
        }
        for (; i < count; ++i) offer_row(q, tile, passed, i, best, least);
        // The first k hits are worth comparing at once: nothing can be passed over before.
        if (!worker.bests[q].full) best.cut();
        publish(q);
    }

    // The score of a row, or no less where a bias has yet to be added.
    float bound_of(const Tile& tile, const uint16_t* passed, int64_t i) const {
        if (!scan.bias) return scores[i];
        const int64_t rank = tile.first + (passed ? passed[i] : i);
        return scores[i] + scan.bias_levels[scan.bias_codes[tile.view->first_position + rank]];
    }

    void offer_row(int64_t q, const Tile& tile, const uint16_t* passed, int64_t i, Best& best, float& least) {
        if (!(bound_of(tile, passed, i) >= least)) return;
        const int64_t rank = tile.first + (passed ? passed[i] : i);
        float score = scores[i];
        if (scan.bias) {
            const int64_t id = id_at(*scan.table, tile.tier, rank);
            best.state.corrupt |= id < 0;
            if (id < 0) return;
            score += scan.bias[id];
            if (!(score >= least)) return;
        }
        if (tile.tier == scan.padding_tier && rank == scan.padding_rank) return;
        offer(scan, scan.queries[q], best, {score, static_cast<int32_t>(tile.tier), rank});
        const float own = best.threshold();
        least = own > least ? own : least;
    }
};

}  // namespace

#endif
