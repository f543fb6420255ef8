// Tables of whole numbers with AVX2: codes and levels by shuffles of 16 bytes, products of 16-bit numbers.
#include <immintrin.h>

#include "whole_eights.h"
#include "whole_kernel.h"

namespace {

constexpr int kSegment = 16;   // levels in a register
constexpr int kSegments = 8;   // of codes of 7 bits, and of all others
constexpr uint8_t kNone = 128;  // the place of a code in the other's levels: found as 0

inline __m256i load(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }
inline __m128i load_half(const void* from) { return _mm_load_si128(static_cast<const __m128i*>(from)); }
template <int kHalf>
inline __m128i load_row(const uint8_t* row, const Halves& halves) {
    return reinterpret_cast<__m128i>(load_codes<kHalf>(row, halves));
}

// Of rows, what whole_kernel.h wants and the matrix, too.
struct Lanes {
    static constexpr int kLanes = 8;
    typedef int32_t Ints __attribute__((vector_size(32)));
    typedef float Floats __attribute__((vector_size(32)));
    typedef uint16_t Words __attribute__((vector_size(32)));

    static Ints widen(const uint8_t* from) {
        return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
    static Ints widen(const uint16_t* from) {
        return reinterpret_cast<Ints>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
    static void write(float* to, Floats row, int64_t left, bool around) {
        if (left < kLanes)
            for (int64_t t = 0; t < left; ++t) to[t] = row[t];
        else if (around)
            _mm256_stream_ps(to, row);
        else
            _mm256_storeu_ps(to, row);
    }
};

// The matrix as the table has it, columns of four coordinates, a byte each; and, for several rows at once, widened.
class Matrix {
public:
    explicit Matrix(const mgqe_table& of)
        : table(of), stride(round_up(of.num_coordinates, 16)), step(4 * round_up(of.embedding_dim, MGQE_MATRIX_STEP)),
          quads((of.num_coordinates + 3) / 4) {}
    Matrix(const Matrix&) = delete;
    Matrix& operator=(const Matrix&) = delete;
    ~Matrix() { free(words); }

    bool reserve() {
        void* memory = nullptr;
        const size_t count = static_cast<size_t>(kTogether * stride + quads * step);
        if (posix_memalign(&memory, 32, count * sizeof(uint16_t)) != 0) return false;
        words = static_cast<uint16_t*>(memory);
        wide = reinterpret_cast<int16_t*>(words + kTogether * stride);
        return true;
    }

    template <int kRows>
    void multiply_rows(const uint8_t* const* bytes, const mgqe_row* rows, bool stream) const {
        if (kRows > 1 && !is_wide) widen();
        for (int r = 0; r < kRows; ++r)
            for (int64_t k = 0; k < table.num_coordinates; k += 16) {
                const __m128i some = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes[r] + k));
                __m256i* const to = reinterpret_cast<__m256i*>(words + r * stride + k);
                _mm256_store_si256(to, _mm256_cvtepu8_epi16(some));
            }
        for (int64_t first = 0; first < table.embedding_dim; first += 8) multiply_columns<kRows>(rows, first, stream);
    }

private:
    const mgqe_table& table;
    const int64_t stride, step, quads;
    uint16_t* words = nullptr;  // kTogether rows
    int16_t* wide = nullptr;    // (quads, step)
    mutable bool is_wide = false;

    static __m256i widened(const int8_t* from) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    void widen() const {
        for (int64_t at = 0; at < quads * step; at += 16)
            _mm256_store_si256(reinterpret_cast<__m256i*>(wide + at), widened(table.byte_matrix + at));
        is_wide = true;
    }

    // Columns [first, first + 8) of kRows rows: mean + scale * (coordinates @ matrix). A column has two sums.
    template <int kRows>
    void multiply_columns(const mgqe_row* rows, int64_t first, bool stream) const {
        const int64_t dim = table.embedding_dim;
        __m256i sums[kRows][2];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
        for (int64_t quad = 0, from = 4 * first; quad < quads; ++quad, from += step) {
            const __m256i low = kRows > 1 ? load(wide + from) : widened(table.byte_matrix + from);
            const __m256i high = kRows > 1 ? load(wide + from + 16) : widened(table.byte_matrix + from + 16);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                int64_t four;
                __builtin_memcpy(&four, words + r * stride + 4 * quad, 8);
                const __m256i z = _mm256_set1_epi64x(four);
                sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(z, low));
                sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(z, high));
            }
        }
        const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table.byte_sums + first));
        const auto mean = load_vector<Lanes::Floats>(table.mean + first);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const __m256i pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[r][0], sums[r][1]), 0xd8);
            const auto total = reinterpret_cast<Lanes::Ints>(_mm256_add_epi32(start, pairs));
            float* const to = rows[r].out + first;
            const auto row = add_scaled<Lanes>(mean, table, first, total);
            Lanes::write(to, row, dim - first, goes_around<Lanes>(to, stream));
        }
    }
};

struct Avx2 : Lanes, EightPlaces {
    using Matrix = ::Matrix;

