// Look-ups in tables whose coordinates and matrix are whole numbers, with AVX-512 VBMI and VNNI.
//
// A row's codes are unpacked 32 at a time; their centroids, bytes, are copied to a row of coordinates, or looked up in
// registers where coordinates share them; and four products of bytes are added at once. Sums of whole numbers are exact, so that the bits are those of the other kernels.
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "isa.h"
#include "lookup_kernel.h"
#include "lookup_whole.h"
#include "mgqe_native.h"

namespace {

constexpr int kCodes = 32;        // unpacked at once
constexpr int32_t kCopied = 8;    // bytes of a centroid
constexpr int kTogether = 4;      // rows that are multiplied together

// How 32 codes are read from a row: two loads of `half` bytes, which hold them all and nothing outside the row; two of
// the bytes for each code, shifted and masked; and where the code's centroid is.
struct Codes {
    alignas(64) uint8_t from[64];
    alignas(64) uint16_t shift[kCodes], mask[kCodes], width[kCodes], entry[kCodes];
    alignas(32) uint8_t level[kCodes];  // where the levels of as many bits begin
    uint32_t sevens;                    // which codes have seven bits, whose levels are apart
    int64_t low, high, half;
};

struct Tier {
    const uint8_t* book;
    const uint8_t* levels;
    int64_t row_bytes;
    int64_t groups, copies;
    Codes* codes;
    uint16_t* coordinates;  // that each copy begins with
};

// Eight bytes of a centroid: those of a piece, from so many on. A wide centroid is copied in several.
struct Copy {
    const mgqe_piece* piece;
    int32_t ahead;
};

// Calls use(copy) for each copy of a row, in order.
template <typename Use>
inline void for_each_copy(const mgqe_tier& tier, const Use& use) {
    for (int32_t j = 0; j < tier.num_subspaces; ++j)
        for (int32_t ahead = 0; ahead < tier.layout[j].width; ahead += kCopied) use(Copy{&tier.layout[j], ahead});
}

inline int64_t copies_of(const mgqe_tier& tier) {
    int64_t copies = 0;
    for_each_copy(tier, [&](const Copy&) { ++copies; });
    return copies;
}

// Where the codes of so many copies are. At least one bit, or the row is empty.
void lay_out_codes(const mgqe_tier& tier, const Copy* copies, int count, Codes& codes) {
    memset(&codes, 0, sizeof codes);
    const mgqe_piece& end = *copies[count - 1].piece;
    const int64_t begin_byte = copies[0].piece->bit / 8, end_byte = (end.bit + end.bits + 7) / 8;
    int64_t half = 4;
    while (2 * half < end_byte - begin_byte) half *= 2;
    codes.half = tier.row_bytes < 4 ? 0 : half;
    codes.low = begin_byte + half <= tier.row_bytes ? begin_byte : tier.row_bytes - half;
    codes.high = end_byte > half ? end_byte - half : 0;
    if (codes.half == 0) codes.low = codes.high = 0;
    for (int at = 0; at < count; ++at) {
        const mgqe_piece& piece = *copies[at].piece;
        codes.width[at] = static_cast<uint16_t>(piece.width);
        codes.entry[at] = static_cast<uint16_t>(piece.entry + copies[at].ahead);
        codes.level[at] = static_cast<uint8_t>(piece.bits < 7 ? (1 << piece.bits) - 1 : 0);
        codes.sevens |= static_cast<uint32_t>(piece.bits == 7) << at;
        if (piece.bits == 0) continue;
        codes.shift[at] = static_cast<uint16_t>(piece.bit % 8);
        codes.mask[at] = static_cast<uint16_t>((1 << piece.bits) - 1);
        for (int more = 0; more < 2; ++more) {
            int64_t byte = piece.bit / 8 + more;
            if (byte >= tier.row_bytes) byte = tier.row_bytes - 1;  // of no code: masked
            const bool in_low = codes.half == 0 || byte < codes.low + half;
            codes.from[2 * at + more] = static_cast<uint8_t>(in_low ? byte - codes.low : half + byte - codes.high);
        }
    }
}

inline __m512i load_codes(const uint8_t* row, const Codes& codes, int64_t row_bytes) {
    const uint8_t* const low = row + codes.low;
    const uint8_t* const high = row + codes.high;
    switch (codes.half) {
        case 32: {
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
            return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        }
        case 16: {
            const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
            const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
            return _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
        }
        case 8:
            return _mm512_castsi128_si512(
                _mm_set_epi64x(static_cast<long long>(window(high)), static_cast<long long>(window(low))));
        case 4:
            return _mm512_castsi128_si512(
                _mm_cvtsi64_si128(static_cast<long long>(little_endian(low, 4) | static_cast<uint64_t>(little_endian(high, 4)) << 32)));
        default:
            return _mm512_castsi128_si512(
                _mm_cvtsi64_si128(static_cast<long long>(row_bytes ? few_bytes(row, row_bytes) : 0)));
    }
}

// The codes of a group.
inline __m512i unpack(const uint8_t* row, const Codes& codes, int64_t row_bytes) {
    const __m512i pairs =
        _mm512_permutexvar_epi8(_mm512_load_si512(codes.from), load_codes(row, codes, row_bytes));
    return _mm512_and_si512(_mm512_srlv_epi16(pairs, _mm512_load_si512(codes.shift)), _mm512_load_si512(codes.mask));
}

// Coordinates, as bytes from 1 to 255 for -127 to 127, of n rows of a tier with levels. Writes whole groups.
void decode_levels(const Tier& tier, const mgqe_row* rows, int64_t n) {
    const __m512i a = _mm512_loadu_si512(tier.levels), b = _mm512_loadu_si512(tier.levels + 64);
    const __m512i c = _mm512_loadu_si512(tier.levels + 128), d = _mm512_loadu_si512(tier.levels + 192);
    for (int64_t group = 0; group < tier.groups; group += 2) {
        const Codes& first = tier.codes[group];
        const bool both = group + 1 < tier.groups;
        const Codes& second = tier.codes[both ? group + 1 : group];
        const __m512i level = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_load_si256(reinterpret_cast<const __m256i*>(first.level))),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(second.level)), 1);
        const __mmask64 sevens = first.sevens | static_cast<uint64_t>(second.sevens) << 32;
        for (int64_t i = 0; i < n; ++i) {
            const __m256i low = _mm512_cvtepi16_epi8(unpack(rows[i].codes, first, tier.row_bytes));
            __m512i place = _mm512_castsi256_si512(low);
            if (both)
                place = _mm512_inserti64x4(
                    place, _mm512_cvtepi16_epi8(unpack(rows[i].codes, second, tier.row_bytes)), 1);
            place = _mm512_add_epi8(place, level);
            __m512i found = _mm512_permutex2var_epi8(a, place, b);
            if (sevens) found = _mm512_mask_mov_epi8(found, sevens, _mm512_permutex2var_epi8(c, place, d));
            uint8_t* const to = reinterpret_cast<uint8_t*>(rows[i].out) + group * kCodes;
            if (both) _mm512_storeu_si512(to, found);
            else _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(found));
        }
    }
}

