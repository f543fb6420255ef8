// Tables of whole numbers with AVX-512 VBMI and VNNI: codes and levels by permutations of bytes, four products at once.
#include <immintrin.h>

#include "whole_kernel.h"
#include "whole_matrix.h"

namespace {

template <int kHalf>
inline __m512i load_codes(const uint8_t* row, const Halves& halves) {
    const uint8_t* const low = row + halves.low;
    const uint8_t* const high = row + halves.high;
    if constexpr (kHalf == 32) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
        return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    }
    if constexpr (kHalf == 16) {
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
        const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
        return _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
    }
    if constexpr (kHalf == 8)
        return _mm512_castsi128_si512(
            _mm_set_epi64x(static_cast<long long>(window(high)), static_cast<long long>(window(low))));
    const uint64_t word = kHalf == 4 ? halves.four_and_four(row) : halves.short_row(row);
    return _mm512_castsi128_si512(_mm_cvtsi64_si128(static_cast<long long>(word)));
}

struct Vbmi {
    static constexpr int kLanes = 16;
    typedef int32_t Ints __attribute__((vector_size(64)));
    typedef float Floats __attribute__((vector_size(64)));
    typedef uint16_t Words __attribute__((vector_size(64)));

    static Ints widen(const uint8_t* from) {
        return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
    static Ints widen(const uint16_t* from) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(words));
    }
    static void write(float* to, __m512 row, int64_t left, bool around) {
        if (left < kLanes) _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << left) - 1), row);
        else if (around) _mm512_stream_ps(to, row);
        else _mm512_storeu_ps(to, row);
    }

    // Bytes are not signed: what that adds to the sums is taken off at their start.
    using Matrix = ByteMatrix<Vbmi>;
    using Products = __m512i;
    static Ints start(const int32_t* byte_sums) { return load_vector<Ints>(byte_sums); }
    static Products load_products(const int8_t* from) { return _mm512_loadu_si512(from); }
    static Products spread(int32_t four) { return _mm512_set1_epi32(four); }
    static Ints add_products(Ints sums, Products bytes, Products values) {
        return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), bytes, values));
    }

    // Each code from the two bytes that it begins in.
    static constexpr int kPlaces = 32;
    struct PlaceCodes {
        alignas(64) uint8_t from[64];
        alignas(64) uint16_t shift[kPlaces], mask[kPlaces], width[kPlaces], entry[kPlaces];
        Halves halves;
    };
    static void lay_out_places(const mgqe_tier& tier, const Copy* copies, int count, PlaceCodes& codes) {
        codes.halves.lay_out(tier, copies, count, 4);
        for (int at = 0; at < count; ++at) {
            const mgqe_piece& piece = *copies[at].piece;
            codes.width[at] = static_cast<uint16_t>(piece.width);
            codes.entry[at] = static_cast<uint16_t>(piece.entry + copies[at].ahead);
            if (piece.bits == 0) continue;
            codes.shift[at] = static_cast<uint16_t>(piece.bit % 8);
            codes.mask[at] = static_cast<uint16_t>((1 << piece.bits) - 1);
            codes.from[2 * at] = codes.halves.place(piece.bit / 8);
            codes.from[2 * at + 1] = codes.halves.place(piece.bit / 8 + 1);
        }
    }
    // Those of row i go to out + i * stride.
    static void places(const PlaceCodes& codes, const RowsOfTier& mine, uint16_t* out, int64_t stride) {
        with_half<32>(codes.halves.half, [&](auto half) {
            for (int64_t i = 0; i < mine.count; ++i) {
                const __m512i row = load_codes<half.kHalf>(mine.codes[i], codes.halves);
                const __m512i pairs = _mm512_permutexvar_epi8(_mm512_load_si512(codes.from), row);
                const __m512i shifted = _mm512_srlv_epi16(pairs, _mm512_load_si512(codes.shift));
                const __m512i code = _mm512_and_si512(shifted, _mm512_load_si512(codes.mask));
                const __m512i distance = _mm512_mullo_epi16(code, _mm512_load_si512(codes.width));
                const __m512i place = _mm512_add_epi16(distance, _mm512_load_si512(codes.entry));
                _mm512_store_si512(out + mine.at[i] * stride, place);
            }
        });
    }

    // Eight codes from the eight bytes that they are in.
    static constexpr int kLevels = 64;
    struct LevelCodes {
        alignas(64) uint8_t from[kLevels], shift[kLevels], mask[kLevels], place[kLevels];
        alignas(64) uint8_t levels[256];
        alignas(64) uint8_t from_quarters[kLevels];
        uint64_t sevens;  // which codes have seven bits
        Halves halves;
        Quarters quarters;
    };
    static void lay_out_levels(const mgqe_tier& tier, const Copy* copies, int count, LevelCodes& codes) {
        codes.halves.lay_out(tier, copies, count, 4);
        codes.quarters.lay_out(tier, copies);
        copy_levels(tier, codes.levels);
        for (int at = 0; at < round_up(count, 8); ++at) {
            const int64_t byte = copies[at / 8 * 8].piece->bit / 8;
            codes.from[at] = codes.halves.place(byte + at % 8);
            codes.from_quarters[at] = codes.quarters.place(byte + at % 8);
            if (at >= count) continue;
            const mgqe_piece& piece = *copies[at].piece;
            codes.shift[at] = static_cast<uint8_t>(piece.bit - 8 * byte);
            codes.mask[at] = static_cast<uint8_t>((1 << piece.bits) - 1);
            codes.place[at] = static_cast<uint8_t>(1 << piece.bits);
            codes.sevens |= static_cast<uint64_t>(piece.bits == 7) << at;
        }
    }
    // Calls use(i, levels) with those of row i.
    template <typename Use>
    static void decode_levels(const LevelCodes& codes, const uint8_t* const* rows, int64_t n, const Use& use) {
        with_half<32>(codes.halves.half, [&](auto half) {
            if (codes.sevens == ~uint64_t{0}) decode_group<half.kHalf, false, true>(codes, rows, n, use);
            else if (codes.sevens) decode_group<half.kHalf, true, true>(codes, rows, n, use);
            else decode_group<half.kHalf, true, false>(codes, rows, n, use);
        });
    }
    // kFew, kSevens: whether there are codes of at most six bits, and of seven.
    template <int kHalf, bool kFew, bool kSevens, typename Use>
    static void decode_group(const LevelCodes& codes, const uint8_t* const* rows, int64_t n, const Use& use) {
        const __m512i a = _mm512_load_si512(codes.levels), b = _mm512_load_si512(codes.levels + 64);
        const __m512i c = _mm512_load_si512(codes.levels + 128), d = _mm512_load_si512(codes.levels + 192);
        const __m512i from = _mm512_load_si512(codes.from), shift = _mm512_load_si512(codes.shift);
        const __m512i mask = _mm512_load_si512(codes.mask), first = _mm512_load_si512(codes.place);
        const __mmask64 sevens = codes.sevens, sixes = _mm512_test_epi8_mask(first, _mm512_set1_epi8(64));
        const Halves halves = codes.halves;
        for (int64_t i = 0; i < n; ++i) {
            const __m512i eights = _mm512_permutexvar_epi8(from, load_codes<kHalf>(rows[i], halves));
            const __m512i shifted = _mm512_multishift_epi64_epi8(shift, eights);
            const __m512i place = _mm512_ternarylogic_epi64(shifted, mask, first, 0xea);  // (shifted & mask) | first
            __m512i found = kSevens ? _mm512_permutex2var_epi8(c, place, d) : place;
            if (kFew) {  // in one register each, which takes less time than in both
                const __m512i few = _mm512_mask_permutexvar_epi8(_mm512_permutexvar_epi8(place, a), sixes, place, b);
                found = kSevens ? _mm512_mask_mov_epi8(few, sevens, found) : few;
            }
            use(i, reinterpret_cast<Words>(found));
        }
    }

    // All that this takes is read for each row: a branch on its tier, or its bits, would be mispredicted.
    static constexpr bool kDecodesRows = true;
    static bool decodes_rows(const mgqe_tier& tier) { return tier.row_bytes >= Quarters::kBytes; }
    static void decode_row(const LevelCodes& codes, const uint8_t* row, uint8_t* to) {
        const auto quarter = [&](int number) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + codes.quarters.at[number]));
        };
        const auto level = [&](int at) { return _mm512_load_si512(codes.levels + at); };
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
        const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
        const __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        const __m512i eights = _mm512_permutexvar_epi8(_mm512_load_si512(codes.from_quarters), all);
        const __m512i shifted = _mm512_multishift_epi64_epi8(_mm512_load_si512(codes.shift), eights);
        const __m512i mask = _mm512_load_si512(codes.mask), first = _mm512_load_si512(codes.place);
        const __m512i place = _mm512_ternarylogic_epi64(shifted, mask, first, 0xea);
        const __m512i few = _mm512_permutex2var_epi8(level(0), place, level(64));
        const __m512i wide = _mm512_permutex2var_epi8(level(128), place, level(192));
        _mm512_store_si512(to, _mm512_mask_mov_epi8(few, codes.sevens, wide));
    }

    // out[b] = shares[b] * mean + scale * (sums of bag b @ matrix). Two products at once: the matrix has four coordinates
    // together, and the first and third of them are as 16-bit numbers what the even sums are.
    static constexpr bool kMultipliesWords = true;
    static void multiply_words(const mgqe_table& table, const uint16_t* words, int64_t stride, const float* shares,
                               int64_t n, float* const* out) {
        const int64_t dim = table.embedding_dim;
        int64_t first = 0;
        if (n == kWholeBags)
            for (; first + 48 < dim; first += 64)
                multiply_columns<kWholeBags, 4>(table, words, stride, shares, out, first);
        for (; first < dim; first += 16)
            for (int64_t b = 0; b < n; ++b)
                multiply_columns<1, 1>(table, words + b * stride, stride, shares + b, out + b, first);
    }
    template <int kBags, int kVectors>
    static void multiply_columns(const mgqe_table& table, const uint16_t* words, int64_t stride, const float* shares,
                                 float* const* out, int64_t first) {
        const int64_t dim = table.embedding_dim, quads = (table.num_coordinates + 3) / 4;
        const int64_t step = 4 * round_up(dim, MGQE_MATRIX_STEP);
        __m512i sums[kBags][kVectors];
#pragma GCC unroll 4
        for (int b = 0; b < kBags; ++b)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[b][v] = _mm512_setzero_si512();
        const int8_t* from = table.byte_matrix + 4 * first;
        for (int64_t quad = 0; quad < quads; ++quad, from += step) {
            const uint16_t* const pairs = words + quad / 16 * 64 + quad % 16 * 2;
            __m512i even[kVectors], odd[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                const __m512i four = _mm512_loadu_si512(from + 64 * v);
                even[v] = _mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8);
                odd[v] = _mm512_srai_epi16(four, 8);
            }
#pragma GCC unroll 4
            for (int b = 0; b < kBags; ++b) {
                int32_t evens, odds;
                __builtin_memcpy(&evens, pairs + b * stride, 4);
                __builtin_memcpy(&odds, pairs + b * stride + 32, 4);
                const __m512i z_even = _mm512_set1_epi32(evens), z_odd = _mm512_set1_epi32(odds);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    sums[b][v] = _mm512_dpwssd_epi32(sums[b][v], z_even, even[v]);
                    sums[b][v] = _mm512_dpwssd_epi32(sums[b][v], z_odd, odd[v]);
                }
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const int64_t at = first + 16 * v;
            const Floats mean = load_vector<Floats>(table.mean + at);
#pragma GCC unroll 4
            for (int b = 0; b < kBags; ++b) {
                const Floats start = mean * shares[b];
                const Floats row = add_scaled<Vbmi>(start, table, at, reinterpret_cast<Ints>(sums[b][v]));
                write(out[b] + at, row, dim - at, false);
            }
        }
    }

    static void fence() { _mm_sfence(); }
};

}  // namespace

const mgqe_whole_kernels mgqe_whole_vbmi = whole_kernels<Vbmi>();
