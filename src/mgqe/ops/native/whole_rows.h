// Rows of tables of whole numbers, and their sums, included by whole_kernel.h.
#ifndef MGQE_WHOLE_ROWS_H
#define MGQE_WHOLE_ROWS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "isa.h"
#include "lookup_kernel.h"
#include "mgqe_native.h"
#include "whole.h"
#include "whole_codes.h"

namespace {

constexpr int kMiddle = 128;  // a byte less its coordinate

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <typename Vector, typename T>
inline Vector load_vector(const T* from) {
    Vector loaded;
    __builtin_memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

// Numbers [at, at + kLanes) of a row: start + column scale * sum, each rounded.
template <typename W>
inline typename W::Floats add_scaled(typename W::Floats start, const mgqe_table& table, int64_t at,
                                     typename W::Ints sums) {
    typedef typename W::Floats Floats;
    return start + __builtin_convertvector(sums, Floats) * load_vector<Floats>(table.column_scales + at);
}

// Numbers of a row whose coordinates are only scaled, from bytes of coordinates.
template <typename W>
inline void scale(const float* mean, const float* scales, const uint8_t* bytes, int64_t number, float* out,
                  bool around) {
    typedef typename W::Floats Floats;
    for (int64_t t = 0; t < number; t += W::kLanes) {
        const Floats numbers = __builtin_convertvector(W::widen(bytes + t) - kMiddle, Floats);
        const Floats scaled = numbers * load_vector<Floats>(scales + t);
        W::write(out + t, load_vector<Floats>(mean + t) + scaled, number - t, around);
    }
}

// Sums of 64 coordinates, in order, from those of the even ones and the odd ones; bits of `turned` are turned over.
inline void interleave(const uint16_t* even, const uint16_t* odd, uint16_t turned, uint16_t* sums) {
    for (int pair = 0; pair < 32; ++pair) {
        sums[2 * pair] = even[pair] ^ turned;
        sums[2 * pair + 1] = odd[pair] ^ turned;
    }
}

// Whether a row is written around the caches, for which it must be aligned.
template <typename W>
inline bool goes_around(const float* row, bool stream) {
    return stream && reinterpret_cast<uintptr_t>(row) % sizeof(typename W::Floats) == 0;
}

template <typename W>
struct WholeTier {
    const uint8_t* book;
    typename W::PlaceCodes* places;  // groups of kPlaces, or null
    typename W::LevelCodes* levels;  // groups of kLevels, or null
    int64_t groups;
};

// Rows of a block that are of one tier: their codes, and which rows of the block they are.
struct RowsOfTier {
    const uint8_t* codes[kBlock];
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
        num_places = round_up(copies, W::kPlaces);
        const size_t sizes[] = {
            size_of<WholeTier<W>>(table.num_tiers),
            size_of<typename W::PlaceCodes>(place_groups),
            size_of<typename W::LevelCodes>(level_groups),
            size_of<uint8_t>(kBlock * stride),
            size_of<uint16_t>(kBlock * num_places),
            size_of<uint16_t>(copies),
            size_of<uint16_t>(kWholeBags * words_of_bag()),
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
        words = static_cast<uint16_t*>(part(6));
        uint16_t* coordinate = coordinates;
        for_each_copy(table.tiers[0], [&](const Copy& copy) {
            *coordinate++ = static_cast<uint16_t>(copy.piece->coordinate + copy.ahead);
        });
        return true;
    }

    // A tier at a time.
    void read(const mgqe_row* block, const int32_t* tier_of, int64_t n, const uint8_t** bytes) const {
        RowsOfTier mine;
        const bool one = table.num_tiers == 1;
        int64_t left = n;
        for (int32_t g = 0; g < table.num_tiers && left > 0; ++g) {
            mine.count = 0;
            for (int32_t i = 0; i < n; ++i) {
                mine.codes[mine.count] = block[i].codes;  // counted only if it is of this tier
                mine.at[mine.count] = i;
                mine.count += one || tier_of[i] == g;
            }
            if (mine.count) read_tier(tiers[g], mine);
            left -= mine.count;
        }
        for (int64_t i = 0; i < n; ++i) bytes[i] = rows + i * stride;
    }

    void row(const uint8_t* from, float* out) const {
        for (int64_t k = 0; k < table.num_coordinates; k += W::kLanes) {
            const Floats numbers = __builtin_convertvector(W::widen(from + k) - kMiddle, Floats);
            __builtin_memcpy(out + k, &numbers, sizeof numbers);
        }
    }

    // Levels [group * W::kLevels, (group + 1) * W::kLevels) of one row.
    void decode_row(int32_t tier, int64_t group, const uint8_t* codes, uint8_t* bytes) const {
        if constexpr (W::kDecodesRows) W::decode_row(tiers[tier].levels[group], codes, bytes);
    }

    bool sums_lots() const {
        bool all = table.num_tiers <= kLotTiers;
        for (int32_t g = 0; g < table.num_tiers; ++g) all = all && table.tiers[g].levels;
        return all;
    }

    void sum(const uint8_t* const* bytes, int64_t n, bool fresh, float* out) const {
        sum_some(n, fresh, out, [&](int64_t at, Words* both, Words* odd) { add_bytes(bytes, n, at, both, odd); });
    }
    void sum(const mgqe_lot& lot, bool fresh, float* out) const {
        sum_some(lot.number(), fresh, out, [&](int64_t at, Words* both, Words* odd) { add_lot(lot, at, both, odd); });
    }
    // How many rows' sums, at most 64, times the matrix stay below 2^24 in size, as do the sums on the way there.
    int64_t most_multiplied() const {
        if (table.diagonal) return kBlock;
        if (!W::kMultipliesWords) return 0;
        int64_t most = 1;
        const int64_t columns = round_up(table.embedding_dim, MGQE_MATRIX_STEP);
        for (int64_t t = 0; t < columns; ++t) {
            int64_t sum = 0;
            for (int64_t quad = 0; quad < (table.num_coordinates + 3) / 4; ++quad)
                for (int64_t k = 0; k < 4; ++k) sum += abs(table.byte_matrix[(quad * columns + t) * 4 + k]);
            most = sum > most ? sum : most;
        }
        const int64_t rows = (int64_t{1} << 24) / (kMiddle * most);
        return rows < kBlock ? rows : kBlock;
    }

    void sum_bag(const uint8_t* const* bytes, int64_t n, int64_t bag) {
        sum_words(n, true, bag, [&](int64_t at, Words* both, Words* odd) { add_bytes(bytes, n, at, both, odd); });
    }
    void sum_bag(const mgqe_lot& lot, bool fresh, int64_t bag) {
        const auto add = [&](int64_t at, Words* both, Words* odd) { add_lot(lot, at, both, odd); };
        sum_words(lot.number(), fresh, bag, add);
    }

    void multiply_bags(const float* shares, int64_t n, float* const* out) const {
        if (table.diagonal) return scale_bags(shares, n, out);
        if constexpr (W::kMultipliesWords) W::multiply_words(table, words, words_of_bag(), shares, n, out);
    }

private:
    typedef typename W::Ints Ints;
    typedef typename W::Floats Floats;
    typedef typename W::Words Words;
    static constexpr int kVectors = 64 / sizeof(Words);
    static_assert(W::kLevels == sizeof(Words), "levels are found a vector at a time");

    int64_t words_of_bag() const { return round_up(table.num_coordinates, 64); }

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
        if (tier.levels) return read_levels(tier, mine);
        for (int64_t group = 0; group < tier.groups; ++group)
            W::places(tier.places[group], mine, places + group * W::kPlaces, num_places);
        for (int64_t i = 0; i < mine.count; ++i) copy(mine.at[i], tier.book);
    }

    void read_levels(const WholeTier<W>& tier, const RowsOfTier& mine) const {
        for (int64_t group = 0; group < tier.groups; ++group) {
            uint8_t* const to = rows + group * W::kLevels;
            W::decode_levels(tier.levels[group], mine.codes, mine.count, [&](int64_t i, Words found) {
                __builtin_memcpy(__builtin_assume_aligned(to + mine.at[i] * stride, sizeof found), &found, sizeof found);
            });
        }
    }

    // What is copied beyond a centroid lies in the next ones, which are copied later, or behind the row.
    void copy(int64_t i, const uint8_t* book) const {
        const uint16_t *const to = coordinates, *const from = places + i * num_places;
        uint8_t* const bytes = rows + i * stride;
#pragma GCC unroll 8
        for (int64_t c = 0, end = copies; c < end; ++c) __builtin_memcpy(bytes + to[c], book + from[c], kCopied);
    }

    // Sums of bytes are made 64 coordinates at a time, in 16 bits: at most 64 rows are added. The even bytes of a vector,
    // the low ones of its 16-bit numbers, are added together with the odd ones, and these taken off in the end.
    template <typename Add>
    static void sum_pairs(const Add& add, int64_t at, Words* evens, Words* odds) {
        Words both[kVectors] = {}, odd[kVectors] = {};
        add(at, both, odd);
        for (int v = 0; v < kVectors; ++v) {
            evens[v] = both[v] - (odd[v] << 8);
            odds[v] = odd[v];
        }
    }

    // As floats.
    template <typename Add>
    void sum_some(int64_t n, bool fresh, float* out, const Add& add) const {
        const int32_t middles = static_cast<int32_t>(kMiddle * n);
        for (int64_t at = 0; at < table.num_coordinates; at += 64) {
            Words evens[kVectors], odds[kVectors];
            sum_pairs(add, at, evens, odds);
            uint16_t even[32], odd[32], sums[64];
            __builtin_memcpy(even, evens, sizeof even);
            __builtin_memcpy(odd, odds, sizeof odd);
            interleave(even, odd, 0, sums);
            for (int64_t k = at; k < table.num_coordinates && k < at + 64; k += W::kLanes) {
                Floats numbers = __builtin_convertvector(W::widen(sums + (k - at)) - middles, Floats);
                if (!fresh) numbers += load_vector<Floats>(out + k);
                __builtin_memcpy(out + k, &numbers, sizeof numbers);
            }
        }
    }

    // As W::multiply_words wants them: of 64 coordinates the even ones first.
    template <typename Add>
    void sum_words(int64_t n, bool fresh, int64_t bag, const Add& add) {
        const uint16_t middles = static_cast<uint16_t>(kMiddle * n);
        uint16_t* to = words + bag * words_of_bag();
        for (int64_t at = 0; at < table.num_coordinates; at += 64, to += 64) {
            Words sums[2 * kVectors];
            sum_pairs(add, at, sums, sums + kVectors);
            for (int v = 0; v < 2 * kVectors; ++v) {
                sums[v] -= middles;
                if (!fresh) sums[v] += load_vector<Words>(to + v * (sizeof(Words) / sizeof(uint16_t)));
            }
            __builtin_memcpy(to, sums, sizeof sums);
        }
    }

    // shares[b] * mean + scale * (the sums of bag b).
    void scale_bags(const float* shares, int64_t n, float* const* out) const {
        constexpr uint16_t kSign = 0x8000;  // turned over, a negative sum is a number of 16 bits
        for (int64_t b = 0; b < n; ++b) {
            const uint16_t* from = words + b * words_of_bag();
            for (int64_t at = 0; at < table.embedding_dim; at += 64, from += 64) {
                uint16_t sums[64];
                interleave(from, from + 32, kSign, sums);
                const int64_t number = table.embedding_dim - at < 64 ? table.embedding_dim - at : 64;
                for (int64_t k = 0; k < number; k += W::kLanes) {
                    const Floats start = load_vector<Floats>(table.mean + at + k) * shares[b];
                    const Floats row = add_scaled<W>(start, table, at + k, W::widen(sums + k) - kSign);
                    W::write(out[b] + at + k, row, number - k, false);
                }
            }
        }
    }

    void add_lot(const mgqe_lot& lot, int64_t at, Words* both, Words* odd) const {
        for (int32_t g = 0; g < table.num_tiers; ++g)
            for (int64_t v = 0, group = at / W::kLevels; v < kVectors && group < tiers[g].groups; ++v, ++group) {
                Words both_here = both[v], odd_here = odd[v];
                W::decode_levels(tiers[g].levels[group], lot.codes[g], lot.counts[g], [&](int64_t, Words found) {
                    both_here += found;
                    odd_here += found >> 8;
                });
                both[v] = both_here;
                odd[v] = odd_here;
            }
    }

    static void add_bytes(const uint8_t* const* bytes, int64_t n, int64_t at, Words* both, Words* odd) {
        for (int64_t i = 0; i < n; ++i) {
            const uint8_t* const row = bytes[i] + at;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const Words words = load_vector<Words>(row + v * sizeof(Words));
                both[v] += words;
                odd[v] += words >> 8;
            }
        }
    }

    int64_t copies = 0;
    void* memory = nullptr;
    WholeTier<W>* tiers = nullptr;
    uint16_t* coordinates = nullptr;  // that each copy begins with
    uint8_t* rows = nullptr;  // `stride` bytes each
    uint16_t* places = nullptr;
    uint16_t* words = nullptr;  // sums of bags that wait to be multiplied
    int64_t num_places = 0;  // of a row
};

}  // namespace

#endif
