// Pooled look-ups, included by each isa_*.cpp: bags of rows summed or maximised in registers, straight from the codes.
//
// Two ways, the same bits. Where all rows have the same pieces, a few pieces of a bag stay in registers during a walk
// over its ids. Other tables: the decoders write a block's rows to a small buffer, which is pooled. A vector `V` (see
// assign_kernel.h) also offers deposit(word, lanes, bits): the eight codes in the low bits of a word, a byte each; and,
// if kSpreads, spread<shift>(bytes, to): eight bytes as eight shifted 32-bit numbers; kHasWhole: whether there are
// mgqe_whole_kernels beside it.
// Every number is ((0 + row) + row) + ... in the order of the ids, whatever the blocking and the instruction set.
// Where rows are mean + coordinates @ matrix, sums and means are those of the coordinates, multiplied once a bag.
#ifndef MGQE_BAG_KERNEL_H
#define MGQE_BAG_KERNEL_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bag_lots.h"
#include "decode_kernel.h"
#include "isa.h"
#include "lookup_kernel.h"
#include "row_cache.h"
#include "whole.h"

namespace {

enum Pooling { kAdd, kAddWeighted, kLargest };

template <int kFloats>
struct Floats {
    typedef float Type __attribute__((vector_size(4 * kFloats)));
};

template <typename V>
inline V load_vector(const float* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

template <Pooling kPooling, typename V>
inline void pool(V& sum, V row, float weight) {
    if (kPooling == kAdd) sum = sum + row;
    if (kPooling == kAddWeighted) sum = sum + row * weight;
    if (kPooling == kLargest) sum = row > sum ? row : sum;
}

template <Pooling kPooling>
constexpr float pool_start() {
    return kPooling == kLargest ? -INFINITY : 0.0f;
}

// Ids located, their codes asked for, padding left out.
struct BagBlock : Block {
    float weights[kBlock];
    int32_t kept[kBlock + 1];  // how many of the block's first i ids are not padding; unused if `plain`
    bool plain = false;        // no id is padding
    BagBlock() { memset(tiers, 0, sizeof tiers); }
    // Of tables of whole numbers: the rows that are not in the cache are located; the block's bytes, when they are decoded.
    int32_t fresh[kBlock];         // of the rows located: which row of the block each one is
    uint8_t* keep[kBlock];         // and where it is kept, or null
    const uint8_t* bytes[kBlock];  // of every row
    int64_t num_fresh = 0;
    bool all_fresh = true;         // all rows of the block are located, in order, and none is kept
    int64_t rows_before(int64_t i) const { return plain ? i : kept[i]; }
};

// What the register path needs of each tier.
struct BagTiers {
    const float* book[kMaxTiers];
    int64_t bits[kMaxTiers];
    uint64_t lanes[kMaxTiers];  // of every byte the bits that a code can have
    int64_t upper[kMaxTiers];   // where the second four bytes of eight codes start, if these are four bytes or more
    int64_t shift[kMaxTiers];   // and how far they belong up
};

enum BagCodes {
    kWholeBytes,  // all codes are bytes, all tiers have the same book
    kOneBook,     // 4 to 8 bits, which may differ from tier to tier, and the same book
    kAnyCodes,
};

constexpr int64_t kBookRows = 256;
constexpr int kTileRegisters = 8;

// The codes of pieces [first, first + kPieces), a byte each. Eight codes are as many bytes as a code has bits.
template <typename Vec, int kPieces, BagCodes kCodes>
inline uint64_t code_bytes(const uint8_t* codes, int64_t first, const BagTiers& tiers, int64_t g) {
    if (kCodes == kWholeBytes && kPieces == 8) return window(codes + first);
    if (kCodes == kWholeBytes) return little_endian(codes + first, 4);
    if (kPieces == 8) {
        if (first) codes += (first >> 3) * tiers.bits[g];
        // The same two loads for every tier: a branch on the tier of a row would be mispredicted.
        const uint64_t word = kCodes == kOneBook
                                  ? little_endian(codes, 4) | little_endian(codes + tiers.upper[g], 4) << tiers.shift[g]
                                  : few_bytes(codes, tiers.bits[g]);
        return Vec::deposit(word, tiers.lanes[g], tiers.bits[g]);
    }
    const int64_t bits = tiers.bits[g], at = first * bits;
    const uint64_t word = few_bytes(codes + (at >> 3), ((at & 7) + kPieces * bits + 7) >> 3);
    return Vec::deposit(word >> (at & 7), tiers.lanes[g], bits);
}

// Where the centroid of the lowest code in a word starts, in the first piece's book.
template <int kShift>
inline const char* piece_of(const char* book, uint64_t word) {
    uint64_t offset = (word & 255) << kShift;
    __asm__("" : "+r"(offset));
    return book + offset;
}

// Pieces [first, first + kPieces) of rows [from, to) of a block, added to `out`, or the first of a bag.
// All pieces are kWidth floats; a register holds kReg of them, or two pieces of two floats.
template <Pooling kPooling, typename Vec, int kWidth, int kPieces, BagCodes kCodes>
inline void pool_tile(const BagTiers& tiers, const BagBlock& block, int64_t from, int64_t to, int64_t first, bool fresh,
                      float* out) {
    constexpr int kReg = kWidth == 2 ? 4 : kWidth < Vec::kLanes ? kWidth : Vec::kLanes;
    constexpr int kRegs = kPieces * kWidth / kReg;
    constexpr int kParts = kWidth == 2 ? 1 : kWidth / kReg;
    constexpr int kShift = kWidth == 2 ? 3 : kWidth == 4 ? 4 : kWidth == 8 ? 5 : 6;
    constexpr int64_t kStep = kBookRows * kWidth * static_cast<int64_t>(sizeof(float));
    typedef typename Floats<kReg>::Type V;
    typedef double Pair __attribute__((vector_size(16)));
    V sums[kRegs];
#pragma GCC unroll 16
    for (int r = 0; r < kRegs; ++r)
        sums[r] = fresh ? V{} + pool_start<kPooling>() : load_vector<V>(out + r * kReg);
    const char* const one_book = reinterpret_cast<const char*>(tiers.book[0]) + first * kStep;
    // Where the processor can, the distances of eight centroids are worked out at once and go through memory: a load
    // each, instead of a mask and two shifts.
    constexpr bool kSpread = kPieces == 8 && Vec::kSpreads;
    alignas(32) uint32_t distances[kSpread ? 8 * kBlock : 1];
    if constexpr (kSpread) {
        for (int64_t i = from; i < to; ++i) {
            const int64_t g = kCodes == kWholeBytes ? 0 : block.tiers[i];
            const uint64_t bytes = code_bytes<Vec, kPieces, kCodes>(block.rows[i].codes, first, tiers, g);
            Vec::template spread<kShift>(bytes, distances + 8 * (i - from));
        }
    }
    for (int64_t i = from; i < to; ++i) {
        const int64_t g = kCodes == kWholeBytes ? 0 : block.tiers[i];
        const char* book =
            kCodes == kAnyCodes ? reinterpret_cast<const char*>(tiers.book[g]) + first * kStep : one_book;
        // A base of its own in every row: the distances of the pieces then stay constants in the loads' addresses.
        __asm__("" : "+r"(book));
        const float weight = kPooling == kAddWeighted ? block.weights[i] : 0.0f;
        uint64_t word = 0;
        if constexpr (!kSpread) word = code_bytes<Vec, kPieces, kCodes>(block.rows[i].codes, first, tiers, g);
        const uint32_t* const distance = distances + (kSpread ? 8 * (i - from) : 0);
        const auto piece = [&](int p) {
            if constexpr (kSpread) return book + distance[p] + p * kStep;
            const char* const found = piece_of<kShift>(book, word) + p * kStep;
            word >>= 8;
            return found;
        };
        if constexpr (kWidth == 2) {
#pragma GCC unroll 8
            for (int r = 0; r < kRegs; ++r) {
                double low, high;
                __builtin_memcpy(&low, piece(2 * r), sizeof low);
                __builtin_memcpy(&high, piece(2 * r + 1), sizeof high);
                pool<kPooling>(sums[r], reinterpret_cast<V>(Pair{low, high}), weight);
            }
        } else {
#pragma GCC unroll 8
            for (int p = 0; p < kPieces; ++p) {
                const float* const numbers = reinterpret_cast<const float*>(piece(p));
#pragma GCC unroll 4
                for (int part = 0; part < kParts; ++part)
                    pool<kPooling>(sums[p * kParts + part], load_vector<V>(numbers + part * kReg), weight);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRegs; ++r) __builtin_memcpy(out + r * kReg, &sums[r], sizeof(V));
}

// All pieces of rows [from, to) of a block: eight at a time while registers last, else four, which divide the rest.
template <Pooling kPooling, typename Vec, int kWidth, BagCodes kCodes>
void pool_pieces(const BagTiers& tiers, int64_t D, const BagBlock& block, int64_t from, int64_t to, bool fresh,
                 float* out) {
    constexpr int kMost = kWidth > Vec::kLanes && Vec::kLanes * kTileRegisters < 8 * kWidth ? 4 : 8;
    int64_t first = 0;
    for (; first + kMost <= D; first += kMost)
        pool_tile<kPooling, Vec, kWidth, kMost, kCodes>(tiers, block, from, to, first, fresh, out + first * kWidth);
    if (kMost > 4 && first < D)
        pool_tile<kPooling, Vec, kWidth, 4, kCodes>(tiers, block, from, to, first, fresh, out + first * kWidth);
}

// Columns [at, dim) of decoded rows that are `stride` floats apart, kColumns vectors of kLanes floats at a time while
// they last; the next column.
template <Pooling kPooling, int kLanes, int kColumns>
inline int64_t pool_columns(const float* rows, int64_t stride, const float* weights, int64_t n, int64_t dim, int64_t at,
                            bool fresh, float* out) {
    typedef typename Floats<kLanes>::Type V;
    for (; at + kColumns * kLanes <= dim; at += kColumns * kLanes) {
        V sums[kColumns];
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c)
            sums[c] = fresh ? V{} + pool_start<kPooling>() : load_vector<V>(out + at + c * kLanes);
        for (int64_t i = 0; i < n; ++i) {
            const float weight = kPooling == kAddWeighted ? weights[i] : 0.0f;
#pragma GCC unroll 8
            for (int c = 0; c < kColumns; ++c)
                pool<kPooling>(sums[c], load_vector<V>(rows + i * stride + at + c * kLanes), weight);
        }
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) __builtin_memcpy(out + at + c * kLanes, &sums[c], sizeof(V));
    }
    return at;
}

template <Pooling kPooling, int kLanes>
void pool_rows(const float* rows, int64_t stride, const float* weights, int64_t n, int64_t dim, bool fresh,
               float* out) {
    int64_t at = pool_columns<kPooling, kLanes, 4>(rows, stride, weights, n, dim, 0, fresh, out);
    at = pool_columns<kPooling, kLanes, 1>(rows, stride, weights, n, dim, at, fresh, out);
    for (; at < dim; ++at) {
        float sum = fresh ? pool_start<kPooling>() : out[at];
        for (int64_t i = 0; i < n; ++i)
            pool<kPooling>(sum, rows[i * stride + at], kPooling == kAddWeighted ? weights[i] : 0.0f);
        out[at] = sum;
    }
}

// Pool the rows of a part of a bag that lies in one block, the one way or the other.
typedef void (*PiecePooler)(const BagTiers&, int64_t, const BagBlock&, int64_t, int64_t, bool, float*);
typedef void (*RowPooler)(const float*, int64_t, const float*, int64_t, int64_t, bool, float*);

// The functions for a table's width and codes and a call's mode.
template <typename Vec>
struct Poolers {
    PiecePooler pieces;
    RowPooler rows;

    template <Pooling kPooling, BagCodes kCodes>
    void set(int64_t width) {
        rows = pool_rows<kPooling, Vec::kLanes>;
        if (width == 2) pieces = pool_pieces<kPooling, Vec, 2, kCodes>;
        else if (width == 4) pieces = pool_pieces<kPooling, Vec, 4, kCodes>;
        else if (width == 8) pieces = pool_pieces<kPooling, Vec, 8, kCodes>;
        else pieces = pool_pieces<kPooling, Vec, 16, kCodes>;
    }

    template <Pooling kPooling>
    void set(int64_t width, BagCodes codes) {
        if (codes == kWholeBytes) set<kPooling, kWholeBytes>(width);
        else if (codes == kOneBook) set<kPooling, kOneBook>(width);
        else set<kPooling, kAnyCodes>(width);
    }

    Poolers(const mgqe_table& table, const mgqe_bags& bags) {
        BagCodes codes = kWholeBytes;
        for (int32_t g = 0; bags.books && g < table.num_tiers; ++g) {
            if (table.tiers[g].bits < 4 || bags.books[g] != bags.books[0]) codes = kAnyCodes;
            else if (table.tiers[g].bits < 8 && codes == kWholeBytes) codes = kOneBook;
        }
        const int64_t width = table.tiers->width;
        if (bags.mode == MGQE_MAX) set<kLargest>(width, codes);
        else if (bags.weights) set<kAddWeighted>(width, codes);
        else set<kAdd>(width, codes);
    }
};

// Fills a block from ids [begin, end). False if the tier map is damaged.
template <typename Locator>
inline bool locate_bag_block(const Locator& locator, int64_t padding_idx, const mgqe_bags& bags, int64_t begin,
                             int64_t end, BagBlock& block) {
    const int64_t* const ids = bags.ids;
    const float* const weights = bags.weights;
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
        block.kept[i - begin] = static_cast<int32_t>(count);
        const int64_t id = ids[i];
        if (id == padding_idx) continue;
        const uint8_t* codes;
        int64_t bytes;
        if (!locator.find(id, codes, block.tiers[count], bytes)) return false;
        prefetch(codes, bytes);
        block.rows[count].codes = codes;
        if (weights) block.weights[count] = weights[i];
        ++count;
    }
    block.kept[end - begin] = static_cast<int32_t>(count);
    block.count = count;
    return true;
}

// The same where there is neither padding nor weights, and less to do. kInLines: rows_in_lines().
// Other short rows have both ends asked for: whether a row goes on in the next line cannot be predicted.
template <bool kInLines, typename Locator>
inline bool locate_plain_block(const Locator& locator, const int64_t* ids, int64_t count, BagBlock& block) {
    block.plain = true;
    block.count = count;
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t* codes;
        int32_t tier;
        int64_t bytes;
        if (!locator.find(ids[i], codes, tier, bytes)) return false;
        if (kInLines) __builtin_prefetch(codes, 0, 3);
        else prefetch_ends(codes, bytes);
        block.rows[i].codes = codes;
        if (Locator::kTiers) block.tiers[i] = tier;
    }
    return true;
}