    // Levels are in segments of 16. A code's place less 16, less 32, ... finds in one segment after another how its
    // level differs from the one 16 before, until the place is negative, which finds zero. Codes of 7 bits are apart.
    static constexpr int kLevels = 32;
    struct Segments {
        alignas(32) uint8_t mask[kLevels], start[kLevels];
        alignas(16) uint8_t changes[kSegments][kSegment];
        int count;  // 0: no such code
    };
    struct LevelCodes {
        EightCodes eights[kLevels / kAtOnce];
        Segments few, sevens;
    };
    static void lay_out_levels(const mgqe_tier& tier, const Copy* copies, int count, LevelCodes& codes) {
        for (int e = 0; e < kLevels / kAtOnce; ++e) {
            const int left = count - kAtOnce * e;
            if (left > 0) codes.eights[e].lay_out(tier, copies + kAtOnce * e, left < kAtOnce ? left : kAtOnce);
            else codes.eights[e].halves = codes.eights[0].halves;
        }
        lay_out_segments(tier, copies, count, 0, 6, codes.few);
        lay_out_segments(tier, copies, count, 7, 7, codes.sevens);
    }
    // Of the codes of some numbers of bits.
    static void lay_out_segments(const mgqe_tier& tier, const Copy* copies, int count, int least, int most,
                                 Segments& to) {
        const SegmentRange range(copies, count, least, most, kSegment);
        const int first = range.first, last = range.last;
        memset(to.start, kNone, kLevels);
        for (int at = 0; at < count; ++at) {
            const int bits = copies[at].piece->bits;
            if (bits < least || bits > most) continue;
            to.mask[at] = static_cast<uint8_t>((1 << bits) - 1);
            to.start[at] = static_cast<uint8_t>((1 << bits) - kSegment * first);
        }
        uint8_t levels[256];
        copy_levels(tier, levels);
        for (int segment = first; segment < last; ++segment)
            for (int t = kSegment * segment; t < kSegment * (segment + 1); ++t) {
                const int before = segment == first ? 0 : levels[t - kSegment];
                to.changes[segment - first][t % kSegment] = static_cast<uint8_t>(levels[t] ^ before);
            }
        to.count = last > first ? last - first : 0;
    }
    // Calls use(i, levels) with those of row i.
    template <typename Use>
    static void decode_levels(const LevelCodes& codes, const uint8_t* const* rows, int64_t n, const Use& use) {
        with_half<16>(codes.eights[0].halves.half, [&](auto half) {
            if (codes.sevens.count) decode_some<half.kHalf, kSegments>(codes, rows, n, use);
            else decode_some<half.kHalf, 0>(codes, rows, n, use);
        });
    }
    template <int kHalf, int kSevens, typename Use>
    static void decode_some(const LevelCodes& codes, const uint8_t* const* rows, int64_t n, const Use& use) {
        const int count = codes.few.count;
        if (count <= 1) decode_group<kHalf, kSevens, 1>(codes, rows, n, use);  // none are found as zeros
        else if (count <= 4) decode_group<kHalf, kSevens, 4>(codes, rows, n, use);
        else decode_group<kHalf, kSevens, kSegments>(codes, rows, n, use);
    }
    template <int kHalf, int kSevens, int kFew, typename Use>
    static void decode_group(const LevelCodes& codes, const uint8_t* const* rows, int64_t n, const Use& use) {
        const EightCodes* const eights = codes.eights;
        // What is packed together comes from every other eight.
        const __m256i from[2] = {both(eights[0].from, eights[2].from), both(eights[1].from, eights[3].from)};
        const __m256i lift[2] = {both(eights[0].lift, eights[2].lift), both(eights[1].lift, eights[3].lift)};
        for (int64_t i = 0; i < n; ++i) {
            __m256i code[2];
#pragma GCC unroll 2
            for (int odd = 0; odd < 2; ++odd) {
                const __m256i bytes = _mm256_set_m128i(load_row<kHalf>(rows[i], eights[odd + 2].halves),
                                                       load_row<kHalf>(rows[i], eights[odd].halves));
                const __m256i pairs = _mm256_shuffle_epi8(bytes, from[odd]);
                code[odd] = _mm256_srli_epi16(_mm256_mullo_epi16(pairs, lift[odd]), 8);
            }
            const __m256i packed = _mm256_packus_epi16(code[0], code[1]);
            const __m256i found = _mm256_xor_si256(find<kFew>(codes.few, packed), find<kSevens>(codes.sevens, packed));
            use(i, reinterpret_cast<Words>(found));
        }
    }
    static __m256i both(const void* low, const void* high) { return _mm256_set_m128i(load_half(high), load_half(low)); }
    // The levels of codes with bits above them, of the first kCount segments.
    template <int kCount>
    static __m256i find(const Segments& segments, __m256i codes) {
        __m256i found = _mm256_setzero_si256();
        __m256i place = _mm256_add_epi8(_mm256_and_si256(codes, load(segments.mask)), load(segments.start));
#pragma GCC unroll 8
        for (int segment = 0; segment < kCount; ++segment) {
            const __m256i changes = _mm256_broadcastsi128_si256(load_half(segments.changes[segment]));
            found = _mm256_xor_si256(found, _mm256_shuffle_epi8(changes, place));
            place = _mm256_subs_epi8(place, _mm256_set1_epi8(kSegment));
        }
        return found;
    }

    static constexpr bool kDecodesRows = false;
    static constexpr bool kMultipliesWords = false;  // no faster than float32

    static void fence() { _mm_sfence(); }
};

}  // namespace

const mgqe_whole_kernels mgqe_whole_avx2 = whole_kernels<Avx2>();
