// The scan with AVX2: bytes are looked up 16 entries at a time, larger tables chosen from by the code's upper bits.
#include <immintrin.h>

#include "columns.h"
#include "topk_kernel.h"

namespace {

struct Vectors {
    static constexpr bool kFilters = true;
    static constexpr int kLanes = 32;
    static constexpr int kVectors = 4;
    using Bytes = __m256i;
    struct Words {
        __m256i even, odd;  // of the rows
    };

    template <int kEntries>
    struct Table {
        const uint8_t* const from;
        explicit Table(const uint8_t* p) : from(p) {}

        static Bytes entries(const uint8_t* p) {
            return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        }
        // The upper half where the top bit of `choice` says so.
        template <int kSize>
        static Bytes look_up_in(const uint8_t* p, Bytes low, const Bytes* choices) {
            if constexpr (kSize == 16) {
                return _mm256_shuffle_epi8(entries(p), low);
            } else {
                return _mm256_blendv_epi8(look_up_in<kSize / 2>(p, low, choices - 1),
                                          look_up_in<kSize / 2>(p + kSize / 2, low, choices - 1), *choices);
            }
        }
        Bytes look_up(Bytes codes) const {
            const Bytes low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
            // Bit 4, 5, 6 and 7 of the code on top.
            Bytes choices[4];
            choices[3] = codes;
            for (int b = 2; b >= 0; --b) choices[b] = _mm256_add_epi8(choices[b + 1], choices[b + 1]);
            constexpr int kLast = kEntries == 256 ? 3 : kEntries == 128 ? 2 : 1;
            return look_up_in<kEntries>(from, low, choices + kLast);
        }
    };

    static Bytes zero() { return _mm256_setzero_si256(); }
    static Bytes load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Bytes add(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
    static Words no_words() { return {zero(), zero()}; }
    static Words widen(Words to, Bytes from) {
        return {_mm256_add_epi16(to.even, _mm256_and_si256(from, _mm256_set1_epi16(255))),
                _mm256_add_epi16(to.odd, _mm256_srli_epi16(from, 8))};
    }
    static uint64_t bits(Bytes lanes) { return static_cast<uint32_t>(_mm256_movemask_epi8(lanes)); }
    static void at_least(const Bytes* sums, int64_t needed, uint64_t* masks, int64_t row) {
        const Bytes least = _mm256_set1_epi8(static_cast<char>(needed));
        for (int v = 0; v < kVectors; v += 2) {
            uint64_t mask = 0;
            if (needed < 256)
                for (int half = 0; half < 2; ++half)
                    mask |= bits(_mm256_cmpeq_epi8(_mm256_max_epu8(sums[v + half], least), sums[v + half]))
                            << (32 * half);
            masks[(row + v * kLanes) / 64] = mask;
        }
    }
    static Bytes reaches(Bytes words, Bytes least) {
        return _mm256_cmpeq_epi16(_mm256_max_epu16(words, least), words);
    }
    static void words_at_least(const Words* words, int64_t needed, uint64_t* masks, int64_t row) {
        const Bytes least = _mm256_set1_epi16(static_cast<short>(needed));
        for (int v = 0; v < kVectors; v += 2) {
            uint64_t mask = 0;
            for (int half = 0; half < 2; ++half) {
                const Bytes even = _mm256_and_si256(reaches(words[v + half].even, least), _mm256_set1_epi16(255));
                const Bytes odd = _mm256_slli_epi16(reaches(words[v + half].odd, least), 8);
                mask |= bits(_mm256_or_si256(even, odd)) << (32 * half);
            }
            masks[(row + v * kLanes) / 64] = mask;
        }
    }

    static void columns(const PackedBlocks& from, uint8_t* out, int64_t step) { spread_columns(from, out, step); }
};

struct Products {
    static constexpr int kLanes = 8;
    using Floats = __m256;
    static Floats all(float x) { return _mm256_set1_ps(x); }
    static Floats load(const float* p) { return _mm256_loadu_ps(p); }
    static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static uint32_t at_least(Floats a, Floats b) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
    }
};

}  // namespace

int32_t mgqe_scan_avx2(const mgqe_scan& scan, int64_t begin, int64_t end, mgqe_worker& worker) {
    return Scanner<Vectors, Products>(scan, worker).run(begin, end);
}
