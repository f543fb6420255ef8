// The look-up of a range of ids, included by each isa_*.cpp: locate, prefetch, decode.
#ifndef MGQE_LOOKUP_KERNEL_H
#define MGQE_LOOKUP_KERNEL_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "decode_kernel.h"
#include "isa.h"
#include "locate.h"
#include "matrix_kernel.h"

namespace {

constexpr int64_t kLine = 64;

inline void prefetch(const uint8_t* row, int64_t bytes) {
    __builtin_prefetch(row, 0, 3);
    // Asking twice for a line that is not there costs a second walk of the page table.
    const int64_t in_line = kLine - static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % kLine);
    for (int64_t at = in_line; at < bytes; at += kLine) __builtin_prefetch(row + at, 0, 3);
}

// The same where a row is mostly in two lines at most: whether it is in two cannot be predicted.
inline void prefetch_ends(const uint8_t* row, int64_t bytes) {
    if (bytes > kLine) return prefetch(row, bytes);
    __builtin_prefetch(row, 0, 3);
    __builtin_prefetch(row + bytes - 1, 0, 3);
}

// Whether every row of every tier is in one line.
inline bool rows_in_lines(const mgqe_table& table) {
    bool in_lines = true;
    for (int32_t g = 0; g < table.num_tiers; ++g) {
        const mgqe_tier& tier = table.tiers[g];
        const uintptr_t codes = reinterpret_cast<uintptr_t>(tier.codes);
        // A row of no bytes is a row of codes without bits.
        if (tier.row_bytes == 0) continue;
        in_lines &= kLine % tier.row_bytes == 0 && codes % static_cast<uintptr_t>(tier.row_bytes) == 0;
    }
    return in_lines;
}

// Ids located, and their codes asked for, while the block before them is decoded: the gain that matters most here.
constexpr int64_t kBlock = 64;

struct Block {
    mgqe_row rows[kBlock];
    int32_t tiers[kBlock];
    int64_t count;
};

// Where the codes of an id are, three ways. What they read of the table is copied: in the table the compiler would have
// to read it again after every row that it writes down.
struct OneTier {
    static constexpr bool kTiers = false, kRanges = false;
    const uint8_t* codes;
    int64_t row_bytes;
    explicit OneTier(const mgqe_table& table) : codes(table.tiers->codes), row_bytes(table.tiers->row_bytes) {}
    bool find(int64_t id, const uint8_t*& at, int32_t& tier, int64_t& bytes) const {
        at = codes + id * row_bytes;
        tier = 0;
        bytes = row_bytes;
        return true;
    }
};

struct TierRanges {
    static constexpr bool kTiers = true, kRanges = true;
    struct Span {
        uintptr_t origin;  // where the codes of id 0 would be
        int64_t row_bytes;
    };
    const int64_t second;
    const int64_t* const starts;
    const int32_t tiers;
    Span spans[kMaxTiers];
    explicit TierRanges(const mgqe_table& table)
        : second(table.starts[1]), starts(table.starts), tiers(table.num_tiers) {
        for (int32_t g = 0; g < tiers; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            const uintptr_t skipped = static_cast<uintptr_t>(starts[g]) * static_cast<uintptr_t>(tier.row_bytes);
            spans[g] = {reinterpret_cast<uintptr_t>(tier.codes) - skipped, tier.row_bytes};
        }
    }
    // Counts without a branch, which a mix of tiers would mispredict.
    bool find(int64_t id, const uint8_t*& at, int32_t& tier, int64_t& bytes) const {
        tier = id >= second;
        for (int32_t g = 2; g < tiers; ++g) tier += id >= starts[g];
        bytes = spans[tier].row_bytes;
        at = reinterpret_cast<const uint8_t*>(spans[tier].origin + static_cast<uintptr_t>(id * bytes));
        return true;
    }
};

struct TierMap {
    static constexpr bool kTiers = true, kRanges = false;
    const mgqe_table& table;
    explicit TierMap(const mgqe_table& of) : table(of) {}
    bool find(int64_t id, const uint8_t*& at, int32_t& tier, int64_t& bytes) const {
        const Place place = locate_map(table, id);
        if (place.tier < 0) return false;
        const mgqe_tier& found = table.tiers[place.tier];
        at = found.codes + place.rank * found.row_bytes;
        tier = static_cast<int32_t>(place.tier);
        bytes = found.row_bytes;
        return true;
    }
};

// Fills a block from ids [begin, end), and asks for their codes, if kAsks; padding rows are zeroed on the way. False if
// the tier map is damaged.
template <bool kAsks = true, typename Locator>
inline bool locate_block(const Locator& locator, int64_t padding_idx, int64_t dim, const int64_t* ids, int64_t begin,
                         int64_t end, float* out, Block& block) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t id = ids[i];
        if (id == padding_idx) {
            memset(out + i * dim, 0, static_cast<size_t>(dim) * sizeof(float));
            continue;
        }
        const uint8_t* codes;
        int64_t bytes;
        if (!locator.find(id, codes, block.tiers[count], bytes)) return false;
        if (kAsks) prefetch(codes, bytes);
        block.rows[count] = {codes, out + i * dim};
        ++count;
    }
    block.count = count;
    return true;
}

