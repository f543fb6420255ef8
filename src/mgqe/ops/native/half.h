// float16 to float32, exact.
#ifndef MGQE_HALF_H
#define MGQE_HALF_H

#include <stdint.h>

namespace {

#if defined(__aarch64__)
inline void half_to_float(const uint16_t* from, float* to) {
    __fp16 half;
    __builtin_memcpy(&half, from, sizeof half);
    *to = half;
}
#else
inline float float_of_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// By integer shifts and one exact multiplication (normal numbers) or subtraction (subnormal ones).
inline void half_to_float(const uint16_t* from, float* to) {
    const uint32_t sign = (static_cast<uint32_t>(*from) & 0x8000u) << 16;
    const uint32_t rest = (static_cast<uint32_t>(*from) & 0x7fffu) << 17;
    const float normal = float_of_bits((rest >> 4) + (0xe0u << 23)) * 0x1p-112f;
    const float subnormal = float_of_bits((rest >> 17) | (126u << 23)) - 0.5f;
    const float value = rest < (1u << 27) ? subnormal : normal;
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    *to = float_of_bits(bits | sign);
}
#endif

}  // namespace

#endif
