// The functions of mgqe.h: tables.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "collection.h"
#include "guard.h"
#include "id_map.h"
#include "ids_handle.h"
#include "table.h"
#include "table_files.h"

struct mgqe_reader {
    std::unique_ptr<Table> table;
    std::unique_ptr<mgqe_ids> ids;
    std::vector<float> query_weight;
};

static_assert(MGQE_READER_BAD_ARGUMENT == int{MGQE_BAD_ARGUMENT} && MGQE_READER_NO_MEMORY == int{MGQE_NO_MEMORY} &&
                  MGQE_READER_OUT_OF_RANGE == int{MGQE_OUT_OF_RANGE} && MGQE_READER_DAMAGED == int{MGQE_CORRUPT} &&
                  MGQE_READER_NOT_FINITE == int{MGQE_NOT_FINITE} && MGQE_READER_BAD_OFFSETS == int{MGQE_BAD_OFFSETS} &&
                  MGQE_READER_OVERFLOW == int{MGQE_OVERFLOW} && MGQE_READER_LONG_ROWS == int{MGQE_LONG_ROWS},
              "the codes of mgqe.h are those of the kernels");

namespace {

constexpr int kAttempts = 100;            // at reading what is being replaced
constexpr int64_t kScanFrom = 64;         // more candidates than 1 / 64 of the rows are cheaper to filter out of a scan
const char kIndex[] = "/table.safetensors";

// Without a number of the caller's that of OMP_NUM_THREADS, which limits all that computes, or else of the processors.
int32_t team(int32_t threads) {
    if (threads > 0) return threads;
    const char* limit = getenv("OMP_NUM_THREADS");
    const int32_t most = limit ? atoi(limit) : 0;
    return most > 0 ? most : static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
}

// Device, inode, size and time of change, which differ if another file has taken the name.
std::string identity(const std::string& path) {
    struct stat status;
    if (stat(path.c_str(), &status)) return "";
#ifdef __APPLE__
    const auto changed = status.st_mtimespec;
#else
    const auto changed = status.st_mtim;
#endif
    return number(static_cast<int64_t>(status.st_dev)) + " " + number(static_cast<int64_t>(status.st_ino)) + " " +
           number(status.st_size) + " " + number(changed.tv_sec) + " " + number(changed.tv_nsec);
}

bool is_folder(const std::string& path) {
    struct stat status;
    return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::unique_ptr<mgqe_reader> open_once(const std::string& path, bool collection, const Reading& reading) {
    auto opened = std::make_unique<mgqe_reader>();
    if (!collection) {
        opened->table = open_table(path, reading);
        return opened;
    }
    const CollectionFiles files = read_manifest(path);
    opened->table = open_table(files.table, reading);
    opened->query_weight = files.query_weight;
    const int64_t dim = opened->table->native().embedding_dim, weights = static_cast<int64_t>(opened->query_weight.size());
    if (weights && weights != dim)
        refuse(path + ": " + number(weights) + " weights for " + number(dim) + " coordinates");
    if (files.ids.empty()) return opened;
    opened->ids = std::make_unique<mgqe_ids>(files.ids, reading);
    const int64_t rows = opened->table->native().num_embeddings;
    if (opened->ids->map.count() != rows)
        refuse(path + ": " + number(opened->ids->map.count()) + " ids for a table of " + number(rows) + " rows");
    return opened;
}

// Again where the file was replaced meanwhile: what was wrong may have been the moment.
std::unique_ptr<mgqe_reader> open_any(std::string path, const Reading& reading) {
    const bool folder = is_folder(path), collection = folder && !identity(path + "/" + kManifest).empty();
    if (folder && !collection) path += kIndex;
    if (folder && !collection && identity(path).empty())
        refuse(path + ": there is no such file: a folder must hold a table in shards, or a collection", MGQE_READER_CANNOT_OPEN);
    const std::string watched = collection ? path + "/" + kManifest : path;
    for (int attempt = 1;; ++attempt) {
        const std::string before = identity(watched);
        try {
            std::unique_ptr<mgqe_reader> opened = open_once(path, collection, reading);
            if (identity(watched) == before) return opened;
        } catch (const Refused& refused) {
            const bool vanished = refused.status == MGQE_READER_CANNOT_OPEN && !before.empty();
            if (attempt == kAttempts || (!vanished && identity(watched) == before)) throw;
        }
        if (attempt == kAttempts) refuse(path + ": replaced by another file again and again while it was read");
    }
}

bool outside(int64_t id, int64_t n) { return id < 0 || id >= n; }

[[noreturn]] void refuse_id(const int64_t* ids, int64_t n, int64_t rows, const char* what) {
    for (int64_t i = 0; i < n; ++i)
        if (outside(ids[i], rows))
            refuse(std::string(what) + " " + number(ids[i]) + " is out of range (valid ids: " +
                       (rows ? "0 to " + number(rows - 1) : "none: the table has no rows") + ")",
                   MGQE_READER_OUT_OF_RANGE);
    refuse("an id is out of range", MGQE_READER_OUT_OF_RANGE);
}

void require(int32_t status) {
    switch (status) {
        case MGQE_OK:
            return;
        case MGQE_NO_MEMORY:
            refuse("there is not enough memory", status);
        case MGQE_CORRUPT:
            refuse("the table's tier map is damaged: it points outside a tier", status);
        case MGQE_OVERFLOW:
            refuse("the scores of a query may leave float32: scale the query down, or the table it is scored with", status);
        case MGQE_LONG_ROWS:
            refuse("the squared length of a row leaves float32, so that it has no cosine: scale the table down", status);
        default:
            refuse("the kernels refused the call with code " + number(status) + ": a count or a pointer does not fit", status);
    }
}

void lookup(const Table& table, const int64_t* ids, int64_t n, float* out, int32_t threads) {
    const mgqe_table& native = table.native();
    const int32_t status = mgqe_lookup(&native, ids, n, out, threads);
    if (status != MGQE_OUT_OF_RANGE) return require(status);
    if (!table.fallback()) refuse_id(ids, n, native.num_embeddings, "id");
    std::vector<int64_t> known(ids, ids + n);
    for (int64_t& id : known)
        if (outside(id, native.num_embeddings)) id = 0;
    if (native.num_embeddings) require(mgqe_lookup(&native, known.data(), n, out, threads));
    const int64_t d = native.embedding_dim;
    for (int64_t i = 0; i < n; ++i)
        if (outside(ids[i], native.num_embeddings)) memcpy(out + i * d, table.fallback(), static_cast<size_t>(d) * sizeof(float));
}

// Bags with ids outside the table, which count as the fallback: row by row, in the order of the ids.
void bag_of_rows(const Table& table, const int64_t* ids, int64_t n, const int64_t* offsets, int64_t bags, int32_t pooling,
                 const float* weights, float* out) {
    const int64_t d = table.native().embedding_dim;
    std::vector<float> row(static_cast<size_t>(d));
    for (int64_t b = 0; b < bags; ++b) {
        const int64_t begin = offsets ? offsets[b] : b * (n / bags);
        const int64_t end = offsets ? (b + 1 < bags ? offsets[b + 1] : n) : begin + n / bags;
        float* const sums = out + b * d;
        int64_t counted = 0;
        std::fill(sums, sums + d, pooling == MGQE_READER_MAX ? -INFINITY : 0.0f);
        for (int64_t i = begin; i < end; ++i) {
            if (ids[i] >= 0 && ids[i] == table.native().padding_idx) continue;
            ++counted;
            lookup(table, ids + i, 1, row.data(), 1);
            for (int64_t t = 0; t < d; ++t) {
                const float x = weights ? row[static_cast<size_t>(t)] * weights[i] : row[static_cast<size_t>(t)];
                sums[t] = pooling == MGQE_READER_MAX ? (x > sums[t] ? x : sums[t]) : sums[t] + x;
            }
        }
        if (!counted) std::fill(sums, sums + d, 0.0f);
        if (pooling == MGQE_READER_MEAN && counted)
            for (int64_t t = 0; t < d; ++t) sums[t] /= static_cast<float>(counted);
    }
}

// Queries divided by their lengths, in double: squares of large numbers overflow. Queries of zeros stay.
void unit(float* queries, int64_t count, int64_t d) {
    for (int64_t q = 0; q < count; ++q, queries += d) {
        double square = 0;
        for (int64_t t = 0; t < d; ++t) square += static_cast<double>(queries[t]) * static_cast<double>(queries[t]);
        const double length = sqrt(square);
        for (int64_t t = 0; t < d; ++t) queries[t] = length > 0 ? static_cast<float>(queries[t] / length) : 0.0f;
    }
}

// Where each query's ids are in their list, as kernels take it.
std::vector<int64_t> spans_of(const char* what, const int64_t* ids, const int64_t* offsets, int64_t n, int64_t queries,
                              int64_t rows) {
    if (n < 0 || (n && !ids)) refuse(std::string(what) + ": expected a list and how many ids it has", MGQE_READER_BAD_ARGUMENT);
    std::vector<int64_t> spans;
    if (offsets && (offsets[0] != 0 || offsets[queries] != n))
        refuse(std::string(what) + ": offsets must run from 0 to the number of ids, " + number(n), MGQE_READER_BAD_OFFSETS);
    for (int64_t q = 0; q < queries; ++q) {
        const int64_t begin = offsets ? offsets[q] : 0, end = offsets ? offsets[q + 1] : n;
        if (begin > end || end > n) refuse(std::string(what) + ": offsets must not decrease", MGQE_READER_BAD_OFFSETS);
        spans.push_back(begin);
        spans.push_back(end);
    }
    for (int64_t i = 0; i < n; ++i)
        if (outside(ids[i], rows)) refuse_id(ids + i, 1, rows, what);
    return spans;
}

void check_queries(const float* queries, int64_t count, int64_t d) {
    for (int64_t i = 0; i < count * d; ++i)
        if (!isfinite(queries[i])) refuse("query " + number(i / d) + " holds NaN or infinity", MGQE_READER_NOT_FINITE);
}

void topk(const Table& table, const float* queries, int64_t count, int64_t k, const mgqe_reader_search& search,
          float* scores, int64_t* ids) {
    const mgqe_table& native = table.native();
    const int64_t n = native.num_embeddings, d = native.embedding_dim;
    const int32_t threads = team(search.threads);
    const bool cosine = search.score == MGQE_READER_COSINE;
    if (count < 0 || search.score < MGQE_READER_DOT || search.score > MGQE_READER_COSINE)
        refuse("num_queries must not be negative, and score must be an mgqe_reader_score", MGQE_READER_BAD_ARGUMENT);
    if (k < 1 || k > n) refuse("k must be in 1 .. " + number(n) + ", the rows of the table, got " + number(k), MGQE_READER_BAD_ARGUMENT);
    check_queries(queries, count, d);
    mgqe_topk_job job = {};
    std::vector<float> units;
    if (cosine) {
        units.assign(queries, queries + count * d);
        unit(units.data(), count, d);
    }
    job.queries = cosine ? units.data() : queries;
    job.num_queries = count;
    job.k = k;
    job.cosine = cosine;
    job.scores = scores;
    job.ids = ids;
    std::vector<uint8_t> bias_codes, hidden;
    float bias_levels[256];
    if (search.bias) {
        if (cosine) refuse("a bias goes with MGQE_READER_DOT: a cosine has no scale that it could be added on", MGQE_READER_BAD_ARGUMENT);
        for (int64_t i = 0; i < n; ++i)
            if (!isfinite(search.bias[i])) refuse("the bias of id " + number(i) + " is NaN or infinity", MGQE_READER_NOT_FINITE);
        bias_codes.resize(static_cast<size_t>(n));
        require(mgqe_bias_codes(&native, search.bias, bias_codes.data(), bias_levels));
        job.bias = search.bias;
        job.bias_codes = bias_codes.data();
        job.bias_levels = bias_levels;
    }
    std::vector<int64_t> excluded, candidates;
    if (search.excluded) {
        excluded = spans_of("excluded id", search.excluded, search.excluded_offsets, search.num_excluded, count, n);
        job.excluded = search.excluded;
        job.excluded_spans = excluded.data();
        job.num_excluded = search.num_excluded;
    }
    if (search.candidates) {
        candidates = spans_of("candidate", search.candidates, search.candidate_offsets, search.num_candidates, count, n);
        if (!search.candidate_offsets && search.num_candidates > n / kScanFrom) {
            hidden.assign(static_cast<size_t>(n), 1);
            for (int64_t i = 0; i < search.num_candidates; ++i) hidden[static_cast<size_t>(search.candidates[i])] = 0;
            job.hidden = hidden.data();
        } else {
            job.candidates = search.candidates;
            job.candidate_spans = candidates.data();
            job.num_candidates = search.num_candidates;
        }
    }
    if (cosine && count) {
        int32_t status;
        job.row_squares = table.row_squares(threads, &status);
        require(status);
    }
    if (count) require(mgqe_topk(&native, &job, threads));
}

}  // namespace

int32_t mgqe_reader_version() { return MGQE_READER_VERSION; }

int32_t mgqe_reader_open(const char* path, int32_t flags, mgqe_reader** reader) {
    *reader = nullptr;
    return guarded([&] { *reader = open_any(path, reading_of(flags)).release(); });
}

void mgqe_reader_close(mgqe_reader* reader) { delete reader; }

int64_t mgqe_reader_num_embeddings(const mgqe_reader* reader) { return reader->table->native().num_embeddings; }
int64_t mgqe_reader_embedding_dim(const mgqe_reader* reader) { return reader->table->native().embedding_dim; }
int64_t mgqe_reader_padding_idx(const mgqe_reader* reader) { return reader->table->native().padding_idx; }
const float* mgqe_reader_fallback(const mgqe_reader* reader) { return reader->table->fallback(); }
const mgqe_ids* mgqe_reader_ids(const mgqe_reader* reader) { return reader->ids.get(); }
const float* mgqe_reader_query_weight(const mgqe_reader* reader) {
    return reader->query_weight.empty() ? nullptr : reader->query_weight.data();
}

int32_t mgqe_reader_lookup(const mgqe_reader* reader, const int64_t* ids, int64_t n, float* out, int32_t threads) {
    return guarded([&] {
        if (n < 0) refuse("n must not be negative, got " + number(n), MGQE_READER_BAD_ARGUMENT);
        if (n) lookup(*reader->table, ids, n, out, team(threads));
    });
}

int32_t mgqe_reader_bag(const mgqe_reader* reader, const int64_t* ids, int64_t n, const int64_t* offsets, int64_t bags,
                        int32_t pooling, const float* weights, float* out, int32_t threads) {
    return guarded([&] {
        const Table& table = *reader->table;
        if (n < 0 || bags < 0 || pooling < MGQE_READER_SUM || pooling > MGQE_READER_MAX)
            refuse("n and bags must not be negative, and pooling must be an mgqe_reader_pooling", MGQE_READER_BAD_ARGUMENT);
        if (weights && pooling != MGQE_READER_SUM) refuse("weights are for sums alone", MGQE_READER_BAD_ARGUMENT);
        const int32_t status =
            mgqe_bag(&table.native(), ids, n, offsets, bags, pooling, weights, out, team(threads));
        if (status == MGQE_BAD_OFFSETS)
            refuse(offsets ? "offsets must start at 0, not decrease, and not exceed the number of ids, " + number(n)
                           : "without offsets the " + number(n) + " ids must be a multiple of the " + number(bags) + " bags",
                   status);
        if (status != MGQE_OUT_OF_RANGE) return require(status);
        if (!table.fallback()) refuse_id(ids, n, table.native().num_embeddings, "id");
        bag_of_rows(table, ids, n, offsets, bags, pooling, weights, out);
    });
}

int32_t mgqe_reader_topk(const mgqe_reader* reader, const float* queries, int64_t num_queries, int64_t k,
                         const mgqe_reader_search* search, float* scores, int64_t* ids) {
    return guarded([&] {
        const mgqe_reader_search everything = {};
        topk(*reader->table, queries, num_queries, k, search ? *search : everything, scores, ids);
    });
}
