// What every kernel that takes a whole table checks before it reads anything.
#ifndef MGQE_TABLE_CHECKS_H
#define MGQE_TABLE_CHECKS_H

#include <stdint.h>

#include "isa.h"
#include "mgqe_native.h"

namespace {

inline bool ids_in_range(const int64_t* ids, int64_t n, int64_t num_embeddings) {
    // The sign bit of either term is set when an id is negative or too large.
    uint64_t bad = 0;
    const uint64_t last = static_cast<uint64_t>(num_embeddings) - 1;
    for (int64_t i = 0; i < n; ++i) {
        const uint64_t id = static_cast<uint64_t>(ids[i]);
        bad |= id | (last - id);
    }
    return n == 0 || (num_embeddings > 0 && !(bad >> 63));
}

}  // namespace

#endif