// The same for tables of whole numbers, where rows may be in the cache.
template <typename Locator>
__attribute__((noinline)) bool locate_fresh_rows(const Locator& locator, RowCache& cache, int64_t padding_idx,
                                                 const mgqe_bags& bags, int64_t begin, int64_t end, BagBlock& block) {
    const RowPlaces places = cache.places;
    const int64_t* const ids = bags.ids + begin;
    const float* const weights = bags.weights;
    const int64_t number = end - begin;
    int64_t count = 0, num_fresh = 0, fresh_ids[kBlock];
    const bool plain = padding_idx < 0;
    for (int64_t i = 0; i < number; ++i) {
        const int64_t id = ids[i];
        if (!plain) {
            block.kept[i] = static_cast<int32_t>(count);
            if (id == padding_idx) continue;
        }
        block.bytes[count] = places.row(id);
        if (weights) block.weights[count] = weights[begin + i];
        block.fresh[num_fresh] = static_cast<int32_t>(count);
        fresh_ids[num_fresh] = id;
        num_fresh += !places.has(id);
        ++count;
    }
    if (!plain) block.kept[number] = static_cast<int32_t>(count);
    cache.count(count, count - num_fresh);
    for (int64_t i = 0; i < num_fresh; ++i) {
        const int64_t id = fresh_ids[i];
        const uint8_t* codes;
        int64_t bytes;
        if (!locator.find(id, codes, block.tiers[i], bytes)) return false;
        prefetch_ends(codes, bytes);
        block.rows[i].codes = codes;
        block.keep[i] = places.take(id) ? places.row(id) : nullptr;
    }
    block.plain = plain;
    block.all_fresh = false;
    block.count = count;
    block.num_fresh = num_fresh;
    return true;
}

