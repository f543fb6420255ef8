// Chooses the instruction set at run time.
#include <atomic>

#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"
#include "topk.h"
#include "whole.h"

#include <pthread.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

bool supported(int32_t isa) {
    if (isa == MGQE_SCALAR) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned a = 0, b = 0, c = 0, d = 0;
    // Asked by hand: __builtin_cpu_supports does not know "f16c" in every compiler.
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
    const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    if (isa == MGQE_AVX2) return avx2;
    if (isa == MGQE_AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#elif defined(__aarch64__)
    if (isa == MGQE_NEON) return true;
#endif
    return false;
}

int32_t best() {
    const int32_t preferred[] = {MGQE_NEON, MGQE_AVX512, MGQE_AVX2};
    for (int32_t isa : preferred)
        if (supported(isa)) return isa;
    return MGQE_SCALAR;
}

#if defined(__x86_64__)
// Byte look-ups of 128 entries: newer than the rest of AVX-512.
bool has_vbmi() {
    static const bool has = __builtin_cpu_supports("avx512vbmi");
    return has;
}
#endif

#if defined(__x86_64__)
bool has_vnni() {
    static const bool has = __builtin_cpu_supports("avx512vnni");
    return has;
}
#endif

#if defined(__aarch64__)
// Sums of four products of bytes: newer than the rest of NEON. All of Apple's processors have them.
bool has_dotprod() {
#if defined(__linux__)
    constexpr unsigned long kDotprod = 1 << 20;  // HWCAP_ASIMDDP, which old headers lack
    static const bool has = getauxval(AT_HWCAP) & kDotprod;
    return has;
#else
    return true;
#endif
}
#endif

std::atomic<int32_t> active{-1};
std::atomic<bool> forked{false};

__attribute__((constructor)) void watch_forks() {
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
}

}  // namespace

bool mgqe_forked() { return forked.load(std::memory_order_relaxed); }

int32_t mgqe_abi_version() { return MGQE_ABI_VERSION; }

int32_t mgqe_get_isa() {
    int32_t isa = active.load(std::memory_order_relaxed);
    if (isa < 0) {
        isa = best();
        active.store(isa, std::memory_order_relaxed);
    }
    return isa;
}

int32_t mgqe_set_isa(int32_t isa) {
    if (isa < 0) isa = best();
    if (!supported(isa)) return MGQE_UNSUPPORTED;
    active.store(isa, std::memory_order_relaxed);
    return MGQE_OK;
}

int32_t mgqe_has_openmp() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

const mgqe_kernels& mgqe_active() {
    switch (mgqe_get_isa()) {
#if defined(__x86_64__)
        case MGQE_AVX512:
            return mgqe_kernels_avx512;
        case MGQE_AVX2:
            return mgqe_kernels_avx2;
#endif
        default:
            // On arm64 NEON is the baseline: the "scalar" table is compiled to it.
            return mgqe_kernels_scalar;
    }
}

#if !defined(__x86_64__)
void mgqe_pass_levels(const mgqe_level_rows&, const uint8_t*, const uint8_t*, int64_t, const uint8_t*,
                      const mgqe_level_queries&, const int32_t*, const uint8_t*, uint8_t*, uint16_t*, int32_t*) {}
void mgqe_score_levels(const mgqe_level_rows&, const uint8_t*, const uint8_t*, const mgqe_level_hit*, int64_t, int64_t,
                       uint8_t*, float*) {}
#endif

bool mgqe_has_byte_products() {
#if defined(__x86_64__)
    return mgqe_get_isa() == MGQE_AVX512 && has_vbmi() && has_vnni();
#else
    return false;
#endif
}

const mgqe_whole_kernels* mgqe_active_whole() {
#if defined(__x86_64__)
    const int32_t isa = mgqe_get_isa();
    if (mgqe_has_byte_products()) return &mgqe_whole_vbmi;
    if (isa == MGQE_AVX512 || isa == MGQE_AVX2) return &mgqe_whole_avx2;
#elif defined(__aarch64__)
    if (mgqe_get_isa() == MGQE_NEON) return has_dotprod() ? &mgqe_whole_dotprod : &mgqe_whole_neon;
#endif
    return nullptr;
}

mgqe_scanner mgqe_active_scanner() {
    switch (mgqe_get_isa()) {
#if defined(__x86_64__)
        case MGQE_AVX512:
            return has_vbmi() ? mgqe_scan_vbmi : mgqe_scan_avx2;
        case MGQE_AVX2:
            return mgqe_scan_avx2;
#endif
        default:
            return mgqe_scan_scalar;
    }
}

bool mgqe_has_filter(int32_t bits) { return bits <= 8 && mgqe_get_isa() != MGQE_SCALAR; }
