// Exact top-K straight from the codes: prepares partial scores, spreads queries or rows over threads, merges.
#include "topk.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>

#include "best.h"
#include "bits.h"
#include "byte_filter.h"
#include "isa.h"
#include "level_layout.h"
#include "locate.h"
#include "mixed_codes.h"
#include "packed_blocks.h"
#include "parallel.h"
#include "partial_scores.h"
#include "select.h"

namespace {

constexpr int64_t kQueriesAtOnce = 32;               // whose tables share a pass over the codes
constexpr int64_t kTableBytes = 16 << 20;            // at most, of all those queries
constexpr int64_t kQueriesPerThread = kQueriesAtOnce;           // from here on threads take queries, not rows
constexpr int64_t kTilesPerThread = 8;
constexpr int64_t kFewLeft = 4;                      // of a mask: 1 / 4 of the rows
constexpr int64_t kManyCandidates = 4096;
constexpr int64_t kLeastLevels = 9;                  // coordinates of a row: fewer are as fast as columns
constexpr int64_t kScanShare = 8;                    // k above 1 / 8 of the rows: nothing to filter

// Memory that frees itself.
template <typename T>
struct Buffer {
    T* data = nullptr;
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free(data); }
    bool reserve(int64_t n) {
        free(data);
        data = static_cast<T*>(malloc(static_cast<size_t>(n < 1 ? 1 : n) * sizeof(T)));
        return data != nullptr;
    }
};

// Code j of row i of a tier.
inline uint32_t one_code(const mgqe_tier& tier, int64_t i, int64_t j) {
    const uint8_t* const row = tier.codes + i * tier.row_bytes;
    if (tier.layout) return code_of(tier.layout[j], tier.row_bytes, row);
    return code_before(row, j, tier.bits, (1u << tier.bits) - 1, tier.codes + tier.rows * tier.row_bytes);
}

// What does not depend on the query.
struct Plan {
    const mgqe_table& table;
    const mgqe_topk_job& job;
    Buffer<mgqe_tier_view> views;
    Buffer<float> books;  // float16 and int8 codebooks as float32
    Buffer<const float*> book_of;
    Buffer<mgqe_code_group> groups;
    Buffer<int32_t> entries;
    Buffer<mgqe_level_rows> level_rows;
    Buffer<mgqe_level_vector> level_vectors_of;
    Buffer<float> norms;
    Buffer<uint8_t> hidden_rows;  // of a mask for all queries
    int64_t num_tiles = 0;
    int64_t table_entries = 0;
    int32_t method = MGQE_TOPK_SCAN;

    Plan(const mgqe_table& of, const mgqe_topk_job& what) : table(of), job(what) {}

    int32_t prepare() {
        const int32_t m = table.num_tiers;
        int64_t codes = 0, grouped = 0, vectors = 0, counted = 0;
        for (int32_t g = 0; g < m; ++g) {
            codes += table.tiers[g].num_subspaces;
            if (has_level_rows(table.tiers[g])) vectors += level_vectors(table.tiers[g]);
        }
        if (!views.reserve(m) || !book_of.reserve(m) || !groups.reserve(codes) || !entries.reserve(codes) ||
            !decode_books())
            return MGQE_NO_MEMORY;
        if (!level_rows.reserve(m) || !level_vectors_of.reserve(vectors)) return MGQE_NO_MEMORY;
        vectors = 0;
        for (int32_t g = 0; g < m; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            const int64_t D = tier.num_subspaces;
            mgqe_tier_view& view = views.data[g];
            view = {};
            view.tier = &tier;
            view.book = book_of.data[g];
            view.first_tile = num_tiles;
            // Columns of a tile in about 16 KB.
            view.tile_rows = D <= 16 ? 1024 : 512;
            view.first_position = table.starts[g];
            view.stride = entry_stride(tier.bits);
            view.table_offset = table_entries;
            if (tier.layout) {
                int32_t* const own = entries.data + counted;
                for (int64_t j = 0; j < D; ++j) own[j] = static_cast<int32_t>(entry_stride(tier.layout[j].bits));
                counted += D;
                if (std::any_of(own, own + D, [&](int32_t each) { return each != view.stride; })) view.entries = own;
            }
            view.filtered = mgqe_has_filter(tier.bits) && D < kMostColumns && tier.row_bytes > 0;
            if (view.filtered) {
                view.groups = groups.data + grouped;
                view.num_groups = group_codes(tier, groups.data + grouped);
                grouped += view.num_groups;
            }
            if (view.filtered && has_level_rows(tier)) {
                level_rows.data[g] =
                    lay_out_levels(tier, view.groups, view.num_groups, level_vectors_of.data + vectors);
                view.level_rows = level_rows.data + g;
                view.filtered = false;
                vectors += view.level_rows->number;
            }
            num_tiles += (tier.rows + view.tile_rows - 1) / view.tile_rows;
            table_entries += D * view.stride;
        }
        method = choose();
        if (job.hidden && job.hidden_step == 0) {
            const int32_t status = hide_rows(job.hidden, hidden_rows);
            if (status != MGQE_OK) return status;
        }
        const bool cosine = job.cosine && !table.matrix;
        if ((cosine || method == MGQE_TOPK_BLOCKS) && !find_norms()) return MGQE_NO_MEMORY;
        return cosine && long_rows() ? MGQE_LONG_ROWS : MGQE_OK;
    }