constexpr int64_t kManyIds = 1024;   // from which on it is worth a look at the whole matrix
constexpr int64_t kWaitingBags = 4;  // that are multiplied together
constexpr int64_t kMostOnes = 1 << 24;
constexpr int64_t kExactSums = (1 << 24) / 127;  // bytes that float32 adds up exactly, too

// Room for the rows of a block, where they are decoded before they are pooled.
struct BagScratch {
    const mgqe_table& table;
    const bool multiplied_late;  // coordinates are pooled, and their sums multiplied
    CoordinateRows coordinates;
    CoordinateRows sums;         // of bags that wait to be multiplied
    const int64_t ids;           // decoded at once
    const int64_t columns;       // of a row that are pooled: whole vectors of coordinates
    int64_t stride;              // of the rows that are pooled
    float* rows = nullptr;       // those rows
    float* memory = nullptr;
    const mgqe_whole_kernels* const kernels;  // for rows of whole numbers, where the processor has them
    mgqe_whole* whole = nullptr;
    RowCache cache;              // of those; levels are decoded as soon as they are found there

    // For so many ids.
    BagScratch(const mgqe_table& of, const mgqe_bags& bags, int64_t count)
        : table(of), multiplied_late(of.matrix && bags.mode != MGQE_MAX), coordinates(of), sums(of),
          ids(bags.books ? kBlock : rows_at_once(largest(of.embedding_dim, coordinates.stride))),
          columns(multiplied_late ? (of.num_coordinates + 15) / 16 * 16 : of.embedding_dim),
          stride(of.embedding_dim), kernels(of.byte_matrix ? mgqe_active_whole() : nullptr),
          cache(of.num_embeddings, kernels && !of.tiers->levels ? count : 0, kernels ? kernels->row_bytes(of) : 0) {}
    BagScratch(const BagScratch&) = delete;
    BagScratch& operator=(const BagScratch&) = delete;
    ~BagScratch() {
        free(memory);
        if (whole) kernels->release(whole);
    }