// A tier at a time: one decoder runs over its rows, instead of a hard-to-predict choice a row.
inline void decode_block(const mgqe_table& table, const mgqe_decoder* decoders, const Block& block, bool stream) {
    if (table.num_tiers == 1) return decoders[0](table.tiers[0], block.rows, block.count, stream);
    mgqe_row mine[kBlock];
    int64_t left = block.count;
    for (int32_t g = 0; g < table.num_tiers && left > 0; ++g) {
        int64_t count = 0;
        for (int64_t i = 0; i < block.count; ++i) {
            mine[count] = block.rows[i];  // kept only if it counts
            count += block.tiers[i] == g;
        }
        if (count) decoders[g](table.tiers[g], mine, count, stream);
        left -= count;
    }
}

template <typename Locator>
int32_t lookup_range(const mgqe_table& table, const mgqe_decoder* decoders, const int64_t* ids, int64_t begin,
                     int64_t end, float* out, bool stream) {
    const Locator locator(table);
    const int64_t dim = table.embedding_dim, padding_idx = table.padding_idx;
    Block blocks[2];
    int now = 0;
    int64_t next = begin + kBlock < end ? begin + kBlock : end;
    bool sound = locate_block(locator, padding_idx, dim, ids, begin, next, out, blocks[now]);
    while (sound) {
        const int64_t after = next + kBlock < end ? next + kBlock : end;
        const bool more = next < end;
        if (more) sound = locate_block(locator, padding_idx, dim, ids, next, after, out, blocks[now ^ 1]);
        decode_block(table, decoders, blocks[now], stream);
        if (!more) break;
        now ^= 1;
        next = after;
    }
    return sound ? MGQE_OK : MGQE_CORRUPT;
}

// Decoded rows stay in the second-level cache at most.
constexpr int64_t kScratchFloats = 16 * 1024;

// How many rows of so many floats are decoded at once.
inline int64_t rows_at_once(int64_t floats) {
    const int64_t fit = kScratchFloats / floats;
    return fit < 1 ? 1 : fit < kBlock ? fit : kBlock;
}

// The same where coordinates are multiplied with a matrix, or copied because they are decoded with room behind a row.
template <typename Vec, typename Locator>
int32_t lookup_by_coordinates(const mgqe_table& table, const mgqe_decoder* decoders, const int64_t* ids, int64_t begin,
                              int64_t end, float* out, bool stream) {
    const Locator locator(table);
    const int64_t dim = table.embedding_dim, padding_idx = table.padding_idx;
    CoordinateRows coordinates(table);
    const int64_t step = rows_at_once(coordinates.stride);
    if (!coordinates.reserve(step)) return MGQE_NO_MEMORY;
    Block blocks[2];
    int now = 0;
    int64_t next = begin + step < end ? begin + step : end;
    bool sound = locate_block(locator, padding_idx, dim, ids, begin, next, out, blocks[now]);
    while (sound) {
        const int64_t after = next + step < end ? next + step : end;
        const bool more = next < end;
        if (more) sound = locate_block(locator, padding_idx, dim, ids, next, after, out, blocks[now ^ 1]);
        Block& block = blocks[now];
        float* to[kBlock];
        for (int64_t i = 0; i < block.count; ++i) {
            to[i] = block.rows[i].out;
            block.rows[i].out = coordinates.row(i);
        }
        decode_block(table, decoders, block, false);
        if (table.matrix)
            multiply_rows<Vec>(table, coordinates.row(0), coordinates.stride, nullptr, block.count, to, stream);
        else
            for (int64_t i = 0; i < block.count; ++i)
                memcpy(to[i], coordinates.row(i), static_cast<size_t>(dim) * sizeof(float));
        if (!more) break;
        now ^= 1;
        next = after;
    }
    return sound ? MGQE_OK : MGQE_CORRUPT;
}

// The decoders of a table's tiers.
template <typename H>
inline void select_decoders(const mgqe_table& table, mgqe_decoder* decoders) {
    for (int32_t g = 0; g < table.num_tiers; ++g)
        decoders[g] = is_mixed(table) ? decode_mixed : select_decoder<H>(table.tiers[g]);
}

template <typename H, typename Vec, typename Locator>
int32_t lookup_located(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out,
                       bool stream) {
    mgqe_decoder decoders[kMaxTiers];
    select_decoders<H>(table, decoders);
    if (is_mixed(table) && !rows_fit(table))
        return lookup_by_coordinates<Vec, Locator>(table, decoders, ids, begin, end, out, stream);
    return lookup_range<Locator>(table, decoders, ids, begin, end, out, stream);
}

template <typename H, typename Vec>
int32_t lookup_ids(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out, bool stream) {
    stream = stream && H::kStreams;
    const auto located = table.num_levels      ? lookup_located<H, Vec, TierMap>
                         : table.num_tiers > 1 ? lookup_located<H, Vec, TierRanges>
                                               : lookup_located<H, Vec, OneTier>;
    const int32_t status = located(table, ids, begin, end, out, stream);
    if (stream) H::fence();
    return status;
}

}  // namespace

#endif
