// Look-ups and sums in tables of whole numbers, included by each whole_*.cpp.
//
// A centroid is some bytes, each 128 more than a coordinate. A row's codes are unpacked many at a time into the places
// of its centroids. Bags add centroids up from there; else they are copied into a row of bytes. Where coordinates share
// their centroids, the levels, codes are unpacked and levels found in registers, and bags add up rows of bytes.
// What an instruction set `W` offers is listed where it is used:
//   PlaceCodes, kPlaces, lay_out_places(), places();
//   LevelCodes, kLevels, lay_out_levels(), decode_levels();
//   Matrix, multiply(), scale(), fence(); Words, a vector of 16-bit numbers.
#ifndef MGQE_WHOLE_KERNEL_H
#define MGQE_WHOLE_KERNEL_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "isa.h"
#include "lookup_kernel.h"
#include "mgqe_native.h"
#include "whole.h"
#include "whole_codes.h"

namespace {

constexpr int kMiddle = 128;  // a byte less its coordinate
constexpr int kSummed = 8;    // copies that are summed at once

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <typename W>
struct WholeTier {
    const uint8_t* book;
    typename W::PlaceCodes* places;  // groups of kPlaces, or null
    typename W::LevelCodes* levels;  // groups of kLevels, or null
    int64_t groups;
};

// Rows of a block that are of one tier: `count` of them, rows[at[i]].
struct RowsOfTier {
    const mgqe_row* rows;
    int32_t at[kBlock];
    int64_t count;
};

template <typename W>
class Whole {
public:
    const mgqe_table& table;
    const int64_t stride;  // bytes of a row; eight may be written from its last coordinate on

    explicit Whole(const mgqe_table& of) : table(of), stride(round_up(of.num_coordinates + 7, 64)) {}
    Whole(const Whole&) = delete;
    Whole& operator=(const Whole&) = delete;
    ~Whole() { free(memory); }

    bool reserve() {
        for_each_copy(table.tiers[0], [&](const Copy&) { ++copies; });
        int64_t place_groups = 0, level_groups = 0;
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            if (table.tiers[g].levels) level_groups += groups_of(W::kLevels);
            else place_groups += groups_of(W::kPlaces);
        }
        in_bytes = level_groups > 0;
        num_places = round_up(copies, W::kPlaces);
        const size_t sizes[] = {
            size_of<WholeTier<W>>(table.num_tiers),
            size_of<typename W::PlaceCodes>(place_groups),
            size_of<typename W::LevelCodes>(level_groups),
            size_of<uint8_t>(kBlock * stride),
            size_of<uint16_t>(kBlock * num_places),
            size_of<uint16_t>(copies),
            size_of<uint16_t>(2 * stride),
        };
        size_t total = 0;
        for (const size_t size : sizes) total += size;
        if (posix_memalign(&memory, 64, total) != 0) return false;
        memset(memory, 0, total);
        uint8_t* next = static_cast<uint8_t*>(memory);
        const auto part = [&](int number) {
            next += number ? sizes[number - 1] : 0;
            return static_cast<void*>(next);
        };
        tiers = static_cast<WholeTier<W>*>(part(0));
        auto* const of_places = static_cast<typename W::PlaceCodes*>(part(1));
        lay_out(of_places, static_cast<typename W::LevelCodes*>(part(2)));
        rows = static_cast<uint8_t*>(part(3));
        places = static_cast<uint16_t*>(part(4));
        coordinates = static_cast<uint16_t*>(part(5));
        sums = static_cast<uint16_t*>(part(6));
        uint16_t* coordinate = coordinates;
        for_each_copy(table.tiers[0], [&](const Copy& copy) {
            *coordinate++ = static_cast<uint16_t>(copy.piece->coordinate + copy.ahead);
        });
        return true;
    }

    // A tier at a time.
    void read(const mgqe_row* block, const int32_t* tier_of, int64_t n) {
        RowsOfTier mine;
        mine.rows = block;
        const bool one = table.num_tiers == 1;
        int64_t left = n;
        for (int32_t g = 0; g < table.num_tiers && left > 0; ++g) {
            mine.count = 0;
            for (int32_t i = 0; i < n; ++i) {
                mine.at[mine.count] = i;  // counted only if it is of this tier
                mine.count += one || tier_of[i] == g;
            }
            if (mine.count) read_tier(tiers[g], mine);
            left -= mine.count;
        }
        if (!in_bytes)
            for (int64_t i = 0; i < n; ++i) books[i] = tiers[one ? 0 : tier_of[i]].book;
    }

