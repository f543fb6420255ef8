// Id maps (docs/format.md): ids of any type to rows, and back.
#ifndef MGQE_ID_MAP_H
#define MGQE_ID_MAP_H

#include <stdint.h>

#include <string>

#include "container.h"

class IdMap {
  public:
    IdMap(const std::string& path, const Reading& reading);

    int64_t count() const { return n_; }
    int32_t kind() const { return kind_; }

    // The row of an id, -1 if it is not there. Refuse, as damaged, arrays that contradict each other.
    int64_t row_of(uint64_t integer) const;
    int64_t row_of(const char* bytes, int64_t length) const;

    uint64_t integer(int64_t row) const;
    void text(int64_t row, const char** bytes, int64_t* length) const;

  private:
    template <typename Same>
    int64_t find(uint64_t hash, const Same& same) const;
    int64_t offset(int64_t row) const;
    void check_counts(const Tensor& values, const Tensor& ends, int64_t interactions, int64_t distinct) const;

    StoredFile file_;
    std::string path_;
    int64_t n_, seed_, total_ = 0;  // total_: bytes of all texts
    int32_t kind_, bucket_bits_;
    Tensor ids_ = {}, offsets_ = {}, hashes_ = {};
    const int32_t* directory_;
    const uint8_t* fingerprints_;
    const int32_t* rows_;
};

#endif
