// Tables of whole numbers, whose centroids and matrix are bytes: kernels that add and multiply them as such.
#ifndef MGQE_WHOLE_H
#define MGQE_WHOLE_H

#include <stdint.h>

#include "isa.h"
#include "mgqe_native.h"

// What a call has laid out of a table, and room for a block of rows. Each instruction set has a class for it.
struct mgqe_whole;

// Some rows of a bag, in lists by tier.
constexpr int64_t kLotRows = 32;
constexpr int32_t kLotTiers = 4;
struct mgqe_lot {
    const uint8_t* codes[kLotTiers][kLotRows];
    int64_t counts[kLotTiers];
    int64_t number() const {
        int64_t sum = 0;
        for (const int64_t count : counts) sum += count;
        return sum;
    }
};

// For tables with a byte_matrix. Sums of whole numbers are exact, so that the bits are those of the other kernels.
struct mgqe_whole_kernels {
    // mgqe_kernels' lookup.
    int32_t (*lookup)(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out, bool stream);
    mgqe_whole* (*prepare)(const mgqe_table& table);  // null without memory
    void (*release)(mgqe_whole* whole);
    // Bytes of a row: one for each coordinate, 128 more than it, filled up to a multiple of 64.
    int64_t (*row_bytes)(const mgqe_table& table);
    // Decodes the codes of a block of n rows, at most 64, of tiers tiers[i]: bytes[i] is row i until the next call.
    void (*read)(mgqe_whole* whole, const mgqe_row* rows, const int32_t* tiers, int64_t n, const uint8_t** bytes);
    // out[k] = coordinate k of a row. Up to 15 floats more are written.
    void (*row)(const mgqe_whole* whole, const uint8_t* bytes, float* out);
    // out[k] = the sum of coordinate k of n rows, at most 64; added to out[k] unless `fresh`. The same.
    void (*sum)(const mgqe_whole* whole, const uint8_t* const* bytes, int64_t n, bool fresh, float* out);
    // Whether lots can be summed, straight from their codes: of tables of levels.
    bool (*sums_lots)(const mgqe_whole* whole);
    void (*sum_lot)(const mgqe_whole* whole, const mgqe_lot& lot, bool fresh, float* out);
    // Sums of so many rows are multiplied with the matrix as whole numbers, and are exact in float32, too; 0: of none.
    int64_t (*most_multiplied)(const mgqe_whole* whole);
    // Sums coordinates of n rows, at most so many: they are bag number `bag`, less than kWholeBags.
    void (*sum_bag)(mgqe_whole* whole, const uint8_t* const* bytes, int64_t n, int64_t bag);
    // The same with a lot, added to the bag's sums unless `fresh`.
    void (*sum_lot_of_bag)(mgqe_whole* whole, const mgqe_lot& lot, bool fresh, int64_t bag);
    // out[b] = shares[b] * mean + column scales * (the sums of bag b @ matrix), b < n, as multiply_rows has it.
    void (*multiply_bags)(const mgqe_whole* whole, const float* shares, int64_t n, float* const* out);
};

constexpr int64_t kWholeBags = 4;

#if defined(__x86_64__)
extern const mgqe_whole_kernels mgqe_whole_avx2;
extern const mgqe_whole_kernels mgqe_whole_vbmi;  // AVX-512 VBMI and VNNI
#elif defined(__aarch64__)
extern const mgqe_whole_kernels mgqe_whole_neon;
extern const mgqe_whole_kernels mgqe_whole_dotprod;  // with products of bytes, of Armv8.2
#endif

// Those of the instruction set in use, or null where it has none.
const mgqe_whole_kernels* mgqe_active_whole();

#endif
