#include "layout.h"

#include <algorithm>

namespace {

constexpr int64_t kMostDim = INT32_MAX, kMostTiers = 256, kMostCentroids = 65536, kMostBits = 16;
constexpr int64_t kMostMapped = INT32_MAX;
constexpr int64_t kMostWhole = 1024;  // coordinates whose products float32 adds up exactly

Stored stored_as(const std::string& name, const std::string& text, bool columns) {
    if (text == "float32") return Stored::kFloat32;
    if (text == "float16") return Stored::kFloat16;
    if (text == "int8") return Stored::kInt8;
    if (columns && text == "int8_columns") return Stored::kInt8Columns;
    refuse("config entry '" + name + "' must name how numbers are stored, got " + shown(text));
}

int32_t bits_for(int64_t num_centroids) {
    int32_t bits = 1;
    while (int64_t{1} << bits < num_centroids) ++bits;
    return bits;
}

void read_mixed(Config& config, Layout& layout, const std::vector<int64_t>& sizes) {
    const int64_t d = layout.embedding_dim, m = static_cast<int64_t>(sizes.size());
    layout.widths = config.integers("widths", 1, d, -1);
    const int64_t D = static_cast<int64_t>(layout.widths.size());
    const std::vector<int64_t> bits = config.integers("code_bits", 0, kMostBits, m * D);
    if (config.value("matrix_dtype").type != Json::kNull)
        layout.matrix = stored_as("matrix_dtype", config.text("matrix_dtype"), true);
    int64_t coordinates = 0;
    for (const int64_t width : layout.widths)
        if ((coordinates += width) > d) break;
    if (D < 1 || coordinates > d || (layout.matrix == Stored::kNone && coordinates < d))
        refuse("config entry 'widths' must sum to embedding_dim=" + number(d) + ", or to 1 .. " + number(d) +
               " with a matrix, got " + number(coordinates));
    layout.num_coordinates = coordinates;
    for (int64_t g = 0; g < m; ++g) {
        TierShape& tier = layout.tiers[static_cast<size_t>(g)];
        tier.code_bits.assign(bits.begin() + g * D, bits.begin() + (g + 1) * D);
        tier.num_subspaces = D;
        tier.bits = std::max(1, *std::max_element(tier.code_bits.begin(), tier.code_bits.end()));
        tier.num_centroids = int64_t{1} << tier.bits;
        tier.row_bits = 0;
        for (const int32_t each : tier.code_bits) tier.row_bits += each;
    }
}

}  // namespace

const Json& Config::value(const char* name) {
    const Json* const found = entries_.find(name);
    if (!found) refuse(std::string("config has no entry '") + name + "'");
    read_.insert(name);
    return *found;
}

int64_t Config::integer(const char* name, int64_t low, int64_t high) {
    const Json& entry = value(name);
    if (entry.type != Json::kInteger || entry.integer < low || entry.integer > high)
        refuse(std::string("config entry '") + name + "' must be a whole number in " + number(low) + " .. " + number(high));
    return entry.integer;
}

std::vector<int64_t> integers_of(const Json& value, const std::string& what, int64_t low, int64_t high, int64_t length) {
    const int64_t n = static_cast<int64_t>(value.items.size());
    if (value.type != Json::kList || (length >= 0 && n != length))
        refuse(what + " must be a list" + (length >= 0 ? " of " + number(length) + " numbers" : ""));
    std::vector<int64_t> numbers;
    for (const Json& each : value.items) {
        if (each.type != Json::kInteger || each.integer < low || each.integer > high)
            refuse(what + " must hold whole numbers in " + number(low) + " .. " + number(high));
        numbers.push_back(each.integer);
    }
    return numbers;
}

std::vector<int64_t> Config::integers(const char* name, int64_t low, int64_t high, int64_t length) {
    return integers_of(value(name), std::string("config entry '") + name + "'", low, high, length);
}

std::string Config::text(const char* name) {
    const Json& entry = value(name);
    if (entry.type != Json::kString) refuse(std::string("config entry '") + name + "' must be text");
    return entry.text;
}

void Config::finish() const {
    for (const auto& entry : entries_.entries)
        if (!read_.count(entry.first)) refuse("unexpected config entry " + shown(entry.first));
}

Tensor Tensors::take(const std::string& name, DType dtype, const std::vector<int64_t>& shape) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) refuse("tensor '" + name + "' is missing");
    const Tensor tensor = found->second;
    tensors_.erase(found);
    bool fits = tensor.dtype == dtype && tensor.shape.size() == shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i)
        fits = shape[i] < 0 ? tensor.shape[i] >= 1 : tensor.shape[i] == shape[i];
    if (!fits) {
        std::string expected;
        for (const int64_t size : shape) expected += (expected.empty() ? "" : ", ") + (size < 0 ? "any" : number(size));
        refuse("tensor '" + name + "' has another type than it must have, or another shape than (" + expected + ")");
    }
    return tensor;
}