    // Whether products of bytes filter a tier: only where coordinates share levels, which tables with a matrix alone have.
    bool has_level_rows(const mgqe_tier& tier) const {
        return tier.levels && table.matrix && tier.num_subspaces >= kLeastLevels && mgqe_has_byte_products();
    }

    // A mask by position, if it leaves so few rows that many are asked for in vain, each of which would have to find
    // its id.
    int32_t hide_rows(const uint8_t* hidden, Buffer<uint8_t>& to) const {
        if (table.num_levels == 0) return MGQE_OK;
        int64_t left = 0;
        for (int64_t id = 0; id < table.num_embeddings; ++id) left += !hidden[id];
        if (left >= table.num_embeddings / kFewLeft) return MGQE_OK;
        if (!to.reserve(table.num_embeddings)) return MGQE_NO_MEMORY;
        Walk walk(table);
        for (int64_t id = 0; id < table.num_embeddings; ++id) {
            const Place place = walk.next();
            if (place.tier < 0 || place.rank >= table.tiers[place.tier].rows) return MGQE_CORRUPT;
            to.data[table.starts[place.tier] + place.rank] = hidden[id];
        }
        return MGQE_OK;
    }

    // Whether no score of a query can leave float32, nor any sum on the way to it, whatever the codes.
    bool in_range(const float* tables) const {
        const double bias = job.bias ? fmax(fabs(job.bias_levels[0]), fabs(job.bias_levels[255])) : 0;
        for (int32_t g = 0; g < table.num_tiers; ++g)
            if (table.tiers[g].rows > 0 && !(reach(views.data[g], tables) + bias <= kLargest)) return false;
        return true;
    }

    // Partial scores of a query in all tiers. Tiers that share a codebook share the work.
    void score(const mgqe_query& query, float* tables) const {
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            float* to = tables + views.data[g].table_offset;
            if (table.tiers[g].layout)
                score_pieces(g, query, tables);
            else if (const float* from = computed_before(g, tables))
                copy_entries(from, views.data[g], to);
            else
                partial_scores(*views.data[g].tier, book_of.data[g], query.values, views.data[g].stride, to);
        }
    }

