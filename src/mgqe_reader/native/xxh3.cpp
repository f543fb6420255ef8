// XXH3 as its specification describes it, without its vector code: the compiler's is fast enough for 64 MiB.
#include "xxh3.h"

#include <string.h>

namespace {

constexpr uint64_t kPrime32[] = {0x9E3779B1u, 0x85EBCA77u, 0xC2B2AE3Du};
constexpr uint64_t kPrime64[] = {0x9E3779B185EBCA87u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u, 0x85EBCA77C2B2AE63u,
                                 0x27D4EB2F165667C5u};
constexpr size_t kStripe = 64, kLanes = 8, kStripesOfBlock = 16, kBlock = kStripe * kStripesOfBlock;

const uint8_t kSecret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

uint64_t read64(const uint8_t* at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

uint32_t read32(const uint8_t* at) {
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

uint64_t rotated(uint64_t x, int by) { return x << by | x >> (64 - by); }

uint64_t folded_product(uint64_t a, uint64_t b) {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t avalanche(uint64_t h) {
    h = (h ^ h >> 37) * 0x165667919E3779F9u;
    return h ^ h >> 32;
}

uint64_t avalanche_of_xxh64(uint64_t h) {
    h = (h ^ h >> 33) * kPrime64[1];
    h = (h ^ h >> 29) * kPrime64[2];
    return h ^ h >> 32;
}

uint64_t mix16(const uint8_t* in, const uint8_t* secret) {
    return folded_product(read64(in) ^ read64(secret), read64(in + 8) ^ read64(secret + 8));
}

uint64_t up_to_16(const uint8_t* in, size_t length) {
    if (length > 8) {
        const uint64_t low = read64(in) ^ read64(kSecret + 24) ^ read64(kSecret + 32);
        const uint64_t high = read64(in + length - 8) ^ read64(kSecret + 40) ^ read64(kSecret + 48);
        return avalanche(length + __builtin_bswap64(low) + high + folded_product(low, high));
    }
    if (length >= 4) {
        const uint64_t flip = read64(kSecret + 8) ^ read64(kSecret + 16);
        uint64_t h = (read32(in + length - 4) + (static_cast<uint64_t>(read32(in)) << 32)) ^ flip;
        h = (h ^ rotated(h, 49) ^ rotated(h, 24)) * 0x9FB21C651E98DF25u;
        h = (h ^ ((h >> 35) + length)) * 0x9FB21C651E98DF25u;
        return h ^ h >> 28;
    }
    if (length == 0) return avalanche_of_xxh64(read64(kSecret + 56) ^ read64(kSecret + 64));
    const uint32_t joined = static_cast<uint32_t>(in[0]) << 16 | static_cast<uint32_t>(in[length >> 1]) << 24 |
                            in[length - 1] | static_cast<uint32_t>(length) << 8;
    return avalanche_of_xxh64(joined ^ static_cast<uint64_t>(read32(kSecret) ^ read32(kSecret + 4)));
}

uint64_t up_to_240(const uint8_t* in, size_t length) {
    uint64_t sum = length * kPrime64[0];
    if (length <= 128) {
        for (size_t i = (length - 1) / 32 + 1; i-- > 0;)
            sum += mix16(in + 16 * i, kSecret + 32 * i) + mix16(in + length - 16 * (i + 1), kSecret + 32 * i + 16);
        return avalanche(sum);
    }
    for (size_t i = 0; i < 8; ++i) sum += mix16(in + 16 * i, kSecret + 16 * i);
    sum = avalanche(sum);
    for (size_t i = 8; i < length / 16; ++i) sum += mix16(in + 16 * i, kSecret + 16 * (i - 8) + 3);
    return avalanche(sum + mix16(in + length - 16, kSecret + 136 - 17));
}

void accumulate(uint64_t* sums, const uint8_t* in, const uint8_t* secret) {
    for (size_t i = 0; i < kLanes; ++i) {
        const uint64_t word = read64(in + 8 * i), key = word ^ read64(secret + 8 * i);
        sums[i ^ 1] += word;
        sums[i] += (key & 0xFFFFFFFFu) * (key >> 32);
    }
}

uint64_t long_input(const uint8_t* in, size_t length) {
    uint64_t sums[kLanes] = {kPrime32[2], kPrime64[0], kPrime64[1], kPrime64[2],
                             kPrime64[3], kPrime32[1], kPrime64[4], kPrime32[0]};
    const size_t blocks = (length - 1) / kBlock;
    for (size_t block = 0; block < blocks; ++block, in += kBlock) {
        for (size_t i = 0; i < kStripesOfBlock; ++i) accumulate(sums, in + kStripe * i, kSecret + 8 * i);
        for (size_t i = 0; i < kLanes; ++i)
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ read64(kSecret + 128 + 8 * i)) * kPrime32[0];
    }
    const size_t rest = length - blocks * kBlock;
    for (size_t i = 0; i < (rest - 1) / kStripe; ++i) accumulate(sums, in + kStripe * i, kSecret + 8 * i);
    accumulate(sums, in + rest - kStripe, kSecret + 121);
    uint64_t result = length * kPrime64[0];
    for (size_t i = 0; i < kLanes; i += 2)
        result += folded_product(sums[i] ^ read64(kSecret + 11 + 8 * i), sums[i + 1] ^ read64(kSecret + 19 + 8 * i));
    return avalanche(result);
}

}  // namespace

uint64_t xxh3_64(const void* data, size_t length) {
    const uint8_t* const in = static_cast<const uint8_t*>(data);
    return length <= 16 ? up_to_16(in, length) : length <= 240 ? up_to_240(in, length) : long_input(in, length);
}

std::string xxh3_digest(const void* data, size_t length) {
    const uint64_t hash = __builtin_bswap64(xxh3_64(data, length));
    return std::string(reinterpret_cast<const char*>(&hash), sizeof hash);
}