    bool reserve() {
        const bool mixed = is_mixed(table);
        if (mixed && !coordinates.reserve(ids)) return false;
        if (kernels && (!(whole = kernels->prepare(table)) || !cache.reserve())) return false;
        if (multiplied_late && !sums.reserve(kWaitingBags)) return false;
        if (mixed && (multiplied_late || !table.matrix)) {
            rows = coordinates.row(0);
            stride = coordinates.stride;
            return true;
        }
        rows = memory = static_cast<float*>(malloc(static_cast<size_t>(ids * stride) * sizeof(float)));
        return memory != nullptr;
    }

private:
    static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
};

// Walks over the ids of bags [begin, end) block by block, each located while the block before it is pooled.
template <typename Locator, typename V>
struct BagWalk {
    const mgqe_table& table;
    const mgqe_bags& bags;
    const mgqe_decoder* const decoders;
    const Poolers<V> poolers;
    BagTiers tiers;
    BagScratch& scratch;
    const bool adds_bytes;  // sums of coordinates that are whole numbers, and exact
    int64_t bag;      // the one being pooled
    int64_t counted;  // ids of it so far
    float total;      // of their weights
    int64_t waiting;  // bags whose coordinates are pooled and have yet to be multiplied
    float shares[kWaitingBags];
    float* waiting_rows[kWaitingBags];
    const int64_t most_multiplied;  // rows of a bag whose sums are multiplied as whole numbers
    int64_t whole_waiting;          // such bags that have yet to be multiplied
    float whole_shares[kWholeBags];
    float* whole_rows[kWholeBags];