    // The bytes of a row that was read.
    const uint8_t* bytes(int64_t i) const {
        if (!in_bytes) copy(i, books[i]);
        return rows + i * stride;
    }

    void row(int64_t i, float* out) const {
        const uint8_t* const from = bytes(i);
        for (int64_t k = 0; k < table.num_coordinates; k += W::kLanes) {
            typename W::Bytes some;
            __builtin_memcpy(&some, from + k, sizeof some);
            const Floats numbers = __builtin_convertvector(__builtin_convertvector(some, Ints) - kMiddle, Floats);
            __builtin_memcpy(out + k, &numbers, sizeof numbers);
        }
    }

    void sum(int64_t from, int64_t to, bool fresh, float* out) {
        if (in_bytes) sum_bytes(from, to);
        else sum_centroids(from, to);
        const int32_t middles = static_cast<int32_t>(kMiddle * (to - from));
        for (int64_t k = 0; k < table.num_coordinates; k += W::kLanes) {
            typename W::ShortWords some;
            __builtin_memcpy(&some, sums + k, sizeof some);
            Floats numbers = __builtin_convertvector(__builtin_convertvector(some, Ints) - middles, Floats);
            if (!fresh) {
                Floats before;
                __builtin_memcpy(&before, out + k, sizeof before);
                numbers += before;
            }
            __builtin_memcpy(out + k, &numbers, sizeof numbers);
        }
    }

private:
    typedef typename W::Ints Ints;
    typedef typename W::Floats Floats;

    template <typename T>
    static size_t size_of(int64_t count) {
        return static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    }

    int64_t groups_of(int64_t at_once) const { return (copies + at_once - 1) / at_once; }

    void lay_out(typename W::PlaceCodes* places, typename W::LevelCodes* levels) {
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const mgqe_tier& from = table.tiers[g];
            WholeTier<W>& tier = tiers[g];
            tier.book = from.bytes;
            if (from.levels) {
                tier.levels = levels;
                for_each_group<W::kLevels>(from, [&](const Copy* some, int count) {
                    W::lay_out_levels(from, some, count, *levels++);
                });
                tier.groups = levels - tier.levels;
            } else {
                tier.places = places;
                for_each_group<W::kPlaces>(from, [&](const Copy* some, int count) {
                    W::lay_out_places(from, some, count, *places++);
                });
                tier.groups = places - tier.places;
            }
        }
    }

    template <int kAtOnce, typename Use>
    static void for_each_group(const mgqe_tier& tier, const Use& use) {
        Copy group[kAtOnce];
        int count = 0;
        for_each_copy(tier, [&](const Copy& copy) {
            group[count++] = copy;
            if (count == kAtOnce) use(group, count);
            count %= kAtOnce;
        });
        if (count) use(group, count);
    }

    void read_tier(const WholeTier<W>& tier, const RowsOfTier& mine) const {
        if (tier.levels) return W::decode_levels(tier, mine, rows, stride);
        for (int64_t group = 0; group < tier.groups; ++group)
            W::places(tier.places[group], mine, places + group * W::kPlaces, num_places);
        for (int64_t i = 0; i < mine.count && in_bytes; ++i) copy(mine.at[i], tier.book);
    }

    // What is copied beyond a centroid lies in the next ones, which are copied later, or behind the row.
    void copy(int64_t i, const uint8_t* book) const {
        const uint16_t *const to = coordinates, *const from = places + i * num_places;
        uint8_t* const bytes = rows + i * stride;
        for (int64_t c = 0, end = copies; c < end; ++c) __builtin_memcpy(bytes + to[c], book + from[c], kCopied);
    }

    // In 16 bits: at most 64 bytes are added. The even bytes of a vector, the low ones of its 16-bit numbers, are added
    // together with the odd ones, and these taken off in the end.
    void sum_bytes(int64_t from, int64_t to) {
        typedef typename W::Words Words;
        constexpr int kVectors = 64 / sizeof(Words);
        for (int64_t k = 0; k < stride; k += 64) {
            Words both[kVectors] = {}, odd[kVectors] = {};
            const uint8_t* row = rows + from * stride + k;
            for (int64_t i = from; i < to; ++i, row += stride) {
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    Words words;
                    __builtin_memcpy(&words, row + v * sizeof(Words), sizeof(Words));
                    both[v] += words;
                    odd[v] += words >> 8;
                }
            }
            uint16_t of_both[32], of_odd[32];
            __builtin_memcpy(of_both, both, sizeof of_both);
            __builtin_memcpy(of_odd, odd, sizeof of_odd);
            for (int pair = 0; pair < 32; ++pair) {
                sums[k + 2 * pair] = static_cast<uint16_t>(of_both[pair] - (of_odd[pair] << 8));
                sums[k + 2 * pair + 1] = of_odd[pair];
            }
        }
    }

    // The same of centroids: those of kCount copies from `first` on.
    template <int kCount>
    void sum_copies(int64_t from, int64_t to, int64_t first) {
        typedef uint8_t Eight __attribute__((vector_size(8)));
        typedef uint16_t EightWords __attribute__((vector_size(16)));
        EightWords totals[kCount] = {};
        const uint16_t* place = places + from * num_places + first;
        for (int64_t i = from; i < to; ++i, place += num_places) {
            const uint8_t* const book = books[i];
#pragma GCC unroll 8
            for (int c = 0; c < kCount; ++c) {
                Eight eight;
                __builtin_memcpy(&eight, book + place[c], kCopied);
                totals[c] += __builtin_convertvector(eight, EightWords);
            }
        }
        for (int c = 0; c < kCount; ++c)
            __builtin_memcpy(sums + coordinates[first + c], &totals[c], sizeof(EightWords));
    }

    void sum_centroids(int64_t from, int64_t to) {
        int64_t first = 0;
        for (; first + kSummed <= copies; first += kSummed) sum_copies<kSummed>(from, to, first);
        switch (copies - first) {
            case 7: return sum_copies<7>(from, to, first);
            case 6: return sum_copies<6>(from, to, first);
            case 5: return sum_copies<5>(from, to, first);
            case 4: return sum_copies<4>(from, to, first);
            case 3: return sum_copies<3>(from, to, first);
            case 2: return sum_copies<2>(from, to, first);
            case 1: return sum_copies<1>(from, to, first);
            default: return;
        }
    }

    int64_t copies = 0;
    bool in_bytes = false;  // rows are bytes when they have been read
    void* memory = nullptr;
    WholeTier<W>* tiers = nullptr;
    uint16_t* coordinates = nullptr;  // that each copy begins with
    uint16_t* sums = nullptr;
    uint8_t* rows = nullptr;  // `stride` bytes each
    uint16_t* places = nullptr;
    int64_t num_places = 0;  // of a row
    const uint8_t* books[kBlock];
};