private:
    static constexpr double kLargest = 3.4028234663852886e38;
    static constexpr int64_t kEntries = 16;  // that are worked on together

    void score_pieces(int32_t g, const mgqe_query& query, float* tables) const {
        const mgqe_tier_view& view = views.data[g];
        for (int32_t j = 0; j < view.tier->num_subspaces; ++j) {
            const mgqe_piece& piece = view.tier->layout[j];
            const int64_t count = static_cast<int64_t>(1) << piece.bits;
            float* const to = tables + view.table_offset + j * view.stride;
            if (const float* from = piece_before(g, j, tables)) {
                memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
                std::fill(to + count, to + view.stride, to[count - 1]);
                continue;
            }
            piece_scores(piece, book_of.data[g], query.values, view.stride, to);
            if (j == 0 && table.matrix)
                for (int64_t k = 0; k < view.stride; ++k) to[k] += query.start;
        }
    }

    // The entries of an earlier tier that begin with those of piece j of tier g.
    const float* piece_before(int32_t g, int32_t j, const float* tables) const {
        const mgqe_tier& tier = table.tiers[g];
        for (int32_t h = 0; h < g; ++h) {
            const mgqe_tier& other = table.tiers[h];
            if (other.centroids == tier.centroids && other.layout[j].bits >= tier.layout[j].bits &&
                other.layout[j].entry == tier.layout[j].entry)
                return tables + views.data[h].table_offset + j * views.data[h].stride;
        }
        return nullptr;
    }

    // The sum of the largest sizes of a tier's entries in each subspace; NaN if one is not finite.
    double reach(const mgqe_tier_view& view, const float* tables) const {
        double total = 0;
        const int64_t entries = static_cast<int64_t>(1) << view.tier->bits;
        for (int64_t j = 0; j < view.tier->num_subspaces; ++j) {
            const float* own = tables + view.table_offset + j * view.stride;
            float most[kEntries] = {}, spoilt[kEntries] = {};  // NaN where an entry is not finite
            int64_t k = 0;
            for (; k + kEntries <= entries; k += kEntries)
                for (int64_t l = 0; l < kEntries; ++l) {
                    const float size = fabsf(own[k + l]);
                    most[l] = size > most[l] ? size : most[l];
                    spoilt[l] += own[k + l] - own[k + l];
                }
            for (; k < entries; ++k) {
                most[0] = fmaxf(most[0], fabsf(own[k]));
                spoilt[0] += own[k] - own[k];
            }
            for (int64_t l = 1; l < kEntries; ++l) {
                most[0] = most[l] > most[0] ? most[l] : most[0];
                spoilt[0] += spoilt[l];
            }
            total += static_cast<double>(most[0]) + static_cast<double>(spoilt[0]);
        }
        return total;
    }

    // Whether a row's squared length is beyond float32. Rows are read only where it is possible.
    bool long_rows() const {
        const Place padding = table.padding_idx < 0 ? Place{-1, 0} : locate(table, table.padding_idx);
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            if (tier.rows == 0 || reach(views.data[g], norms.data) <= kLargest) continue;
            for (int64_t i = 0; i < tier.rows; ++i) {
                if (padding.tier == g && padding.rank == i) continue;
                float norm = 0;
                for (int64_t j = 0; j < tier.num_subspaces; ++j)
                    norm += views.data[g].norms[j * views.data[g].stride + one_code(tier, i, j)];
                if (!(norm - norm == 0)) return true;
            }
        }
        return false;
    }

    int32_t choose() const {
        // The length of a row is then no sum over subspaces, which both other methods need.
        if (job.cosine && table.matrix) return MGQE_TOPK_SCAN;
        if (job.method != MGQE_TOPK_AUTO) return job.method;
        const bool filter = job.k < table.num_embeddings / kScanShare;
        double rows = 0, blocks = 0;
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            rows += static_cast<double>(tier.rows) *
                    (filter && views.data[g].level_rows ? level_cost(tier) : row_cost(tier, filter && views.data[g].filtered));
            blocks += static_cast<double>(tier.rows) * block_cost(tier);
        }
        if (blocks < rows) return MGQE_TOPK_BLOCKS;
        return filter ? MGQE_TOPK_FILTER : MGQE_TOPK_SCAN;
    }

    // Roughly what a row costs a query, in nanoseconds. Only the ratios matter, and they only decide how, not what, is
    // found. Measured with benchmarks/speed/topk_methods.py.
    static double row_cost(const mgqe_tier& tier, bool filter) {
        const double D = tier.num_subspaces;
        if (tier.bits > 8) return 0.8 * D;
        if (!filter) return 0.28 * D;
        const bool wide = mgqe_get_isa() == MGQE_AVX512;
        const double entry = tier.bits <= 4 ? 0.03 : tier.bits <= 6 ? 0.055 : tier.bits == 7 ? 0.1 : 0.18;
        return 0.1 + D * (wide ? 0.033 : entry);
    }

    static double level_cost(const mgqe_tier& tier) { return 0.5 + 0.02 * tier.num_subspaces; }

    double block_cost(const mgqe_tier& tier) const {
        const int32_t isa = mgqe_get_isa();
        const int64_t lot = isa == MGQE_AVX512 ? 32 : isa == MGQE_AVX2 ? 16 : 8;
        const int64_t queries = job.num_queries < kQueriesAtOnce ? job.num_queries : kQueriesAtOnce;
        const double padded = static_cast<double>((queries + lot - 1) / lot * lot);
        const double product = (isa == MGQE_AVX512 || isa == MGQE_AVX2 ? 0.03 : 0.075) * table.num_coordinates;
        return (product * padded + 1.5 * tier.num_subspaces) / static_cast<double>(queries < 1 ? 1 : queries);
    }

    bool decode_books() {
        int64_t total = 0;
        for (int32_t g = 0; g < table.num_tiers; ++g)
            if (table.tiers[g].dtype != MGQE_FLOAT32 && same_book(g) < 0) total += book_size(table.tiers[g]);
        if (!books.reserve(total)) return false;
        float* to = books.data;
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            const int32_t before = same_book(g);
            if (before >= 0) {
                book_of.data[g] = book_of.data[before];
            } else if (tier.dtype == MGQE_FLOAT32) {
                book_of.data[g] = static_cast<const float*>(tier.centroids);
            } else {
                decode_book(tier, to);
                book_of.data[g] = to;
                to += book_size(tier);
            }
        }
        return true;
    }

    // An earlier tier with the same codebook, or -1.
    int32_t same_book(int32_t g) const {
        for (int32_t h = 0; h < g; ++h)
            if (table.tiers[h].centroids == table.tiers[g].centroids) return h;
        return -1;
    }

    // The table of an earlier tier that begins with what tier g needs.
    const float* computed_before(int32_t g, const float* tables) const {
        const mgqe_tier& tier = table.tiers[g];
        for (int32_t h = 0; h < g; ++h) {
            const mgqe_tier& other = table.tiers[h];
            if (other.centroids == tier.centroids && other.num_subspaces == tier.num_subspaces &&
                views.data[h].stride >= views.data[g].stride)
                return tables + views.data[h].table_offset;
        }
        return nullptr;
    }

    void copy_entries(const float* from, const mgqe_tier_view& view, float* to) const {
        int64_t stride = 0;  // of `from`
        for (int32_t h = 0; h < table.num_tiers && !stride; ++h) {
            const mgqe_tier_view& other = views.data[h];
            if (other.tier->centroids == view.tier->centroids &&
                other.tier->num_subspaces == view.tier->num_subspaces && other.stride >= view.stride)
                stride = other.stride;
        }
        for (int64_t j = 0; j < view.tier->num_subspaces; ++j)
            memcpy(to + j * view.stride, from + j * stride, static_cast<size_t>(view.stride) * sizeof(float));
    }

    bool find_norms() {
        if (!norms.reserve(table_entries)) return false;
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            mgqe_tier_view& view = views.data[g];
            float* to = norms.data + view.table_offset;
            if (view.tier->layout)
                for (int32_t j = 0; j < view.tier->num_subspaces; ++j)
                    piece_scores(view.tier->layout[j], book_of.data[g], nullptr, view.stride, to + j * view.stride);
            else
                partial_scores(*view.tier, book_of.data[g], nullptr, view.stride, to);
            view.norms = to;
            double low = 0, high = 0;
            for (int64_t j = 0; j < view.tier->num_subspaces; ++j) {
                float least, most;
                extremes(to + j * view.stride, view.stride, least, most);
                low += least;
                high += most;
            }
            // Wider by more than float32 sums can be off.
            view.norm_low = sqrt(low) * (1 - 1e-5);
            view.norm_high = sqrt(high) * (1 + 1e-5);
        }
        return true;
    }
};