    BagWalk(const mgqe_table& of, const mgqe_bags& which, const mgqe_decoder* decode, BagScratch& buffers,
            int64_t first)
        : table(of), bags(which), decoders(decode), poolers(of, which), scratch(buffers),
          adds_bytes(buffers.whole && buffers.multiplied_late && !which.weights), bag(first), counted(0),
          total(0), waiting(0),
          most_multiplied(adds_bytes && which.mode == MGQE_SUM && which.n >= kManyIds
                              ? buffers.kernels->most_multiplied(buffers.whole)
                              : 0),
          whole_waiting(0) {
        for (int32_t g = 0; bags.books && g < table.num_tiers; ++g) {
            const mgqe_tier& tier = table.tiers[g];
            tiers.book[g] = bags.books[g];
            tiers.bits[g] = tier.bits;
            tiers.lanes[g] = 0x0101010101010101u * ((1u << tier.bits) - 1u);
            tiers.upper[g] = tier.bits - 4;
            tiers.shift[g] = 8 * tiers.upper[g];
        }
    }

    int64_t end_of(int64_t b) const {
        if (!bags.offsets) return (b + 1) * (bags.n / bags.count);
        return b + 1 < bags.count ? bags.offsets[b + 1] : bags.n;
    }

    // Where a block of ids that begins at `start` ends: with a bag if it can, so that few bags are in two blocks.
    // `ahead`: the first bag that may end there.
    int64_t end_of_block(int64_t start, int64_t end, int64_t last_bag, int64_t& ahead) const {
        const int64_t most = start + scratch.ids < end ? start + scratch.ids : end;
        int64_t stop = start;
        for (; ahead < last_bag; ++ahead) {
            const int64_t bag_end = end_of(ahead);
            if (bag_end > most) break;
            stop = bag_end;
        }
        return stop > start ? stop : most;
    }

