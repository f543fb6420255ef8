#include "table_files.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "sha256.h"
#include "xxh3.h"

namespace {

constexpr int64_t kMostTiers = 256, kMostShards = 10000;

std::string codes_name(size_t tier) { return "codes." + number(static_cast<int64_t>(tier)); }

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

// ---- one file ------------------------------------------------------------------------------------------------------

std::vector<Rows> take_codes(Tensors& tensors, const Layout& layout) {
    std::vector<Rows> codes;
    for (size_t g = 0; g < layout.tiers.size(); ++g) {
        const TierShape& tier = layout.tiers[g];
        codes.push_back({tensors.take(codes_name(g), DType::kU8, {tier.ids, tier.row_bytes}).data, tier.ids});
    }
    return codes;
}

// ---- appended files ------------------------------------------------------------------------------------------------

// What an appended file records of its base: all that gives its codes and ids a meaning.
std::string fingerprint_of(const StoredFile& base, const Layout& layout) {
    Sha256 hash;
    const auto generation = base.metadata.find("generation");
    for (const std::string& text :
         {base.metadata.at("config"), generation == base.metadata.end() ? std::string() : generation->second}) {
        hash.add(text.data(), text.size());
        hash.add("", 1);
    }
    std::vector<std::string> names;
    for (const char* part : {"centroids.", "scales."})
        for (int32_t c = 0; c < layout.num_codebooks; ++c) names.push_back(part + number(c));
    for (const char* name : {"mean", "matrix", "matrix_scales", "column_scales"}) names.push_back(name);
    for (const std::string& name : names) {
        const auto tensor = base.tensors.find(name);
        if (tensor != base.tensors.end()) hash.add(tensor->second.data, static_cast<size_t>(tensor->second.nbytes));
    }
    return hash.hexadecimal();
}

// The names in a folder that begin so, without that beginning.
std::vector<std::string> endings(const std::string& folder, const std::string& beginning) {
    std::vector<std::string> found;
    DIR* const entries = opendir(folder.empty() ? "." : folder.c_str());
    if (!entries) return found;
    while (const dirent* entry = readdir(entries)) {
        const std::string name = entry->d_name;
        if (name.size() > beginning.size() && name.compare(0, beginning.size(), beginning) == 0)
            found.push_back(name.substr(beginning.size()));
    }
    closedir(entries);
    return found;
}

// The numbers of the appended files, ascending. One number has one name, with leading zeros up to six digits.
std::vector<int64_t> appended_numbers(const std::string& folder, const std::string& beginning) {
    std::vector<int64_t> numbers;
    for (const std::string& ending : endings(folder, beginning)) {
        const bool digits = ending.size() >= 6 && ending.size() <= 18 &&
                            std::all_of(ending.begin(), ending.end(), [](char each) { return each >= '0' && each <= '9'; });
        if (!digits || (ending.size() > 6 && ending[0] == '0')) continue;
        numbers.push_back(std::stoll(ending));
    }
    std::sort(numbers.begin(), numbers.end());
    return numbers;
}

struct Record {
    int64_t segments = 0, end = 0;
    std::string digest;
};

Record read_record(const std::string& path, const std::string& fingerprint, const Reading& reading) {
    Record record;
    struct stat status;
    if (stat(path.c_str(), &status)) return record;
    try {
        const StoredFile file = open_stored(path, reading);
        if (file.kind != "compact-append-record") refuse("holds " + shown(file.kind) + ", no record of appended files");
        Config config(file.config);
        if (config.text("base") != fingerprint) refuse("config entry 'base' names another table");
        record = {config.integer("segments", 1, kMostRows), config.integer("end", 1, kMostRows), config.text("digest")};
        config.finish();
        Tensors(file.tensors).finish();
    } catch (Refused& refused) {
        refused.message = path + ": " + refused.message + ". Restore this file";
        throw;
    }
    return record;
}


// Everything that was appended to a base, neighbours of a tier joined. Files stay in `arena`.
std::vector<Extent> appended_to(const std::string& path, const StoredFile& base, const Layout& layout,
                                const Reading& reading, Arena& arena) {
    char* const resolved = realpath(path.c_str(), nullptr);
    const std::string target = resolved ? resolved : path;
    free(resolved);
    const std::string folder = folder_of(target), name = target.substr(folder.size());
    if (endings(folder, name + ".append-").empty()) return {};
    const std::string fingerprint = fingerprint_of(base, layout);
    const std::string beginning = name + ".append-" + fingerprint.substr(0, 8) + "-";
    // The record first: while others append, there may then be more files than it says, but not fewer.
    const Record record = read_record(folder + beginning + "record", fingerprint, reading);
    std::vector<Extent> segments;
    std::string digest;
    int64_t end = layout.num_embeddings;
    for (const int64_t file_number : appended_numbers(folder, beginning)) {
        std::string digits = number(file_number);
        digits.insert(0, digits.size() < 6 ? 6 - digits.size() : 0, '0');
        const std::string segment = folder + beginning + digits;
        naming(segment, [&] {
            StoredFile file = open_stored(segment, reading);
            if (file.kind != "compact-append") refuse("holds " + shown(file.kind) + ", no appended ids");
            Config config(file.config);
            if (config.text("base") != fingerprint) refuse("config entry 'base' names another table");
            const int64_t first = config.integer("first_id", layout.num_embeddings, kMostRows);
            const int32_t tier =
                static_cast<int32_t>(config.integer("tier", 0, static_cast<int64_t>(layout.tiers.size()) - 1));
            config.finish();
            const TierShape& shape = layout.tiers[static_cast<size_t>(tier)];
            Tensors tensors(file.tensors);
            const Tensor codes = tensors.take("codes", DType::kU8, {-1, shape.row_bytes});
            tensors.finish();
            if (first != end)
                refuse("starts with id " + number(first) + ", not " + number(end) +
                       (first > end ? ": a file before it is missing" : ": ids are given twice"));
            const Rows rows = {codes.data, codes.shape[0]};
            check_codes("codes", rows, shape);
            end += rows.n;
            segments.push_back({tier, rows});
            const uint8_t* const tail = file.bytes->data() + file.bytes->size() - 8;
            if (static_cast<int64_t>(segments.size()) <= record.segments) {
                digest += std::string(reinterpret_cast<const char*>(tail), 8);
                digest = xxh3_digest(digest.data(), digest.size());
            }
            if (static_cast<int64_t>(segments.size()) == record.segments &&
                (hexadecimal(digest) != record.digest || end != record.end))
                refuse("this file, or one with a lower number, is another one than was appended. Restore the files "
                       "from one copy");
            arena.keep(std::move(file));
        });
    }
    if (static_cast<int64_t>(segments.size()) < record.segments)
        refuse(folder + beginning + "record: names " + number(record.segments) + " appended files, of which " +
               number(record.segments - static_cast<int64_t>(segments.size())) + " are missing. Restore them");
    std::vector<Extent> joined;
    for (size_t i = 0, next; i < segments.size(); i = next) {
        int64_t n = 0;
        for (next = i; next < segments.size() && segments[next].tier == segments[i].tier; ++next) n += segments[next].rows.n;
        if (next == i + 1) {
            joined.push_back(segments[i]);
            continue;
        }
        const int64_t row_bytes = layout.tiers[static_cast<size_t>(segments[i].tier)].row_bytes;
        uint8_t* const rows = arena.get<uint8_t>(n * row_bytes);
        uint8_t* at = rows;
        for (size_t each = i; each < next; ++each) {
            const size_t bytes = static_cast<size_t>(segments[each].rows.n * row_bytes);
            if (bytes) memcpy(at, segments[each].rows.data, bytes);
            at += bytes;
        }
        joined.push_back({segments[i].tier, {rows, n}});
    }
    if (static_cast<int64_t>(joined.size() + layout.tiers.size()) > kMostTiers)
        refuse("what was appended changes between tiers more than 256 times: make one file of it with "
               "mgqe.save(mgqe.load(path), path)",
               MGQE_READER_UNSUPPORTED);
    return joined;
}

// ---- shards --------------------------------------------------------------------------------------------------------

StoredFile read_shard(const std::string& path, const std::string& set, int64_t shard, const Reading& reading) {
    StoredFile file;
    try {
        file = open_stored(path, reading);
    } catch (Refused& refused) {
        if (refused.status != MGQE_READER_CANNOT_OPEN) throw;
        refuse(refused.message + ". Copy every file of the folder");
    }
    if (file.kind != "compact-shard") refuse("holds " + shown(file.kind) + ", no shard");
    Config config(file.config);
    if (config.text("set") != set || config.integer("number", 0, kMostShards) != shard)
        refuse("belongs to another table, or has another number");
    config.finish();
    return file;
}

// The codes of a folder's table: those that one shard has stay where they are, others are joined.
std::vector<Rows> read_shards(const std::string& folder, Config& config, const Layout& layout, const Reading& reading,
                              Arena& arena) {
    const std::string set = config.text("set");
    if (set.size() != 16 || set.find_first_not_of("0123456789abcdef") != std::string::npos)
        refuse("config entry 'set' must be 16 hexadecimal digits");
    const Json& entry = config.value("shards");
    if (entry.type != Json::kList || static_cast<int64_t>(entry.items.size()) > kMostShards)
        refuse("config entry 'shards' must be a list of at most 10,000 shards");
    const size_t m = layout.tiers.size();
    std::vector<std::vector<Rows>> parts(m);
    std::vector<int64_t> totals(m, 0);
    for (size_t shard = 0; shard < entry.items.size(); ++shard) {
        const std::vector<int64_t> sizes =
            integers_of(entry.items[shard], "config entry 'shards'", 0, kMostRows, static_cast<int64_t>(m));
        for (size_t g = 0; g < m; ++g)
            if ((totals[g] += sizes[g]) > layout.tiers[g].ids) refuse("config entry 'shards' does not sum to 'sizes'");
        std::string digits = number(static_cast<int64_t>(shard));
        digits.insert(0, 5 - digits.size(), '0');
        const std::string path = folder + "shard-" + set + "-" + digits + ".safetensors";
        naming("shard " + path, [&] {
            StoredFile file = read_shard(path, set, static_cast<int64_t>(shard), reading);
            Tensors tensors(file.tensors);
            for (size_t g = 0; g < m; ++g) {
                const Tensor codes = tensors.take(codes_name(g), DType::kU8, {sizes[g], layout.tiers[g].row_bytes});
                if (sizes[g]) parts[g].push_back({codes.data, sizes[g]});
            }
            tensors.finish();
            arena.keep(std::move(file));
        });
    }
    std::vector<Rows> codes;
    for (size_t g = 0; g < m; ++g) {
        const int64_t row_bytes = layout.tiers[g].row_bytes;
        if (totals[g] != layout.tiers[g].ids) refuse("config entry 'shards' does not sum to 'sizes'");
        if (parts[g].size() == 1) {
            codes.push_back(parts[g][0]);
            continue;
        }
        uint8_t* const rows = arena.get<uint8_t>(totals[g] * row_bytes);
        uint8_t* at = rows;
        for (const Rows& part : parts[g]) {
            const size_t bytes = static_cast<size_t>(part.n * row_bytes);
            if (bytes) memcpy(at, part.data, bytes);
            at += bytes;
        }
        codes.push_back({rows, totals[g]});
    }
    return codes;
}

[[noreturn]] void refuse_kind(const std::string& kind) {
    static const std::map<std::string, std::string> kOthers = {
        {"id-map", "an id map: open it with mgqe_ids_open"},
        {"compact-append", "ids that were appended to another file: open that one, which lies beside it"},
        {"compact-append-record", "a record of appended files: open the table, which lies beside it"},
        {"compact-shard", "some of a table's codes: open the folder that it is in"}};
    const auto other = kOthers.find(kind);
    if (other != kOthers.end()) refuse("holds " + other->second, MGQE_READER_UNSUPPORTED);
    refuse("holds a table of kind " + shown(kind) + ", and this reader knows 'compact' alone: read it with mgqe.load, or " +
               "make a table of codes of it, mgqe.compress_table",
           MGQE_READER_UNSUPPORTED);
}

}  // namespace

std::unique_ptr<Table> open_table(const std::string& path, const Reading& reading) {
    Arena arena;
    std::vector<Extent> extents;
    StoredFile file = naming(path, [&] { return open_stored(path, reading); });
    const bool sharded = file.kind == "compact-sharded";
    if (!sharded && file.kind != "compact") naming(path, [&] { refuse_kind(file.kind); });
    Tensors tensors(file.tensors);
    Config config(file.config);
    std::vector<Rows> codes;
    Layout layout = naming(path, [&] {
        Layout read = read_layout(config);
        codes = sharded ? read_shards(folder_of(path), config, read, reading, arena) : take_codes(tensors, read);
        config.finish();
        return read;
    });
    if (!sharded) extents = appended_to(path, file, layout, reading, arena);
    arena.keep(std::move(file));
    return naming(path, [&] {
        return std::make_unique<Table>(std::move(layout), std::move(tensors), codes, extents, std::move(arena));
    });
}