// The rows of ids as ascending positions (rows of all tiers, one tier after another).
bool to_positions(const mgqe_table& table, const mgqe_tier_view* views, const int64_t* ids, int64_t n,
                  int64_t* positions) {
    for (int64_t i = 0; i < n; ++i) {
        const Place place = locate(table, ids[i]);
        if (place.tier < 0) return false;
        positions[i] = views[place.tier].first_position + place.rank;
    }
    std::sort(positions, positions + n);
    return true;
}

// A row that may be returned.
struct Found {
    float score;
    int64_t id;
};

// Some queries of a job, worked on together.
struct Group {
    const Plan& plan;
    Buffer<mgqe_query> queries;
    Buffer<float> tables;
    Buffer<float> turned;  // queries times the matrix
    Buffer<uint32_t> thresholds;
    Buffer<int64_t> excluded;
    Buffer<uint8_t> hidden_rows[kQueriesAtOnce];
    Buffer<mgqe_hit> hits;
    Buffer<mgqe_best> bests;
    Buffer<Found> merged;

    explicit Group(const Plan& of) : plan(of) {}

    int32_t run(int64_t first, int64_t count, int team, std::atomic<int64_t>& rescored) {
        const int32_t status = prepare(first, count);
        if (status != MGQE_OK) return status;
        const int64_t k = plan.job.k;
        const int64_t room = room_for(k);
        if (!hits.reserve(team * count * room) || !bests.reserve(team * count) || !merged.reserve(team * room + 1))
            return MGQE_NO_MEMORY;
        for (int64_t i = 0; i < team * count; ++i) bests.data[i] = {};
        const mgqe_scan scan = describe(count);
        std::atomic<int32_t> failed{MGQE_OK};
        if (plan.job.candidates) {
            mgqe_worker worker{hits.data, bests.data, 0};
            failed.store(score_candidates(scan, worker));
        } else {
            const mgqe_scanner scanner = mgqe_active_scanner();
            // `part` counts threads, whose split of tiles depends on the team alone.
            mgqe_parallel(team, team, [&](int64_t part, int64_t) {
                mgqe_worker worker{hits.data + part * count * room, bests.data + part * count, 0};
                const int32_t own = scanner(scan, plan.num_tiles * part / team, plan.num_tiles * (part + 1) / team, worker);
                if (own != MGQE_OK) failed.store(own);
                rescored += worker.rescored;
            });
        }
        if (failed.load() != MGQE_OK) return failed.load();
        for (int64_t q = 0; q < count; ++q) {
            const int32_t written = write(scan, first, q, count, team);
            if (written != MGQE_OK) return written;
        }
        return MGQE_OK;
    }

private:
    int32_t prepare(int64_t first, int64_t count) {
        const mgqe_topk_job& job = plan.job;
        const mgqe_table& table = plan.table;
        const int64_t dim = table.embedding_dim, L = table.num_coordinates;
        if (table.matrix && !turned.reserve(count * L)) return MGQE_NO_MEMORY;
        if (!queries.reserve(count) || !tables.reserve(count * plan.table_entries) || !thresholds.reserve(count))
            return MGQE_NO_MEMORY;
        if (job.excluded) {
            int64_t total = 0;
            for (int64_t q = first; q < first + count; ++q)
                if (q == first || !same_span(job.excluded_spans, q)) total += span_size(job.excluded_spans, q);
            if (!excluded.reserve(total)) return MGQE_NO_MEMORY;
        }
        int64_t* positions = excluded.data;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t q = first + i;
            mgqe_query& query = queries.data[i];
            query = {};
            float* own = tables.data + i * plan.table_entries;
            query.values = job.queries + q * dim;
            if (table.matrix) {
                query.start = turn(table, query.values, turned.data + i * L);
                query.values = turned.data + i * L;
            }
            plan.score(query, own);
            if (!plan.in_range(own)) return MGQE_OVERFLOW;
            query.tables = own;
            double squares = 0;
            for (int64_t t = 0; t < L; ++t) squares += static_cast<double>(query.values[t]) * query.values[t];
            query.length = sqrt(squares);
            thresholds.data[i] = ordered_bits(kLowest);
            query.shared_threshold = thresholds.data + i;
            if (job.hidden) query.hidden = job.hidden + q * job.hidden_step;
            query.hidden_rows = plan.hidden_rows.data;
            if (job.hidden && job.hidden_step) {
                const int32_t status = plan.hide_rows(query.hidden, hidden_rows[i]);
                if (status != MGQE_OK) return status;
                query.hidden_rows = hidden_rows[i].data;
            }
            if (job.candidates) {
                query.candidates = job.candidates + job.candidate_spans[2 * q];
                query.num_candidates = span_size(job.candidate_spans, q);
            }
            if (!job.excluded) continue;
            query.num_excluded = span_size(job.excluded_spans, q);
            if (i > 0 && same_span(job.excluded_spans, q)) {
                query.excluded = queries.data[i - 1].excluded;
                continue;
            }
            if (!to_positions(plan.table, plan.views.data, job.excluded + job.excluded_spans[2 * q],
                              query.num_excluded, positions))
                return MGQE_CORRUPT;
            query.excluded = positions;
            positions += query.num_excluded;
        }
        return MGQE_OK;
    }

    static int64_t span_size(const int64_t* spans, int64_t q) { return spans[2 * q + 1] - spans[2 * q]; }
    static bool same_span(const int64_t* spans, int64_t q) {
        return spans[2 * q] == spans[2 * q - 2] && spans[2 * q + 1] == spans[2 * q - 1];
    }

    mgqe_scan describe(int64_t count) const {
        mgqe_scan scan = {};
        scan.table = &plan.table;
        scan.tiers = plan.views.data;
        scan.queries = queries.data;
        scan.bias = plan.job.bias;
        scan.bias_codes = plan.job.bias_codes;
        scan.bias_levels = plan.job.bias_levels;
        scan.row_squares = plan.table.matrix ? plan.job.row_squares : nullptr;
        scan.num_queries = count;
        scan.k = plan.job.k;
        scan.cosine = plan.job.cosine != 0;
        scan.method = plan.method;
        scan.padding_tier = -1;
        if (plan.table.padding_idx >= 0) {
            const Place place = locate(plan.table, plan.table.padding_idx);
            scan.padding_tier = place.tier;
            scan.padding_rank = place.rank;
        }
        return scan;
    }

    // Each candidate by itself. One that is given twice counts once: long lists are sorted, and of short ones a bit for
    // each row kept says whether it may be there already.
    int32_t score_candidates(const mgqe_scan& scan, mgqe_worker& worker) const {
        Buffer<int64_t> sorted;
        for (int64_t q = 0; q < scan.num_queries; ++q) {
            const mgqe_query& query = scan.queries[q];
            Best best{plan.table, worker.hits + q * room_for(scan.k), scan.k, worker.bests[q]};
            const int64_t* ids = query.candidates;
            int64_t n = query.num_candidates;
            const bool many = n > kManyCandidates;
            if (many) {
                if (!sorted.reserve(n)) return MGQE_NO_MEMORY;
                std::copy(ids, ids + n, sorted.data);
                std::sort(sorted.data, sorted.data + n);
                n = std::unique(sorted.data, sorted.data + n) - sorted.data;
                ids = sorted.data;
            }
            uint64_t kept[kManyCandidates / 4] = {};
            constexpr int64_t kAhead = 32;
            Place places[kAhead];
            for (int64_t i = 0; i < n + kAhead; ++i) {
                if (i >= kAhead) consider(scan, query, best, places[i % kAhead], many ? nullptr : kept);
                places[i % kAhead] = i < n ? locate(plan.table, ids[i]) : Place{-1, 0};
                const Place& place = places[i % kAhead];
                if (place.tier < 0) continue;
                const mgqe_tier& tier = plan.table.tiers[place.tier];
                __builtin_prefetch(tier.codes + place.rank * tier.row_bytes);
            }
        }
        return MGQE_OK;
    }

    void consider(const mgqe_scan& scan, const mgqe_query& query, Best& best, const Place& place,
                  uint64_t* kept) const {
        const int64_t id = place.tier < 0 ? -1 : scan.bias ? id_at(plan.table, place.tier, place.rank) : 0;
        best.state.corrupt |= id < 0;
        if (id < 0) return;
        if (place.tier == scan.padding_tier && place.rank == scan.padding_rank) return;
        float score = exact_score(scan, query, place);
        if (scan.bias) score += scan.bias[id];
        const mgqe_hit hit{score, static_cast<int32_t>(place.tier), place.rank};
        if (!best.beaten_by(hit)) return;
        if (kept) {
            const int64_t position = plan.table.starts[place.tier] + place.rank;
            const uint64_t bit = static_cast<uint64_t>(position) * 0x9e3779b97f4a7c15u >> 48;
            uint64_t& word = kept[bit / 64];
            const uint64_t mask = static_cast<uint64_t>(1) << (bit % 64);
            if (word & mask)
                for (int64_t i = 0; i < best.state.size; ++i)
                    if (best.hits[i].tier == hit.tier && best.hits[i].rank == hit.rank) return;
            word |= mask;
        }
        offer(scan, query, best, hit);
    }

    // Without the bias.
    float exact_score(const mgqe_scan& scan, const mgqe_query& query, const Place& place) const {
        const mgqe_tier_view& view = scan.tiers[place.tier];
        const float* table = query.tables + view.table_offset;
        float sum = 0, norm = scan.row_squares ? scan.row_squares[view.first_position + place.rank] : 0;
        for (int64_t j = 0; j < view.tier->num_subspaces; ++j) {
            const uint32_t code = one_code(*view.tier, place.rank, j);
            const float entry = table[j * view.stride + code];
            sum = j ? sum + entry : entry;
            if (scan.cosine && !scan.row_squares)
                norm = j ? norm + view.norms[j * view.stride + code] : view.norms[code];
        }
        return scan.cosine ? cosine_of(sum, norm) : sum;
    }

    // The row of padding_idx is zeros whatever its codes say.
    void add_padding(const mgqe_scan& scan, const mgqe_query& query, Best& best) const {
        const int64_t padding = plan.table.padding_idx;
        if (padding < 0) return;
        best.state.corrupt |= scan.padding_tier < 0;
        if (scan.padding_tier < 0) return;
        if (plan.job.candidates) {
            int64_t i = 0;
            while (i < query.num_candidates && query.candidates[i] != padding) ++i;
            if (i == query.num_candidates) return;
        }
        offer(scan, query, best,
              {scan.bias ? 0.0f + scan.bias[padding] : 0.0f, static_cast<int32_t>(scan.padding_tier),
               scan.padding_rank});
    }

    // Merges what the threads found, best first; places that nothing fills get -infinity and id -1.
    int32_t write(const mgqe_scan& scan, int64_t first, int64_t q, int64_t count, int team) {
        const int64_t k = scan.k;
        Found* best = merged.data;
        int64_t n = 0;
        const auto take = [&](const mgqe_best& state, const mgqe_hit* from) {
            for (int64_t i = 0; i < state.size; ++i)
                best[n++] = {from[i].score, id_at(plan.table, from[i].tier, from[i].rank)};
            return !state.corrupt;
        };
        bool sound = true;
        for (int64_t part = 0; part < team; ++part)
            sound &= take(bests.data[part * count + q], hits.data + (part * count + q) * room_for(k));
        mgqe_hit only;
        mgqe_best last = {};
        Best padding{plan.table, &only, k, last};
        add_padding(scan, scan.queries[q], padding);
        sound &= take(last, &only);
        for (int64_t i = 0; i < n; ++i) sound &= best[i].id >= 0;
        if (!sound) return MGQE_CORRUPT;
        // By ids, not by tiers and rows: of a damaged map these need not be in any one order, which sorting relies on.
        const auto order = [](const Found& a, const Found& b) {
            return a.score != b.score ? a.score > b.score : a.id < b.id;
        };
        const int64_t taken = n < k ? n : k;
        if (taken > 0) std::nth_element(best, best + (taken - 1), best + n, order);
        std::sort(best, best + taken, order);
        float* scores = plan.job.scores + (first + q) * k;
        int64_t* ids = plan.job.ids + (first + q) * k;
        for (int64_t i = 0; i < k; ++i) {
            scores[i] = i < taken ? best[i].score : kLowest;
            ids[i] = i < taken ? best[i].id : -1;
        }
        return MGQE_OK;
    }
};

