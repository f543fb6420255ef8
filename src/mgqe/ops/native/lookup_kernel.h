// The look-up of a range of ids, included by each isa_*.cpp: locate, prefetch, decode.
#ifndef MGQE_LOOKUP_KERNEL_H
#define MGQE_LOOKUP_KERNEL_H

#include <stdint.h>
#include <string.h>

#include "decode_kernel.h"
#include "isa.h"
#include "locate.h"

namespace {

// Ids located, and their codes prefetched, ahead of decoding.
constexpr int64_t kBlock = 16;
constexpr int64_t kLine = 64;

struct Block {
    mgqe_row rows[kBlock];
    int64_t tiers[kBlock];
    int64_t count;
};

inline void prefetch(const uint8_t* row, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at);
    __builtin_prefetch(row + bytes - 1);
}

// Fills a block from ids [begin, end); padding rows are zeroed on the way. False if the tier map is damaged.
template <bool kMap>
bool locate_block(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out, Block& block) {
    const int64_t dim = table.embedding_dim;
    block.count = 0;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t id = ids[i];
        if (id == table.padding_idx) {
            memset(out + i * dim, 0, static_cast<size_t>(dim) * sizeof(float));
            continue;
        }
        const Place place = kMap ? locate_map(table, id) : locate_range(table, id);
        if (kMap && place.tier < 0) return false;
        const mgqe_tier& tier = table.tiers[place.tier];
        if (static_cast<uint64_t>(place.rank) >= static_cast<uint64_t>(tier.rows)) return false;
        const uint8_t* const codes = tier.codes + place.rank * tier.row_bytes;
        prefetch(codes, tier.row_bytes);
        block.rows[block.count] = {codes, out + i * dim};
        block.tiers[block.count] = place.tier;
        ++block.count;
    }
    return true;
}

// A tier at a time: one decoder runs over its rows, instead of a hard-to-predict choice a row.
void decode_block(const mgqe_table& table, const mgqe_decoder* decoders, const Block& block) {
    if (table.num_tiers == 1) return decoders[0](table.tiers[0], block.rows, block.count);
    mgqe_row mine[kBlock];
    int64_t left = block.count;
    for (int32_t g = 0; g < table.num_tiers && left > 0; ++g) {
        int64_t count = 0;
        for (int64_t i = 0; i < block.count; ++i) {
            mine[count] = block.rows[i];  // kept only if it counts
            count += block.tiers[i] == g;
        }
        if (count) decoders[g](table.tiers[g], mine, count);
        left -= count;
    }
}

template <bool kMap>
bool lookup_range(const mgqe_table& table, const mgqe_decoder* decoders, const int64_t* ids, int64_t begin,
                  int64_t end, float* out) {
    Block blocks[2];
    int now = 0;
    int64_t next = begin + kBlock < end ? begin + kBlock : end;
    if (!locate_block<kMap>(table, ids, begin, next, out, blocks[now])) return false;
    while (true) {
        const int64_t after = next + kBlock < end ? next + kBlock : end;
        const bool more = next < end;
        if (more && !locate_block<kMap>(table, ids, next, after, out, blocks[now ^ 1])) return false;
        decode_block(table, decoders, blocks[now]);
        if (!more) return true;
        now ^= 1;
        next = after;
    }
}

template <typename H>
bool lookup_ids(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out) {
    mgqe_decoder decoders[kMaxTiers];
    for (int32_t g = 0; g < table.num_tiers; ++g) decoders[g] = select_decoder<H>(table.tiers[g]);
    return table.num_levels ? lookup_range<true>(table, decoders, ids, begin, end, out)
                            : lookup_range<false>(table, decoders, ids, begin, end, out);
}

}  // namespace

#endif
