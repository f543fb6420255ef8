// The plain numbers of a table, as its configuration has them (docs/format.md).
#ifndef MGQE_LAYOUT_H
#define MGQE_LAYOUT_H

#include <stdint.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "container.h"
#include "json.h"

constexpr int64_t kMostRows = int64_t{1} << 48;

// Hands out the entries of a configuration, each checked; finish() refuses those that nobody asked for.
class Config {
  public:
    explicit Config(const Json& entries) : entries_(entries) {}

    bool has(const char* name) const { return entries_.find(name) != nullptr; }
    const Json& value(const char* name);
    int64_t integer(const char* name, int64_t low, int64_t high);
    // `length` -1: any.
    std::vector<int64_t> integers(const char* name, int64_t low, int64_t high, int64_t length);
    std::string text(const char* name);
    void finish() const;

  private:
    const Json& entries_;
    std::set<std::string> read_;
};

// Hands out tensors in the same way.
class Tensors {
  public:
    explicit Tensors(const std::map<std::string, Tensor>& tensors) : tensors_(tensors) {}

    bool has(const std::string& name) const { return tensors_.count(name) != 0; }
    // A size of -1 is any of 1 or more.
    Tensor take(const std::string& name, DType dtype, const std::vector<int64_t>& shape);
    void finish() const;

  private:
    std::map<std::string, Tensor> tensors_;
};

// A list of whole numbers in [low, high], of an entry's value.
std::vector<int64_t> integers_of(const Json& value, const std::string& what, int64_t low, int64_t high, int64_t length);

struct TierShape {
    int64_t ids;
    int64_t num_subspaces;
    int64_t num_centroids;
    int32_t codebook;
    std::vector<int32_t> code_bits;  // of a mixed table: the bits of each code
    int32_t bits;                    // of a code; of a mixed table's widest one, at least 1
    int64_t row_bytes;
    int64_t row_bits;
};

enum class Stored { kNone, kFloat32, kFloat16, kInt8, kInt8Columns };

struct Layout {
    int64_t num_embeddings;
    int64_t embedding_dim;
    int64_t padding_idx;  // -1: none
    std::vector<TierShape> tiers;
    std::vector<int32_t> order;  // empty: ids in frequency order
    std::vector<int64_t> widths;  // empty unless the table is mixed
    Stored centroids;
    Stored matrix = Stored::kNone;
    int32_t num_codebooks;
    int64_t num_coordinates;

    bool mixed() const { return !widths.empty(); }
    bool whole() const { return matrix == Stored::kInt8Columns; }
    // Of a mixed table: the centroids that a codebook holds for each subspace, and how many numbers that is.
    std::vector<int64_t> codebook_sizes(int32_t codebook) const;
    int64_t codebook_length(int32_t codebook) const;
    // Of each level of the tier map: the ids that are left.
    std::vector<int64_t> level_lengths() const;
};

DType dtype_of(Stored stored);

// Refuses entries that are wrong. Does not finish `config`.
Layout read_layout(Config& config);

#endif
