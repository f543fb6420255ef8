// A table as the kernels see it (mgqe_native.h), made from the tensors of a file.
#ifndef MGQE_READER_TABLE_H
#define MGQE_READER_TABLE_H

#include <stdint.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "container.h"
#include "layout.h"
#include "mgqe_native.h"

// Packed rows of a tier.
struct Rows {
    const uint8_t* data;
    int64_t n;
};

// Ids behind those of the base: a range of them in one tier.
struct Extent {
    int32_t tier;
    Rows rows;
};

// Memory that lives as long as a table, at addresses that never change.
class Arena {
  public:
    template <typename T>
    T* get(int64_t n) {
        return static_cast<T*>(zeros(n, sizeof(T)));
    }
    template <typename T>
    void keep(T value) {
        kept_.push_back(std::make_shared<T>(std::move(value)));
    }

  private:
    void* zeros(int64_t n, size_t size);

    std::vector<std::shared_ptr<void>> kept_;
};

class Table {
  public:
    // From a file's tensors but those of codes, which are given; `others` must hold no further ones. Reads and checks
    // values as mgqe.load does. Extents are checked by the caller.
    Table(Layout layout, Tensors others, const std::vector<Rows>& codes, const std::vector<Extent>& extents, Arena arena);

    const mgqe_table& native() const { return table_; }
    const Layout& layout() const { return layout_; }
    const float* fallback() const { return fallback_; }
    // See mgqe_row_squares; null unless there is a matrix. *status is not MGQE_OK where they cannot be had.
    const float* row_squares(int32_t threads, int32_t* status) const;

  private:
    void read_books(Tensors& others);
    void read_matrix(Tensors& others);
    void read_map(Tensors& others);
    void lay_out_bytes();
    void add_tier(const TierShape& shape, const Rows& rows);

    Layout layout_;
    Arena arena_;
    std::vector<Tensor> books_, scales_;
    std::vector<const float*> flat_books_;  // of a mixed table
    std::vector<const uint8_t*> byte_books_;
    const int8_t* whole_matrix_ = nullptr;
    std::vector<mgqe_tier> tiers_;
    std::vector<mgqe_level> levels_;
    std::vector<int64_t> starts_;
    std::vector<const mgqe_piece*> pieces_;    // of each tier of a mixed table
    std::vector<const uint8_t*> level_bytes_;  // of each tier
    mgqe_table table_ = {};
    const float* fallback_ = nullptr;
    mutable std::mutex squaring_;
    mutable const float* squares_ = nullptr;
    mutable std::unique_ptr<float[]> squares_memory_;
};

// Refuses packed rows that hold a code that is not less than K, or spare bits that are not 0.
void check_codes(const std::string& name, const Rows& rows, const TierShape& tier);

#endif