// The same of any tier; a row has room for 7 more bytes.
void decode_whole(const Tier& tier, const mgqe_row* rows, int64_t n) {
    if (tier.levels) return decode_levels(tier, rows, n);
    alignas(64) uint16_t places[kMaxWholeCodes];
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t group = 0; group < tier.groups; ++group) {
            const Codes& codes = tier.codes[group];
            const __m512i named = unpack(rows[i].codes, codes, tier.row_bytes);
            const __m512i distance = _mm512_mullo_epi16(named, _mm512_load_si512(codes.width));
            _mm512_store_si512(places + group * kCodes, _mm512_add_epi16(distance, _mm512_load_si512(codes.entry)));
        }
        uint8_t* const to = reinterpret_cast<uint8_t*>(rows[i].out);
        const uint16_t* const coordinates = tier.coordinates;
        const uint8_t* const book = tier.book;
        const int64_t copies = tier.copies;
        for (int64_t c = 0; c < copies; ++c) {
            uint64_t eight;
            __builtin_memcpy(&eight, book + places[c], kCopied);
            __builtin_memcpy(to + coordinates[c], &eight, kCopied);
        }
    }
}

// Columns [first, first + 16 * kVectors) of kRows rows: mean + scale * (coordinates @ matrix).
template <int kRows, int kVectors>
inline void multiply_bytes(const mgqe_table& table, const uint8_t* coordinates, int64_t stride, float* const* out,
                           int64_t first, bool stream) {
    const int64_t dim = table.embedding_dim, quads = (table.num_coordinates + 3) / 4;
    const int64_t step = (dim + MGQE_MATRIX_STEP - 1) / MGQE_MATRIX_STEP * MGQE_MATRIX_STEP;
    __m512i sums[kRows][kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][v] = _mm512_loadu_si512(table.byte_sums + first + 16 * v);
    const int8_t* from = table.byte_matrix + 4 * first;
    for (int64_t quad = 0; quad < quads; ++quad, from += 4 * step) {
        __m512i values[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) values[v] = _mm512_loadu_si512(from + 64 * v);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            int32_t four;
            __builtin_memcpy(&four, coordinates + r * stride + 4 * quad, 4);
            const __m512i z = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], z, values[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        const int64_t at = first + 16 * v;
        const __m512 mean = _mm512_loadu_ps(table.mean + at), scale = _mm512_loadu_ps(table.column_scales + at);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const __m512 row = _mm512_add_ps(mean, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][v]), scale));
            float* const to = out[r] + at;
            if (at + 16 > dim) {
                if (at < dim) _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << (dim - at)) - 1), row);
            } else if (stream && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
                _mm512_stream_ps(to, row);
            } else {
                _mm512_storeu_ps(to, row);
            }
        }
    }
}