void Tensors::finish() const {
    if (!tensors_.empty()) refuse("unexpected tensor " + shown(tensors_.begin()->first));
}

std::vector<int64_t> Layout::codebook_sizes(int32_t codebook) const {
    std::vector<int64_t> sizes(widths.size(), 1);
    for (const TierShape& tier : tiers)
        for (size_t j = 0; tier.codebook == codebook && j < sizes.size(); ++j)
            sizes[j] = std::max(sizes[j], int64_t{1} << tier.code_bits[j]);
    return sizes;
}

int64_t Layout::codebook_length(int32_t codebook) const {
    const std::vector<int64_t> sizes = codebook_sizes(codebook);
    int64_t length = 0;
    for (size_t j = 0; j < sizes.size(); ++j) length += sizes[j] * widths[j];
    return length;
}

std::vector<int64_t> Layout::level_lengths() const {
    std::vector<int64_t> lengths;
    int64_t left = num_embeddings;
    for (size_t l = 0; l + 1 < order.size(); ++l) {
        lengths.push_back(left);
        left -= tiers[static_cast<size_t>(order[l])].ids;
    }
    return lengths;
}

DType dtype_of(Stored stored) {
    return stored == Stored::kFloat32 ? DType::kF32 : stored == Stored::kFloat16 ? DType::kF16 : DType::kI8;
}

Layout read_layout(Config& config) {
    Layout layout;
    const int64_t n = layout.num_embeddings = config.integer("num_embeddings", 0, kMostRows);
    const int64_t d = layout.embedding_dim = layout.num_coordinates = config.integer("embedding_dim", 1, kMostDim);
    const std::vector<int64_t> sizes = config.integers("sizes", 0, n, -1);
    const int64_t m = static_cast<int64_t>(sizes.size());
    int64_t total = 0;
    for (int64_t g = 0; g < m && g < kMostTiers; ++g) total += sizes[static_cast<size_t>(g)];
    if (m < 1 || m > kMostTiers || total != n)
        refuse("config entry 'sizes' must be 1 to 256 tier sizes summing to num_embeddings=" + number(n));
    layout.tiers.resize(sizes.size());
    if (config.has("widths")) {
        read_mixed(config, layout, sizes);
    } else {
        const std::vector<int64_t> subspaces = config.integers("num_subspaces", 1, d, m);
        const std::vector<int64_t> centroids = config.integers("num_centroids", 1, kMostCentroids, m);
        for (size_t g = 0; g < sizes.size(); ++g) {
            TierShape& tier = layout.tiers[g];
            tier.num_subspaces = subspaces[g];
            tier.num_centroids = centroids[g];
            tier.bits = bits_for(centroids[g]);
            tier.row_bits = tier.num_subspaces * tier.bits;
        }
    }
    const std::vector<int64_t> codebook_of = config.integers("codebook_of", 0, m - 1, m);
    const int64_t last = *std::max_element(codebook_of.begin(), codebook_of.end());
    for (int64_t c = 0; c <= last; ++c)
        if (std::find(codebook_of.begin(), codebook_of.end(), c) == codebook_of.end())
            refuse("config entry 'codebook_of' leaves out codebook " + number(c));
    layout.num_codebooks = static_cast<int32_t>(last + 1);
    for (size_t g = 0; g < sizes.size(); ++g) {
        layout.tiers[g].ids = sizes[g];
        layout.tiers[g].codebook = static_cast<int32_t>(codebook_of[g]);
        layout.tiers[g].row_bytes = (layout.tiers[g].row_bits + 7) / 8;
    }
    layout.centroids = stored_as("centroid_dtype", config.text("centroid_dtype"), false);
    if (layout.whole() && (layout.centroids != Stored::kInt8 || layout.num_coordinates > kMostWhole))
        refuse("matrix_dtype 'int8_columns' is for int8 centroids of at most 1024 coordinates");
    layout.padding_idx = -1;
    if (config.value("padding_idx").type != Json::kNull) layout.padding_idx = config.integer("padding_idx", 0, n - 1);
    if (config.value("order").type != Json::kNull) {
        const std::vector<int64_t> order = config.integers("order", 0, m - 1, m);
        layout.order.assign(order.begin(), order.end());
        if (std::set<int64_t>(order.begin(), order.end()).size() != order.size())
            refuse("config entry 'order' must be null or the tiers in some order");
        if (n > kMostMapped) refuse("a tier map holds at most " + number(kMostMapped) + " ids, got " + number(n));
    }
    return layout;
}
