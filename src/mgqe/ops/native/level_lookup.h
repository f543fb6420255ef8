// Look-ups in tables of levels that are only scaled: a row at a time from its codes to its numbers, while the codes of
// a row that comes later are asked for. So levels are found while the memory is waited for.
// Included by whole_lookup.h; of an instruction set `W` it wants, if kDecodesRows,
//   decodes_rows(), whether rows of a tier are long enough; decode_row(), kLevels levels of one row.
#ifndef MGQE_LEVEL_LOOKUP_H
#define MGQE_LEVEL_LOOKUP_H

#include <stdint.h>
#include <string.h>

#include "lookup_kernel.h"
#include "mgqe_native.h"
#include "whole_rows.h"

namespace {

constexpr int64_t kRowsAhead = 64;  // that are asked for: 32 took as long

template <typename W>
bool streams_levels(const mgqe_table& table) {
    bool all = W::kDecodesRows && table.diagonal;
    if constexpr (W::kDecodesRows)
        for (int32_t g = 0; g < table.num_tiers; ++g)
            all = all && table.tiers[g].levels && W::decodes_rows(table.tiers[g]);
    return all;
}

template <typename W, typename Locator>
int32_t lookup_levels(const mgqe_table& table, const Whole<W>& whole, const int64_t* ids, int64_t begin, int64_t end,
                      float* out, bool stream) {
    const Locator locator(table);
    const int64_t dim = table.embedding_dim, padding_idx = table.padding_idx;
    const float *const mean = table.mean, *const scales = table.column_scales;
    struct {
        const uint8_t* codes;  // null for padding
        int32_t tier;
    } located[kRowsAhead];
    bool sound = true;
    const auto locate = [&](int64_t i) {
        auto& to = located[i % kRowsAhead];
        int64_t bytes;
        if (ids[i] == padding_idx) to.codes = nullptr;
        else if (locator.find(ids[i], to.codes, to.tier, bytes)) prefetch_ends(to.codes, bytes);
        else sound = false;
    };
    for (int64_t i = begin; i < end && i < begin + kRowsAhead; ++i) locate(i);
    for (int64_t i = begin; i < end && sound; ++i) {
        const auto row = located[i % kRowsAhead];
        if (i + kRowsAhead < end) locate(i + kRowsAhead);
        float* const to = out + i * dim;
        if (!row.codes) {
            memset(to, 0, static_cast<size_t>(dim) * sizeof(float));
            continue;
        }
        const bool around = goes_around<W>(to, stream);
        for (int64_t first = 0; first < dim; first += W::kLevels) {
            alignas(64) uint8_t bytes[W::kLevels];
            whole.decode_row(row.tier, first / W::kLevels, row.codes, bytes);
            const int64_t number = dim - first < W::kLevels ? dim - first : W::kLevels;
            scale<W>(mean + first, scales + first, bytes, number, to + first, around);
        }
    }
    if (stream) W::fence();
    return sound ? MGQE_OK : MGQE_CORRUPT;
}

}  // namespace

#endif