    // Where the bag is pooled.
    float* sums() const {
        return scratch.multiplied_late ? scratch.sums.row(waiting) : bags.out + bag * table.embedding_dim;
    }

    void finish() {
        float* const sum = sums();
        float* const out = bags.out + bag * table.embedding_dim;
        const float number = static_cast<float>(counted);
        if (counted == 0) memset(out, 0, static_cast<size_t>(table.embedding_dim) * sizeof(float));
        else if (bags.mode == MGQE_MEAN)
            for (int64_t t = 0; t < scratch.columns; ++t) sum[t] /= number;
        if (counted && scratch.multiplied_late) {
            // A sum of ones in float32 ends at 2^24.
            const float ones = counted < kMostOnes ? number : static_cast<float>(kMostOnes);
            shares[waiting] = bags.weights ? total : bags.mode == MGQE_MEAN ? ones / number : ones;
            waiting_rows[waiting++] = out;
            if (waiting == kWaitingBags) multiply_waiting();
        }
        ++bag;
        counted = 0;
        total = 0;
    }

    // A bag whose rows are all in the block.
    void pool_whole_bag(const uint8_t* const* bytes, int64_t rows) {
        scratch.kernels->sum_bag(scratch.whole, bytes, rows, whole_waiting);
        finish_whole_bag(rows);
    }

    // One whose sums wait to be multiplied.
    void finish_whole_bag(int64_t rows) {
        whole_shares[whole_waiting] = static_cast<float>(rows);
        whole_rows[whole_waiting++] = bags.out + bag * table.embedding_dim;
        if (whole_waiting == kWholeBags) multiply_whole_waiting();
        ++bag;
    }

    void multiply_whole_waiting() {
        scratch.kernels->multiply_bags(scratch.whole, whole_shares, whole_waiting, whole_rows);
        whole_waiting = 0;
    }

    void multiply_all_waiting() {
        if (waiting) multiply_waiting();
        if (whole_waiting) multiply_whole_waiting();
    }

    void multiply_waiting() {
        multiply_rows<V>(table, scratch.sums.row(0), scratch.sums.stride, shares, waiting, waiting_rows, false);
        waiting = 0;
    }

    // The rows of a block, or, where sums are multiplied, their coordinates.
    void decode_rows_of(BagBlock& block) const {
        if (scratch.whole) {
            read_bytes_of(block);
            for (int64_t i = 0; i < block.count && !adds_bytes; ++i)
                scratch.kernels->row(scratch.whole, block.bytes[i], scratch.coordinates.row(i));
        } else {
            const bool mixed = is_mixed(table);
            for (int64_t i = 0; i < block.count; ++i)
                block.rows[i].out = mixed ? scratch.coordinates.row(i) : scratch.rows + i * scratch.stride;
            decode_block(table, decoders, block, false);
        }
        if (!table.matrix || scratch.multiplied_late) return;
        float* out[kBlock];
        for (int64_t i = 0; i < block.count; ++i) out[i] = scratch.rows + i * scratch.stride;
        const CoordinateRows& from = scratch.coordinates;
        multiply_rows<V>(table, from.row(0), from.stride, nullptr, block.count, out, false);
    }

