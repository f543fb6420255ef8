// Look-ups and sums in tables of whole numbers, included by each whole_*.cpp.
//
// A centroid is some bytes, each 128 more than a coordinate. A row's codes are unpacked many at a time into the places
// of its centroids, which are copied into a row of bytes. Where coordinates share their centroids, the levels, codes are
// unpacked and levels found in registers. Bags add up rows of bytes.
// What an instruction set `W` offers is listed where it is used:
//   PlaceCodes, kPlaces, lay_out_places(), places();
//   LevelCodes, kLevels, lay_out_levels(), decode_levels();
//   Matrix, which multiplies (whole_matrix.h has one for sets that add four products of bytes at once);
//   Ints and Floats, vectors of kLanes numbers; widen(), as many bytes or 16-bit numbers as Ints;
//   Words, a vector of 16-bit numbers; write(), Floats to a row, of which `left` numbers are missing; fence();
//   kMultipliesWords, and then multiply_words(): sums of bags with the matrix.
#ifndef MGQE_WHOLE_KERNEL_H
#define MGQE_WHOLE_KERNEL_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "isa.h"
#include "lookup_kernel.h"
#include "mgqe_native.h"
#include "row_cache.h"
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

// Whether a row is written around the caches, for which it must be aligned.
template <typename W>
inline bool goes_around(const float* row, bool stream) {
    return stream && reinterpret_cast<uintptr_t>(row) % sizeof(typename W::Floats) == 0;
}

constexpr int kTogether = 4;  // rows that are multiplied with the matrix at once

