#include "id_map.h"

#include <string.h>

#include <algorithm>

#include "layout.h"

namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr int64_t kMostIds = INT32_MAX, kMostBucket = 64, kMostSeed = 15, kWord = 8;

uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

uint64_t hash_of(const char* bytes, int64_t length, int64_t seed) {
    uint64_t hash = static_cast<uint64_t>(seed + length) * kGolden;
    for (int64_t at = 0; at < length; at += kWord) {
        uint64_t word = 0;
        memcpy(&word, bytes + at, static_cast<size_t>(std::min(kWord, length - at)));
        hash = mix(hash ^ word);
    }
    return hash;
}

int32_t bits_of(uint64_t n) { return n ? 64 - __builtin_clzll(n) : 0; }

}  // namespace

IdMap::IdMap(const std::string& path, const Reading& reading) : path_(path) {
    naming(path, [&] {
        file_ = open_stored(path, reading);
        if (file_.kind != "id-map")
            refuse("holds " + shown(file_.kind) + ", no id map: open it with mgqe_reader_open", MGQE_READER_UNSUPPORTED);
        Config config(file_.config);
        n_ = config.integer("num_ids", 1, kMostIds);
        seed_ = config.integer("seed", 0, kMostSeed);
        const std::string kind = config.text("ids");
        const char* const kinds[] = {"int64", "uint64", "string", "binary"};
        kind_ = static_cast<int32_t>(std::find(kinds, kinds + 4, kind) - kinds);
        if (kind_ > MGQE_IDS_BINARY) refuse("config entry 'ids' must be int64, uint64, string or binary, got " + shown(kind));
        const int64_t interactions = config.integer("interactions", 0, INT64_MAX);
        const int64_t distinct = config.integer("distinct", 0, INT64_MAX);
        config.finish();
        bucket_bits_ = std::max(0, std::min(bits_of(static_cast<uint64_t>(n_ / 4)) - 1,
                                            64 - 8 - std::max(1, bits_of(static_cast<uint64_t>(n_ - 1)))));
        Tensors tensors(file_.tensors);
        const auto either = [&](const char* name, int64_t size) {
            const auto found = file_.tensors.find(name);
            const bool small = found != file_.tensors.end() && found->second.dtype == DType::kI32;
            return tensors.take(name, small ? DType::kI32 : DType::kI64, {size});
        };
        if (kind_ <= MGQE_IDS_UINT64) {
            ids_ = either("ids", n_);
        } else if (tensors.has("ids.hashes")) {
            hashes_ = tensors.take("ids.hashes", DType::kI64, {n_});
        } else {
            ids_ = tensors.take("ids.bytes", DType::kU8, {-1});
            offsets_ = either("ids.offsets", n_ + 1);
            total_ = ids_.nbytes - kWord;
            const uint64_t none = 0;
            if (total_ < 0 || offset(0) != 0 || offset(n_) != total_ || memcmp(ids_.data + total_, &none, sizeof none))
                refuse("'ids.offsets' must run from 0 to the end of 'ids.bytes', where eight zeros follow");
        }
        const int64_t buckets = int64_t{1} << bucket_bits_;
        directory_ = tensors.take("index.directory", DType::kI32, {buckets + 1}).as<int32_t>();
        fingerprints_ = tensors.take("index.fingerprints", DType::kU8, {n_}).data;
        rows_ = tensors.take("index.rows", DType::kI32, {n_}).as<int32_t>();
        if (directory_[0] != 0 || directory_[buckets] != n_)
            refuse("'index.directory' must run from 0 to " + number(n_));
        const Tensor values = tensors.take("counts.values", DType::kI64, {-1});
        check_counts(values, tensors.take("counts.ends", DType::kI64, values.shape), interactions, distinct);
        tensors.finish();
    });
}

// Counts are not used here; they are checked so that a file is refused by all readers or by none.
void IdMap::check_counts(const Tensor& values, const Tensor& ends, int64_t interactions, int64_t distinct) const {
    const int64_t* const value = values.as<int64_t>();
    const int64_t* const end = ends.as<int64_t>();
    const int64_t runs = values.size();
    unsigned __int128 total = 0;
    for (int64_t i = 0; i < runs; ++i) {
        const int64_t before = i ? end[i - 1] : 0;
        if (end[i] <= before || end[i] > n_) refuse("'counts.ends' must rise to " + number(n_));
        if (value[i] < 1 || (i && value[i] >= value[i - 1])) refuse("'counts.values' must fall and be at least 1");
        total += static_cast<unsigned __int128>(value[i]) * static_cast<uint64_t>(end[i] - before);
    }
    if (end[runs - 1] != n_) refuse("'counts.ends' must rise to " + number(n_));
    const __int128 rest = static_cast<__int128>(interactions) - static_cast<__int128>(total), cut = distinct - n_;
    if (cut < 0 || rest < cut || rest > cut * value[runs - 1])
        refuse("config 'interactions' and 'distinct' do not fit 'counts'");
}

int64_t IdMap::offset(int64_t row) const {
    return offsets_.dtype == DType::kI32 ? offsets_.as<int32_t>()[row] : offsets_.as<int64_t>()[row];
}

uint64_t IdMap::integer(int64_t row) const {
    return ids_.dtype == DType::kI32 ? static_cast<uint64_t>(int64_t{ids_.as<int32_t>()[row]}) : ids_.as<uint64_t>()[row];
}

void IdMap::text(int64_t row, const char** bytes, int64_t* length) const {
    if (!ids_.data)
        refuse("this map holds hashes instead of ids (keep_ids=False), so that it cannot map rows to ids",
               MGQE_READER_UNSUPPORTED);
    const int64_t begin = offset(row), end = offset(row + 1);
    if (begin < 0 || end < begin || end > total_) refuse(path_ + ": the map is damaged: an id lies outside the bytes of the ids");
    *bytes = reinterpret_cast<const char*>(ids_.data) + begin;
    *length = end - begin;
}

template <typename Same>
int64_t IdMap::find(uint64_t hash, const Same& same) const {
    const uint64_t bucket = hash >> (63 - bucket_bits_) >> 1;
    const uint8_t fingerprint = static_cast<uint8_t>(hash << bucket_bits_ >> 56);
    const int64_t begin = directory_[bucket], end = directory_[bucket + 1];
    if (begin < 0 || end > n_ || end < begin || end - begin > kMostBucket)
        refuse(path_ + ": the map is damaged: the directory of buckets contradicts itself");
    int64_t found = -1;
    for (int64_t i = begin; i < end; ++i) {
        if (fingerprints_[i] != fingerprint) continue;
        if (rows_[i] < 0 || rows_[i] >= n_) refuse(path_ + ": the map is damaged: a row lies outside 0 to " + number(n_ - 1));
        if (same(rows_[i])) found = rows_[i];
    }
    return found;
}

int64_t IdMap::row_of(uint64_t id) const {
    return find(mix(id ^ static_cast<uint64_t>(seed_) * kGolden), [&](int64_t row) { return integer(row) == id; });
}

int64_t IdMap::row_of(const char* bytes, int64_t length) const {
    const uint64_t hash = hash_of(bytes, length, seed_);
    return find(hash, [&](int64_t row) {
        if (hashes_.data) return hashes_.as<uint64_t>()[row] == hash;
        const char* own;
        int64_t own_length;
        text(row, &own, &own_length);
        return own_length == length && (length == 0 || memcmp(own, bytes, static_cast<size_t>(length)) == 0);
    });
}