    void read_bytes_of(BagBlock& block) const {
        if (block.all_fresh)
            return scratch.kernels->read(scratch.whole, block.rows, block.tiers, block.count, block.bytes);
        const uint8_t* bytes[kBlock];
        scratch.kernels->read(scratch.whole, block.rows, block.tiers, block.num_fresh, bytes);
        const size_t row_bytes = static_cast<size_t>(scratch.kernels->row_bytes(table));
        for (int64_t i = 0; i < block.num_fresh; ++i) {
            block.bytes[block.fresh[i]] = bytes[i];
            if (block.keep[i]) memcpy(block.keep[i], bytes[i], row_bytes);
        }
    }

    // Ids [begin, end) are in `block`: every bag that ends among them is finished.
    void pool_block(BagBlock& block, int64_t begin, int64_t end, int64_t last_bag) {
        const int64_t D = table.tiers->num_subspaces;
        if (!bags.books) decode_rows_of(block);
        for (int64_t at = begin; bag < last_bag;) {
            const int64_t bag_end = end_of(bag);
            const int64_t stop = bag_end < end ? bag_end : end;
            const int64_t from = block.rows_before(at - begin), to = block.rows_before(stop - begin);
            if (counted == 0 && bag_end <= end && from < to && to - from <= most_multiplied) {
                pool_whole_bag(block.bytes + from, to - from);
                at = stop;
                continue;
            }
            if (from < to) {
                if (adds_bytes && counted + to - from <= kExactSums)
                    scratch.kernels->sum(scratch.whole, block.bytes + from, to - from, counted == 0, sums());
                else if (bags.books)
                    poolers.pieces(tiers, D, block, from, to, counted == 0, sums());
                else {
                    for (int64_t i = from; i < to && adds_bytes; ++i)
                        scratch.kernels->row(scratch.whole, block.bytes[i], scratch.coordinates.row(i));
                    poolers.rows(scratch.rows + from * scratch.stride, scratch.stride, block.weights + from, to - from,
                                 scratch.columns, counted == 0, sums());
                }
                if (scratch.multiplied_late && bags.weights)
                    for (int64_t i = from; i < to; ++i) total += block.weights[i];
                counted += to - from;
            }
            if (bag_end > end) return;
            finish();
            at = stop;
        }
    }

    // Whether bags are summed straight from codes. Float32 adds up larger bags row by row.
    bool sums_lots(int64_t last_bag) const {
        bool all = adds_bytes && scratch.kernels->sums_lots(scratch.whole);
        for (int64_t b = bag; b < last_bag && all; ++b) all = end_of(b) - (b ? end_of(b - 1) : 0) <= kExactSums;
        return all;
    }

    int32_t run_lots(const Locator& locator, int64_t last_bag) {
        if constexpr (!Locator::kTiers) return run_lots_of<1>(locator, last_bag);
        if constexpr (Locator::kRanges)
            if (table.num_tiers == 2) return run_lots_of<2>(locator, last_bag);
        return run_lots_of<kLotTiers>(locator, last_bag);
    }

    template <int kTiers>
    int32_t run_lots_of(const Locator& locator, int64_t last_bag) {
        const auto ends = [this](int64_t b) { return end_of(b); };
        LotMaker<Locator, kTiers, decltype(ends)> maker(locator, bags.ids, table.padding_idx, ends, bag, last_bag);
        if (!for_each_lot(maker, [&](const Lot& lot) { pool_lot(lot); })) return MGQE_CORRUPT;
        multiply_all_waiting();
        return MGQE_OK;
    }