template <int kRows>
inline void multiply_whole(const mgqe_table& table, const uint8_t* coordinates, int64_t stride, float* const* out,
                           bool stream) {
    const int64_t dim = table.embedding_dim;
    int64_t first = 0;
    for (; first + 48 < dim; first += 64)
        multiply_bytes<kRows, 4>(table, coordinates, stride, out, first, stream);
    for (; first < dim; first += 16) multiply_bytes<kRows, 1>(table, coordinates, stride, out, first, stream);
}

// A row where the matrix is the identity: mean + scale * coordinates.
inline void scale_bytes(const mgqe_table& table, const uint8_t* coordinates, float* out, bool stream) {
    const int64_t dim = table.embedding_dim;
    const __m512i middle = _mm512_set1_epi32(128);
    stream = stream && reinterpret_cast<uintptr_t>(out) % 64 == 0;
    for (int64_t t = 0; t < dim; t += 16) {
        const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(coordinates + t));
        const __m512 numbers = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), middle));
        const __m512 scaled = _mm512_mul_ps(numbers, _mm512_loadu_ps(table.column_scales + t));
        const __m512 row = _mm512_add_ps(_mm512_loadu_ps(table.mean + t), scaled);
        if (t + 16 > dim) _mm512_mask_storeu_ps(out + t, static_cast<__mmask16>((1u << (dim - t)) - 1), row);
        else if (stream) _mm512_stream_ps(out + t, row);
        else _mm512_storeu_ps(out + t, row);
    }
}

// The tiers of a table as they are decoded, and room for rows of coordinates.
class Decoders {
public:
    const int64_t num_coordinates, stride;
    const int32_t num_tiers;
    Tier tiers[kMaxTiers];
    uint8_t* rows = nullptr;

    explicit Decoders(const mgqe_table& table)
        : num_coordinates(table.num_coordinates), stride((num_coordinates + 7 + 63) / 64 * 64),
          num_tiers(table.num_tiers) {}
    Decoders(const Decoders&) = delete;
    Decoders& operator=(const Decoders&) = delete;
    ~Decoders() { free(memory); }

    bool reserve(const mgqe_table& table) {
        int64_t groups = 0, copies = 0;
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const int64_t of_tier = copies_of(table.tiers[g]);
            groups += (of_tier + kCodes - 1) / kCodes;
            copies += of_tier;
        }
        const size_t of_codes = static_cast<size_t>(groups) * sizeof(Codes);
        const size_t of_rows = static_cast<size_t>(kBlock * stride);
        if (posix_memalign(&memory, 64, of_codes + of_rows + static_cast<size_t>(copies) * sizeof(uint16_t)) != 0)
            return false;
        Codes* codes = static_cast<Codes*>(memory);
        rows = static_cast<uint8_t*>(memory) + of_codes;
        uint16_t* coordinates = reinterpret_cast<uint16_t*>(rows + of_rows);
        memset(rows, 0, of_rows);
        for (int32_t g = 0; g < table.num_tiers; ++g) {
            const mgqe_tier& from = table.tiers[g];
            Tier& to = tiers[g] = {from.bytes, from.levels, from.row_bytes, 0, 0, codes, coordinates};
            Copy group[kCodes];
            int count = 0;
            for_each_copy(from, [&](const Copy& copy) {
                *coordinates++ = static_cast<uint16_t>(copy.piece->coordinate + copy.ahead);
                group[count++] = copy;
                if (count == kCodes) lay_out_codes(from, group, count, *codes++);
                count %= kCodes;
            });
            if (count) lay_out_codes(from, group, count, *codes++);
            to.groups = codes - to.codes;
            to.copies = coordinates - to.coordinates;
        }
        return true;
    }

    float* row(int64_t i) const { return reinterpret_cast<float*>(rows + i * stride); }

private:
    void* memory = nullptr;
};

// Of n rows, at most kBlock, of tiers tiers[i].
void decode_rows(const Decoders& decoders, const mgqe_row* rows, const int32_t* tiers, int64_t n) {
    if (decoders.num_tiers == 1) return decode_whole(decoders.tiers[0], rows, n);
    mgqe_row mine[kBlock];
    int64_t left = n;
    for (int32_t g = 0; g < decoders.num_tiers && left > 0; ++g) {
        int64_t count = 0;
        for (int64_t i = 0; i < n; ++i) {
            mine[count] = rows[i];  // counted only if it is of this tier
            count += tiers[i] == g;
        }
        decode_whole(decoders.tiers[g], mine, count);
        left -= count;
    }
}