bool all_finite(const float* values, int64_t n) {
    int bad = 0;
    for (int64_t i = 0; i < n; ++i) bad |= !(values[i] - values[i] == 0);
    return !bad;
}

// Whether all spans lie in a list of n ids, and all of the ids in them in the table.
bool ids_in_spans(const int64_t* ids, int64_t n, const int64_t* spans, int64_t queries, int64_t num_embeddings) {
    for (int64_t q = 0; q < queries; ++q) {
        if (q > 0 && spans[2 * q] == spans[2 * q - 2] && spans[2 * q + 1] == spans[2 * q - 1]) continue;
        if (spans[2 * q] < 0 || spans[2 * q] > spans[2 * q + 1] || spans[2 * q + 1] > n) return false;
        for (int64_t i = spans[2 * q]; i < spans[2 * q + 1]; ++i)
            if (static_cast<uint64_t>(ids[i]) >= static_cast<uint64_t>(num_embeddings)) return false;
    }
    return true;
}

}  // namespace

int32_t mgqe_topk(const mgqe_table* table, const mgqe_topk_job* job, int32_t threads) {
    if (!mgqe_well_formed(*table) || job->num_queries < 0 || job->k < 1) return MGQE_BAD_ARGUMENT;
    if (job->k > table->num_embeddings || (job->bias && !job->bias_codes)) return MGQE_BAD_ARGUMENT;
    if (job->cosine && table->matrix && !job->row_squares) return MGQE_BAD_ARGUMENT;
    const int64_t n = table->num_embeddings, queries = job->num_queries;
    if (job->excluded && !ids_in_spans(job->excluded, job->num_excluded, job->excluded_spans, queries, n))
        return MGQE_OUT_OF_RANGE;
    if (job->candidates && !ids_in_spans(job->candidates, job->num_candidates, job->candidate_spans, queries, n))
        return MGQE_OUT_OF_RANGE;
    if (!all_finite(job->queries, queries * table->embedding_dim)) return MGQE_NOT_FINITE;
    Plan plan(*table, *job);
    const int32_t prepared = plan.prepare();
    if (prepared != MGQE_OK) return prepared;
    if (threads < 1 || mgqe_forked()) threads = 1;
    int64_t at_once = kTableBytes / (plan.table_entries * 4 + 1);
    at_once = at_once < 1 ? 1 : at_once > kQueriesAtOnce ? kQueriesAtOnce : at_once;
    std::atomic<int64_t> rescored{0};
    std::atomic<int32_t> status{MGQE_OK};
    const bool by_rows = !job->candidates && queries < threads * kQueriesPerThread &&
                         plan.num_tiles >= threads * kTilesPerThread;
    const auto take = [&](int64_t begin, int64_t end, int team) {
        Group group(plan);
        for (int64_t q = begin; q < end && status.load() == MGQE_OK; q += at_once) {
            const int32_t own = group.run(q, end - q < at_once ? end - q : at_once, team, rescored);
            if (own != MGQE_OK) status.store(own);
        }
    };
    if (by_rows)
        take(0, queries, threads);
    else
        mgqe_parallel(queries, static_cast<int>(threads < queries ? threads : queries),
                      [&](int64_t begin, int64_t end) { take(begin, end, 1); });
    if (job->rescored) *job->rescored = rescored.load();
    return status.load();
}
