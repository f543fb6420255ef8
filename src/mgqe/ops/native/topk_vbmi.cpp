// The scan with AVX-512 VBMI: 64 bytes at a time, looked up in tables of 64 or 128 entries.
#include <immintrin.h>

#include "columns_vbmi.h"
#include "topk_kernel.h"

namespace {

struct Vectors {
    static constexpr bool kFilters = true;
    static constexpr int kLanes = 64;
    static constexpr int kVectors = 4;
    using Bytes = V;
    struct Words {
        V even, odd;  // of the rows
    };

    template <int kEntries>
    struct Table {
        static constexpr int kParts = kEntries < 64 ? 1 : kEntries / 64;
        V parts[kParts];
        explicit Table(const uint8_t* from) {
            if (kEntries == 16) {
                parts[0] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
                return;
            }
            for (int i = 0; i < kParts; ++i) parts[i] = _mm512_loadu_si512(from + 64 * i);
        }
        Bytes look_up(Bytes codes) const {
            if constexpr (kEntries == 16) return _mm512_shuffle_epi8(parts[0], codes);
            if constexpr (kEntries == 64) return _mm512_permutexvar_epi8(codes, parts[0]);
            if constexpr (kEntries == 128) return _mm512_permutex2var_epi8(parts[0], codes, parts[1]);
            if constexpr (kEntries == 256) {
                const V low = _mm512_permutex2var_epi8(parts[0], codes, parts[1]);
                const V high = _mm512_permutex2var_epi8(parts[2], codes, parts[3]);
                return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
            }
        }
    };

    static Bytes zero() { return _mm512_setzero_si512(); }
    static Bytes load(const uint8_t* p) {
        V loaded = _mm512_load_si512(p);
        // Else the compiler loads once for each use, and loads are what this waits for; copies are free.
        __asm__("" : "+v"(loaded));
        return loaded;
    }
    static Bytes add(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
    static Words no_words() { return {zero(), zero()}; }
    static Words widen(Words to, Bytes from) {
        return {_mm512_add_epi16(to.even, _mm512_and_si512(from, _mm512_set1_epi16(255))),
                _mm512_add_epi16(to.odd, _mm512_srli_epi16(from, 8))};
    }
    static void at_least(const Bytes* sums, int64_t needed, uint64_t* masks, int64_t row) {
        const V least = _mm512_set1_epi8(static_cast<char>(needed));
        for (int v = 0; v < kVectors; ++v)
            masks[row / 64 + v] = needed < 256 ? _mm512_cmpge_epu8_mask(sums[v], least) : 0;
    }
    static void words_at_least(const Words* words, int64_t needed, uint64_t* masks, int64_t row) {
        const V least = _mm512_set1_epi16(static_cast<short>(needed));
        for (int v = 0; v < kVectors; ++v) {
            const V even = _mm512_maskz_set1_epi16(_mm512_cmpge_epu16_mask(words[v].even, least), 0x00ff);
            const V odd = _mm512_maskz_set1_epi16(_mm512_cmpge_epu16_mask(words[v].odd, least), -256);
            masks[row / 64 + v] = _mm512_movepi8_mask(_mm512_or_si512(even, odd));
        }
    }

    static void columns(const PackedBlocks& from, uint8_t* out, int64_t step) { columns_vbmi(from, out, step); }
};

struct Products {
    static constexpr int kLanes = 16;
    using Floats = __m512;
    static Floats all(float x) { return _mm512_set1_ps(x); }
    static Floats load(const float* p) { return _mm512_loadu_ps(p); }
    static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
};

}  // namespace

int32_t mgqe_scan_vbmi(const mgqe_scan& scan, int64_t begin, int64_t end, mgqe_worker& worker) {
    return Scanner<Vectors, Products>(scan, worker).run(begin, end);
}
