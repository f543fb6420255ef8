// Tables of whole numbers with AVX-512 VBMI and VNNI: codes and levels by permutations of bytes, four products at once.
#include <immintrin.h>

#include "whole_kernel.h"

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

// The matrix as the table has it: columns of four coordinates, a byte each.
class Matrix {
public:
    explicit Matrix(const mgqe_table& of) : table(of) {}
    bool reserve() { return true; }
    void multiply(const uint8_t* const* bytes, const mgqe_row* rows, int64_t n, bool stream) const {
        int64_t i = 0;
        for (; i + kTogether <= n; i += kTogether) multiply_rows<kTogether>(bytes + i, rows + i, stream);
        for (; i < n; ++i) multiply_rows<1>(bytes + i, rows + i, stream);
    }

private:
    static constexpr int kTogether = 4;
    const mgqe_table& table;

    // Columns [first, first + 16 * kVectors) of kRows rows: mean + scale * (coordinates @ matrix).
    template <int kRows, int kVectors>
    void multiply_columns(const uint8_t* const* bytes, const mgqe_row* rows, int64_t first, bool stream) const {
        const int64_t dim = table.embedding_dim, quads = (table.num_coordinates + 3) / 4;
        const int64_t step = round_up(dim, MGQE_MATRIX_STEP);
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
                __builtin_memcpy(&four, bytes[r] + 4 * quad, 4);
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
                float* const to = rows[r].out + at;
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
    void multiply_rows(const uint8_t* const* bytes, const mgqe_row* rows, bool stream) const {
        const int64_t dim = table.embedding_dim;
        int64_t first = 0;
        for (; first + 48 < dim; first += 64) multiply_columns<kRows, 4>(bytes, rows, first, stream);
        for (; first < dim; first += 16) multiply_columns<kRows, 1>(bytes, rows, first, stream);
    }
};

struct Vbmi {
    using Matrix = ::Matrix;
    static constexpr int kLanes = 16;
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    typedef uint16_t ShortWords __attribute__((vector_size(32)));
    typedef int32_t Ints __attribute__((vector_size(64)));
    typedef float Floats __attribute__((vector_size(64)));
    typedef uint16_t Words __attribute__((vector_size(64)));

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
        with_half(codes.halves.half, [&](auto half) {
            for (int64_t i = 0; i < mine.count; ++i) {
                const __m512i row = load_codes<half.kHalf>(mine.rows[mine.at[i]].codes, codes.halves);
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
        uint64_t sevens;  // which codes have seven bits
        Halves halves;
    };
    static void lay_out_levels(const mgqe_tier& tier, const Copy* copies, int count, LevelCodes& codes) {
        codes.halves.lay_out(tier, copies, count, 4);
        copy_levels(tier, codes.levels);
        for (int at = 0; at < round_up(count, 8); ++at) {
            const int64_t byte = copies[at / 8 * 8].piece->bit / 8;
            codes.from[at] = codes.halves.place(byte + at % 8);
            if (at >= count) continue;
            const mgqe_piece& piece = *copies[at].piece;
            codes.shift[at] = static_cast<uint8_t>(piece.bit - 8 * byte);
            codes.mask[at] = static_cast<uint8_t>((1 << piece.bits) - 1);
            codes.place[at] = static_cast<uint8_t>(1 << piece.bits);
            codes.sevens |= static_cast<uint64_t>(piece.bits == 7) << at;
        }
    }
    // The bytes of row i go to out + i * stride.
    static void decode_levels(const WholeTier<Vbmi>& tier, const RowsOfTier& mine, uint8_t* out, int64_t stride) {
        for (int64_t group = 0; group < tier.groups; ++group, out += kLevels) {
            const LevelCodes& codes = tier.levels[group];
            with_half(codes.halves.half, [&](auto half) {
                if (codes.sevens) decode_group<half.kHalf, true>(codes, mine, out, stride);
                else decode_group<half.kHalf, false>(codes, mine, out, stride);
            });
        }
    }
    template <int kHalf, bool kSevens>
    static void decode_group(const LevelCodes& codes, const RowsOfTier& mine, uint8_t* out, int64_t stride) {
        const __m512i a = _mm512_load_si512(codes.levels), b = _mm512_load_si512(codes.levels + 64);
        const __m512i c = _mm512_load_si512(codes.levels + 128), d = _mm512_load_si512(codes.levels + 192);
        const __m512i from = _mm512_load_si512(codes.from), shift = _mm512_load_si512(codes.shift);
        const __m512i mask = _mm512_load_si512(codes.mask), first = _mm512_load_si512(codes.place);
        const __mmask64 sevens = codes.sevens;
        const Halves halves = codes.halves;
        for (int64_t i = 0; i < mine.count; ++i) {
            const int64_t at = mine.at[i];
            const __m512i eights = _mm512_permutexvar_epi8(from, load_codes<kHalf>(mine.rows[at].codes, halves));
            const __m512i shifted = _mm512_multishift_epi64_epi8(shift, eights);
            const __m512i place = _mm512_ternarylogic_epi64(shifted, mask, first, 0xea);  // (shifted & mask) | first
            __m512i found = _mm512_permutex2var_epi8(a, place, b);
            if (kSevens) found = _mm512_mask_mov_epi8(found, sevens, _mm512_permutex2var_epi8(c, place, d));
            _mm512_store_si512(out + at * stride, found);
        }
    }

    static void scale(const mgqe_table& table, const uint8_t* bytes, float* out, bool stream) {
        const int64_t dim = table.embedding_dim;
        const __m512i middle = _mm512_set1_epi32(kMiddle);
        stream = stream && reinterpret_cast<uintptr_t>(out) % 64 == 0;
        for (int64_t t = 0; t < dim; t += 16) {
            const __m128i sixteen = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes + t));
            const __m512 numbers = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(sixteen), middle));
            const __m512 scaled = _mm512_mul_ps(numbers, _mm512_loadu_ps(table.column_scales + t));
            const __m512 row = _mm512_add_ps(_mm512_loadu_ps(table.mean + t), scaled);
            if (t + 16 > dim) _mm512_mask_storeu_ps(out + t, static_cast<__mmask16>((1u << (dim - t)) - 1), row);
            else if (stream) _mm512_stream_ps(out + t, row);
            else _mm512_storeu_ps(out + t, row);
        }
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
            const __m512 mean = _mm512_loadu_ps(table.mean + at), scale = _mm512_loadu_ps(table.column_scales + at);
#pragma GCC unroll 4
            for (int b = 0; b < kBags; ++b) {
                const __m512 start = _mm512_mul_ps(mean, _mm512_set1_ps(shares[b]));
                const __m512 row = _mm512_add_ps(start, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[b][v]), scale));
                if (at >= dim) continue;
                const uint32_t left = dim - at < 16 ? (1u << (dim - at)) - 1 : 0xffff;
                _mm512_mask_storeu_ps(out[b] + at, static_cast<__mmask16>(left), row);
            }
        }
    }

    static void copy(const float* from, float* to, int64_t dim, bool stream) {
        stream = stream && reinterpret_cast<uintptr_t>(to) % 64 == 0;
        int64_t t = 0;
        for (; t + 16 <= dim; t += 16) {
            const __m512 row = _mm512_load_ps(from + t);
            if (stream) _mm512_stream_ps(to + t, row);
            else _mm512_storeu_ps(to + t, row);
        }
        if (t < dim)
            _mm512_mask_storeu_ps(to + t, static_cast<__mmask16>((1u << (dim - t)) - 1), _mm512_load_ps(from + t));
    }

    static void fence() { _mm_sfence(); }
};

}  // namespace

const mgqe_whole_kernels mgqe_whole_vbmi = whole_kernels<Vbmi>();