    void pool_lot(const Lot& lot) {
        const int64_t rows = lot.number();
        const bool whole_bag = lot.bag_ids <= most_multiplied;
        if (rows && whole_bag) scratch.kernels->sum_lot_of_bag(scratch.whole, lot, counted == 0, whole_waiting);
        else if (rows) scratch.kernels->sum_lot(scratch.whole, lot, counted == 0, sums());
        counted += rows;
        if (!lot.ends_bag) return;
        if (!whole_bag || counted == 0) return finish();
        finish_whole_bag(counted);
        counted = 0;
    }

    int32_t run(int64_t last_bag) {
        const Locator locator(table);
        if constexpr (V::kHasWhole)
            if (sums_lots(last_bag)) return run_lots(locator, last_bag);
        const bool plain = table.padding_idx < 0 && !bags.weights, in_lines = rows_in_lines(table);
        const auto locate_ids = [&](int64_t first, int64_t last, BagBlock& block) {
            if (V::kHasWhole && scratch.cache.is_useful())
                return locate_fresh_rows(locator, scratch.cache, table.padding_idx, bags, first, last, block);
            block.all_fresh = true;
            if (!plain) return locate_bag_block(locator, table.padding_idx, bags, first, last, block);
            return in_lines ? locate_plain_block<true>(locator, bags.ids + first, last - first, block)
                            : locate_plain_block<false>(locator, bags.ids + first, last - first, block);
        };
        const int64_t begin = bag == 0 ? 0 : end_of(bag - 1), end = end_of(last_bag - 1);
        BagBlock blocks[2];
        int now = 0;
        int64_t start = begin, ahead = bag;
        int64_t next = end_of_block(begin, end, last_bag, ahead);
        if (!locate_ids(begin, next, blocks[now])) return MGQE_CORRUPT;
        for (;;) {
            const int64_t after = end_of_block(next, end, last_bag, ahead);
            if (next < end && !locate_ids(next, after, blocks[now ^ 1])) return MGQE_CORRUPT;
            pool_block(blocks[now], start, next, last_bag);
            if (next >= end) break;
            start = next;
            next = after;
            now ^= 1;
        }
        multiply_all_waiting();
        return MGQE_OK;
    }
};

template <typename Locator, typename V>
int32_t walk_bags(const mgqe_table& table, const mgqe_bags& bags, const mgqe_decoder* decoders, BagScratch& scratch,
                  int64_t begin, int64_t end) {
    BagWalk<Locator, V> walk(table, bags, decoders, scratch, begin);
    return walk.run(end);
}

template <typename H, typename V>
int32_t pool_bags(const mgqe_table& table, const mgqe_bags& bags, int64_t begin, int64_t end) {
    mgqe_decoder decoders[kMaxTiers];
    const int64_t ids = bags.n * (end - begin) / bags.count;  // about
    BagScratch scratch(table, bags, ids);
    if (!bags.books) {
        select_decoders<H>(table, decoders);
        if (!scratch.reserve()) return MGQE_NO_MEMORY;
    }
    const auto walk = table.num_levels ? walk_bags<TierMap, V>
                      : table.num_tiers > 1 ? walk_bags<TierRanges, V>
                                            : walk_bags<OneTier, V>;
    return walk(table, bags, decoders, scratch, begin, end);
}

template <typename H, typename T>
inline void write_book_of(const mgqe_tier& tier, float* book) {
    const T* const centroids = static_cast<const T*>(tier.centroids);
    const int64_t width = tier.width, count = tier.num_centroids;
    for (int64_t j = 0; j < tier.num_subspaces; ++j) {
        const int64_t piece = tier.pieces == 1 ? 0 : j;
        const float scale = tier.scales ? tier.scales[piece] : 1.0f;
        for (int64_t k = 0; k < kBookRows; ++k, book += width) {
            const int64_t row = k < count ? k : count - 1;
            emit<H, 0>(centroids + (piece * count + row) * width, book, scale, width);
        }
    }
}

template <typename H>
void write_book(const mgqe_tier& tier, float* book) {
    if (tier.dtype == MGQE_FLOAT32) write_book_of<H, float>(tier, book);
    else if (tier.dtype == MGQE_FLOAT16) write_book_of<H, uint16_t>(tier, book);
    else write_book_of<H, int8_t>(tier, book);
}

}  // namespace

#endif