template <typename Matrix>
inline void multiply(const Matrix& matrix, const uint8_t* const* bytes, const mgqe_row* rows, int64_t n, bool stream) {
    int64_t i = 0;
    for (; i + kTogether <= n; i += kTogether)
        matrix.template multiply_rows<kTogether>(bytes + i, rows + i, stream);
    for (; i < n; ++i) matrix.template multiply_rows<1>(bytes + i, rows + i, stream);
}

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
        for (int64_t i = 0; i < n; ++i) bytes[i] = rows + i * stride;
    }

    void row(const uint8_t* from, float* out) const {
        for (int64_t k = 0; k < table.num_coordinates; k += W::kLanes) {
            const Floats numbers = __builtin_convertvector(W::widen(from + k) - kMiddle, Floats);
            __builtin_memcpy(out + k, &numbers, sizeof numbers);
        }
    }

    void sum(const uint8_t* const* bytes, int64_t n, bool fresh, float* out) const {
        const int32_t middles = static_cast<int32_t>(kMiddle * n);
        for (int64_t at = 0; at < table.num_coordinates; at += 64) {
            Words evens[kVectors], odds[kVectors];
            sum_bytes(bytes, n, at, evens, odds);
            uint16_t even[32], odd[32], sums[64];
            __builtin_memcpy(even, evens, sizeof even);
            __builtin_memcpy(odd, odds, sizeof odd);
            for (int pair = 0; pair < 32; ++pair) {
                sums[2 * pair] = even[pair];
                sums[2 * pair + 1] = odd[pair];
            }
            for (int64_t k = at; k < table.num_coordinates && k < at + 64; k += W::kLanes) {
                Floats numbers = __builtin_convertvector(W::widen(sums + (k - at)) - middles, Floats);
                if (!fresh) numbers += load_vector<Floats>(out + k);
                __builtin_memcpy(out + k, &numbers, sizeof numbers);
            }
        }
    }

    // How many rows' sums, at most 64, times the matrix stay below 2^24 in size, as do the sums on the way there.
    int64_t most_multiplied() const {
        if (!W::kMultipliesWords || table.diagonal) return 0;
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

    // As W::multiply_words wants them: the sums of 64 coordinates at a time, the even ones first.
    void sum_bag(const uint8_t* const* bytes, int64_t n, int64_t bag) {
        const uint16_t middles = static_cast<uint16_t>(kMiddle * n);
        uint16_t* to = words + bag * words_of_bag();
        for (int64_t at = 0; at < table.num_coordinates; at += 64, to += 64) {
            Words even[kVectors], odd[kVectors];
            sum_bytes(bytes, n, at, even, odd);
            for (int v = 0; v < kVectors; ++v) {
                even[v] -= middles;
                odd[v] -= middles;
            }
            __builtin_memcpy(to, even, sizeof even);
            __builtin_memcpy(to + 32, odd, sizeof odd);
        }
    }

    void multiply_bags(const float* shares, int64_t n, float* const* out) const {
        if constexpr (W::kMultipliesWords) W::multiply_words(table, words, words_of_bag(), shares, n, out);
    }

private:
    typedef typename W::Ints Ints;
    typedef typename W::Floats Floats;
    typedef typename W::Words Words;
    static constexpr int kVectors = 64 / sizeof(Words);

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
        if (tier.levels) return W::decode_levels(tier, mine, rows, stride);
        for (int64_t group = 0; group < tier.groups; ++group)
            W::places(tier.places[group], mine, places + group * W::kPlaces, num_places);
        for (int64_t i = 0; i < mine.count; ++i) copy(mine.at[i], tier.book);
    }

    // What is copied beyond a centroid lies in the next ones, which are copied later, or behind the row.
    void copy(int64_t i, const uint8_t* book) const {
        const uint16_t *const to = coordinates, *const from = places + i * num_places;
        uint8_t* const bytes = rows + i * stride;
#pragma GCC unroll 8
        for (int64_t c = 0, end = copies; c < end; ++c) __builtin_memcpy(bytes + to[c], book + from[c], kCopied);
    }

    // Bytes [at, at + 64) of n rows, in 16 bits: at most 64 are added. The even bytes of a vector, the low ones of its
    // 16-bit numbers, are added together with the odd ones, and these taken off in the end.
    static void sum_bytes(const uint8_t* const* bytes, int64_t n, int64_t at, Words* evens, Words* odds) {
        Words both[kVectors] = {}, odd[kVectors] = {};
        for (int64_t i = 0; i < n; ++i) {
            const uint8_t* const row = bytes[i] + at;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const Words words = load_vector<Words>(row + v * sizeof(Words));
                both[v] += words;
                odd[v] += words >> 8;
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            evens[v] = both[v] - (odd[v] << 8);
            odds[v] = odd[v];
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

// Ids located, but for those whose rows are in the cache, or will be when they are copied.
struct CachedBlock : Block {
    bool asked;    // for the codes
    int64_t kept;  // rows [kept, count) go to the cache
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

// A row of a table whose coordinates are only scaled.
template <typename W>
inline void scale(const mgqe_table& table, const uint8_t* bytes, float* out, bool stream) {
    typedef typename W::Floats Floats;
    const bool around = goes_around<W>(out, stream);
    for (int64_t t = 0; t < table.embedding_dim; t += W::kLanes) {
        const Floats mean = load_vector<Floats>(table.mean + t);
        const Floats row = add_scaled<W>(mean, table, t, W::widen(bytes + t) - kMiddle);
        W::write(out + t, row, table.embedding_dim - t, around);
    }
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
    if (!whole.reserve() || !matrix.reserve() || !cache.reserve()) return MGQE_NO_MEMORY;
    const auto write = [&](const uint8_t* const* bytes, const mgqe_row* rows, int64_t n, bool around) {
        if (!table.diagonal) return multiply(matrix, bytes, rows, n, around);
        for (int64_t i = 0; i < n; ++i) scale<W>(table, bytes[i], rows[i].out, around);
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

template <typename W>
Whole<W>* own(mgqe_whole* whole) {
    return reinterpret_cast<Whole<W>*>(whole);
}

template <typename W>
const Whole<W>* own(const mgqe_whole* whole) {
    return reinterpret_cast<const Whole<W>*>(whole);
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
            [](const mgqe_table& table) { return round_up(table.num_coordinates, 64); },
            [](mgqe_whole* whole, const mgqe_row* rows, const int32_t* tiers, int64_t n, const uint8_t** bytes) {
                own<W>(whole)->read(rows, tiers, n, bytes);
            },
            [](const mgqe_whole* whole, const uint8_t* bytes, float* out) { own<W>(whole)->row(bytes, out); },
            [](const mgqe_whole* whole, const uint8_t* const* bytes, int64_t n, bool fresh, float* out) {
                own<W>(whole)->sum(bytes, n, fresh, out);
            },
            [](const mgqe_whole* whole) { return own<W>(whole)->most_multiplied(); },
            [](mgqe_whole* whole, const uint8_t* const* bytes, int64_t n, int64_t bag) {
                own<W>(whole)->sum_bag(bytes, n, bag);
            },
            [](const mgqe_whole* whole, const float* shares, int64_t n, float* const* out) {
                own<W>(whole)->multiply_bags(shares, n, out);
            }};
}

}  // namespace

#endif