template <typename Locator>
int32_t lookup_whole(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out, bool stream) {
    const Locator locator(table);
    const int64_t dim = table.embedding_dim, padding_idx = table.padding_idx;
    Decoders decoders(table);
    if (!decoders.reserve(table)) return MGQE_NO_MEMORY;
    Block blocks[2];
    int now = 0;
    int64_t next = begin + kBlock < end ? begin + kBlock : end;
    bool sound = locate_block(locator, padding_idx, dim, ids, begin, next, out, blocks[now]);
    while (sound) {
        const int64_t after = next + kBlock < end ? next + kBlock : end;
        const bool more = next < end;
        if (more) sound = locate_block(locator, padding_idx, dim, ids, next, after, out, blocks[now ^ 1]);
        Block& block = blocks[now];
        float* to[kBlock];
        for (int64_t i = 0; i < block.count; ++i) {
            to[i] = block.rows[i].out;
            block.rows[i].out = decoders.row(i);
        }
        decode_rows(decoders, block.rows, block.tiers, block.count);
        int64_t i = 0;
        for (; table.diagonal && i < block.count; ++i)
            scale_bytes(table, decoders.rows + i * decoders.stride, to[i], stream);
        for (; i + kTogether <= block.count; i += kTogether)
            multiply_whole<kTogether>(table, decoders.rows + i * decoders.stride, decoders.stride, to + i, stream);
        for (; i < block.count; ++i)
            multiply_whole<1>(table, decoders.rows + i * decoders.stride, decoders.stride, to + i, stream);
        if (!more) break;
        now ^= 1;
        next = after;
    }
    if (stream) _mm_sfence();
    return sound ? MGQE_OK : MGQE_CORRUPT;
}

}  // namespace

class mgqe_whole : public Decoders {
public:
    using Decoders::Decoders;
};

mgqe_whole* mgqe_whole_of(const mgqe_table& table) {
    mgqe_whole* const whole = new (std::nothrow) mgqe_whole(table);
    if (whole && whole->reserve(table)) return whole;
    delete whole;
    return nullptr;
}

void mgqe_free_whole(mgqe_whole* whole) { delete whole; }

void mgqe_whole_decode(const mgqe_whole& whole, const mgqe_row* rows, const int32_t* tiers, int64_t n) {
    mgqe_row in_bytes[kBlock];
    for (int64_t i = 0; i < n; ++i) in_bytes[i] = {rows[i].codes, whole.row(i)};
    decode_rows(whole, in_bytes, tiers, n);
}

void mgqe_whole_row(const mgqe_whole& whole, int64_t i, float* out) {
    const uint8_t* const from = whole.rows + i * whole.stride;
    for (int64_t k = 0; k < whole.num_coordinates; k += 16) {
        const __m512i bytes = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(from + k)));
        _mm512_storeu_ps(out + k, _mm512_cvtepi32_ps(_mm512_sub_epi32(bytes, _mm512_set1_epi32(128))));
    }
}

void mgqe_whole_sum(const mgqe_whole& whole, int64_t from, int64_t to, bool fresh, float* out) {
    // At most 64 bytes are added, so that 16 bits hold their sums.
    const __m512i middles = _mm512_set1_epi32(static_cast<int32_t>(128 * (to - from)));
    for (int64_t k = 0; k < whole.num_coordinates; k += 32) {
        __m512i sums = _mm512_setzero_si512();
        for (int64_t i = from; i < to; ++i) {
            const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(whole.rows + i * whole.stride + k));
            sums = _mm512_add_epi16(sums, _mm512_cvtepu8_epi16(bytes));
        }
        for (int half = 0; half < 2 && k + 16 * half < whole.num_coordinates; ++half) {
            const __m256i words = half ? _mm512_extracti64x4_epi64(sums, 1) : _mm512_castsi512_si256(sums);
            const __m512i numbers = _mm512_sub_epi32(_mm512_cvtepu16_epi32(words), middles);
            float* const to_floats = out + k + 16 * half;
            const __m512 before = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(to_floats);
            _mm512_storeu_ps(to_floats, _mm512_add_ps(before, _mm512_cvtepi32_ps(numbers)));
        }
    }
}

int32_t mgqe_lookup_whole(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out,
                          bool stream) {
    const auto located = table.num_levels      ? lookup_whole<TierMap>
                         : table.num_tiers > 1 ? lookup_whole<TierRanges>
                                               : lookup_whole<OneTier>;
    return located(table, ids, begin, end, out, stream);
}
