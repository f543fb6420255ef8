// Look-ups in tables of whole numbers, included by whole_kernel.h.
#ifndef MGQE_WHOLE_LOOKUP_H
#define MGQE_WHOLE_LOOKUP_H

#include <stdint.h>
#include <string.h>

#include "level_lookup.h"
#include "lookup_kernel.h"
#include "mgqe_native.h"
#include "row_cache.h"
#include "whole_rows.h"

namespace {

constexpr int kTogether = 4;  // rows that are multiplied with the matrix at once

template <typename Matrix>
inline void multiply(const Matrix& matrix, const uint8_t* const* bytes, const mgqe_row* rows, int64_t n, bool stream) {
    int64_t i = 0;
    for (; i + kTogether <= n; i += kTogether)
        matrix.template multiply_rows<kTogether>(bytes + i, rows + i, stream);
    for (; i < n; ++i) matrix.template multiply_rows<1>(bytes + i, rows + i, stream);
}

// Ids located, but for those whose rows are in the cache, or will be when they are copied.
struct CachedBlock : Block {
    bool asked = false;  // for the codes
    int64_t kept;        // rows [kept, count) go to the cache
    struct {
        const float* from;
        float* to;
    } copies[kBlock];
    int64_t num_copies;
};

// Fills a block from ids [begin, end); padding rows are zeroed on the way. False if the tier map is damaged.
template <typename Locator>
bool locate_new(const Locator& locator, RowCache& cache, int64_t padding_idx, int64_t dim, const int64_t* ids,
                int64_t begin, int64_t end, float* out, CachedBlock& block) {
    block.num_copies = 0;
    block.asked = cache.is_useful();
    if (!cache.is_useful()) {
        const bool sound = locate_block<false>(locator, padding_idx, dim, ids, begin, end, out, block);
        block.kept = block.count;
        return sound;
    }
    const RowPlaces places = cache.places;
    int64_t fresh[kBlock], num_fresh = 0;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t id = ids[i];
        float* const to = out + i * dim;
        if (id == padding_idx) {
            memset(to, 0, static_cast<size_t>(dim) * sizeof(float));
            continue;
        }
        const bool has = places.has(id);
        block.copies[block.num_copies] = {reinterpret_cast<const float*>(places.row(id)), to};
        block.num_copies += has;
        fresh[num_fresh] = i;
        num_fresh += !has;
    }
    cache.count(end - begin, block.num_copies);
    mgqe_row kept[kBlock];
    int32_t kept_tiers[kBlock];
    int64_t count = 0, num_kept = 0;
    for (int64_t i = 0; i < num_fresh; ++i) {
        const int64_t id = ids[fresh[i]];
        float* const to = out + fresh[i] * dim;
        const uint8_t* codes;
        int32_t tier;
        int64_t bytes;
        if (!locator.find(id, codes, tier, bytes)) return false;
        prefetch(codes, bytes);
        if (places.take(id)) {
            float* const row = reinterpret_cast<float*>(places.row(id));
            kept[num_kept] = {codes, row};
            kept_tiers[num_kept++] = tier;
            block.copies[block.num_copies++] = {row, to};
        } else {
            block.rows[count] = {codes, to};
            block.tiers[count++] = tier;
        }
    }
    block.kept = count;
    for (int64_t i = 0; i < num_kept; ++i) {
        block.rows[count] = kept[i];
        block.tiers[count++] = kept_tiers[i];
    }
    block.count = count;
    return true;
}

template <typename W>
inline void copy(const float* from, float* to, int64_t dim, bool stream) {
    const bool around = goes_around<W>(to, stream);
    for (int64_t t = 0; t < dim; t += W::kLanes)
        W::write(to + t, load_vector<typename W::Floats>(from + t), dim - t, around);
}

// Asks for the codes of a block, unless that is done, a few rows at a time between other work: a core waits for some 16
// to 24 lines at once, and asking for more makes it stand still.
class Asking {
public:
    Asking(const mgqe_table& of, const CachedBlock& asked)
        : table(of), block(asked), next(asked.asked ? asked.count : 0) {}

    void rows(int64_t some) {
        const int64_t end = next + some < block.count ? next + some : block.count;
        for (; next < end; ++next) prefetch(block.rows[next].codes, table.tiers[block.tiers[next]].row_bytes);
    }

private:
    const mgqe_table& table;
    const CachedBlock& block;
    int64_t next;
};

template <typename W, typename Locator>
int32_t lookup_whole_located(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out,
                             bool stream) {
    const Locator locator(table);
    const int64_t dim = table.embedding_dim, padding_idx = table.padding_idx;
    Whole<W> whole(table);
    typename W::Matrix matrix(table);
    // Levels that are only scaled are decoded as soon as a row is found in the cache.
    const bool at_once = table.diagonal && table.tiers->levels;
    RowCache cache(table.num_embeddings, at_once ? 0 : end - begin, dim * int64_t{sizeof(float)});
    if (streams_levels<W>(table)) {
        if (!whole.reserve()) return MGQE_NO_MEMORY;
        return lookup_levels<W, Locator>(table, whole, ids, begin, end, out, stream);
    }
    if (!whole.reserve() || !matrix.reserve() || !cache.reserve()) return MGQE_NO_MEMORY;
    const auto write = [&](const uint8_t* const* bytes, const mgqe_row* rows, int64_t n, bool around) {
        if (!table.diagonal) return multiply(matrix, bytes, rows, n, around);
        for (int64_t i = 0; i < n; ++i)
            scale<W>(table.mean, table.column_scales, bytes[i], dim, rows[i].out, goes_around<W>(rows[i].out, around));
    };
    constexpr int64_t kAtOnce = 16;
    CachedBlock blocks[2];
    int now = 0;
    int64_t next = begin + kBlock < end ? begin + kBlock : end;
    bool sound = locate_new(locator, cache, padding_idx, dim, ids, begin, next, out, blocks[now]);
    if (sound) Asking(table, blocks[now]).rows(kBlock);
    while (sound) {
        const int64_t after = next + kBlock < end ? next + kBlock : end;
        const bool more = next < end;
        if (more) sound = locate_new(locator, cache, padding_idx, dim, ids, next, after, out, blocks[now ^ 1]);
        const CachedBlock& block = blocks[now];
        if (!more || !sound) blocks[now ^ 1].count = 0;
        Asking asking(table, blocks[now ^ 1]);
        const uint8_t* bytes[kBlock];
        whole.read(block.rows, block.tiers, block.count, bytes);
        const auto write_rows = [&](int64_t first, int64_t stop, bool around) {
            for (; first < stop; first += kAtOnce) {
                asking.rows(kAtOnce);
                write(bytes + first, block.rows + first, stop - first < kAtOnce ? stop - first : kAtOnce, around);
            }
        };
        write_rows(0, block.kept, stream);
        write_rows(block.kept, block.count, false);
        for (int64_t i = 0; i < block.num_copies; ++i) copy<W>(block.copies[i].from, block.copies[i].to, dim, stream);
        asking.rows(kBlock);
        if (!more) break;
        now ^= 1;
        next = after;
    }
    if (stream) W::fence();
    return sound ? MGQE_OK : MGQE_CORRUPT;
}

template <typename W>
int32_t lookup_whole(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out, bool stream) {
    const auto located = table.num_levels      ? lookup_whole_located<W, TierMap>
                         : table.num_tiers > 1 ? lookup_whole_located<W, TierRanges>
                                               : lookup_whole_located<W, OneTier>;
    return located(table, ids, begin, end, out, stream);
}

}  // namespace

#endif