template <typename W, typename Locator>
int32_t lookup_whole_located(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out,
                             bool stream) {
    const Locator locator(table);
    const int64_t dim = table.embedding_dim, padding_idx = table.padding_idx;
    Whole<W> whole(table);
    typename W::Matrix matrix(table);
    if (!whole.reserve() || !matrix.reserve()) return MGQE_NO_MEMORY;
    Block blocks[2];
    int now = 0;
    int64_t next = begin + kBlock < end ? begin + kBlock : end;
    bool sound = locate_block(locator, padding_idx, dim, ids, begin, next, out, blocks[now]);
    while (sound) {
        const int64_t after = next + kBlock < end ? next + kBlock : end;
        const bool more = next < end;
        if (more) sound = locate_block(locator, padding_idx, dim, ids, next, after, out, blocks[now ^ 1]);
        const Block& block = blocks[now];
        whole.read(block.rows, block.tiers, block.count);
        const uint8_t* bytes[kBlock];
        for (int64_t i = 0; i < block.count; ++i) bytes[i] = whole.bytes(i);
        if (table.diagonal)
            for (int64_t i = 0; i < block.count; ++i) W::scale(table, bytes[i], block.rows[i].out, stream);
        else
            matrix.multiply(bytes, block.rows, block.count, stream);
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

template <typename W>
Whole<W>* own(mgqe_whole* whole) {
    return reinterpret_cast<Whole<W>*>(whole);
}

template <typename W>
mgqe_whole* prepare_whole(const mgqe_table& table) {
    Whole<W>* whole = new (std::nothrow) Whole<W>(table);
    if (whole && !whole->reserve()) {
        delete whole;
        whole = nullptr;
    }
    return reinterpret_cast<mgqe_whole*>(whole);
}

template <typename W>
constexpr mgqe_whole_kernels whole_kernels() {
    return {lookup_whole<W>,
            prepare_whole<W>,
            [](mgqe_whole* whole) { delete own<W>(whole); },
            [](mgqe_whole* whole, const mgqe_row* rows, const int32_t* tiers, int64_t n) {
                own<W>(whole)->read(rows, tiers, n);
            },
            [](mgqe_whole* whole, int64_t i, float* out) { own<W>(whole)->row(i, out); },
            [](mgqe_whole* whole, int64_t from, int64_t to, bool fresh, float* out) {
                own<W>(whole)->sum(from, to, fresh, out);
            }};
}

}  // namespace

#endif
