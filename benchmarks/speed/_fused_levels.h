// What the loops with AVX-512 share: levels of a row of codes, in registers.
#ifndef BENCHMARKS_FUSED_LEVELS_H
#define BENCHMARKS_FUSED_LEVELS_H

#include <stdint.h>

#include <immintrin.h>

namespace {

using V = __m512i;

inline V load(const void* from) { return _mm512_loadu_si512(from); }

constexpr int64_t kLayoutBytes = 512;

// Levels of 64 codes. `layout`: from where each byte of eight words of eight codes comes, where a code begins in its
// word, its bits, and its first level; then 256 levels. `kinds`: 1 where codes have at most five bits, 2: six, 4: seven.
struct Levels {
    const V from, shifts, masks, places, a, b, c, d;
    const __mmask64 sixes, sevens;
    explicit Levels(const uint8_t* layout)
        : from(load(layout)), shifts(load(layout + 64)), masks(load(layout + 128)), places(load(layout + 192)),
          a(load(layout + 256)), b(load(layout + 320)), c(load(layout + 384)), d(load(layout + 448)),
          sixes(_mm512_movepi8_mask(places) | _mm512_test_epi8_mask(places, _mm512_set1_epi8(64))),
          sevens(_mm512_movepi8_mask(places)) {}
    template <int kKinds>
    V operator()(V row) const {
        const V words = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(from, row));
        const V named = _mm512_ternarylogic_epi64(words, masks, places, 0xea);  // words & masks | places
        V found = kKinds & 1 ? _mm512_permutexvar_epi8(named, a) : _mm512_permutexvar_epi8(named, b);
        if (kKinds == 3 || kKinds == 7) found = _mm512_mask_permutexvar_epi8(found, sixes, named, b);
        if (kKinds & 4) found = _mm512_mask_mov_epi8(found, sevens, _mm512_permutex2var_epi8(c, named, d));
        return found;
    }
};

// Calls use.operator()<kKinds>() with `kinds` as a constant.
template <int kMost = 7, typename Use>
int64_t with_kinds(int64_t kinds, const Use& use) {
    if constexpr (kMost > 1)
        if (kinds != kMost) return with_kinds<kMost - 1>(kinds, use);
    return use.template operator()<kMost>();
}

}  // namespace

#endif
