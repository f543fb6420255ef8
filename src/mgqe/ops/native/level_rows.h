// Tiers whose coordinates share levels (mgqe_tier's `levels`): how their packed rows become rows of bytes, and what the
// kernels that add products of bytes (level_products.cpp) do with those.
#ifndef MGQE_LEVEL_ROWS_H
#define MGQE_LEVEL_ROWS_H

#include <stdint.h>

#include "mgqe_native.h"

// One vector of bytes, 64 / together of each row that is taken at once: eight words of eight codes.
struct mgqe_level_vector {
    uint8_t from[64];    // where each byte of the words is among 64 bytes of the rows
    uint8_t shifts[64];  // where each code begins in its word
    uint8_t masks[64];   // the bits of each code
    uint8_t places[64];  // of a code's first level: 2^bits, 0 for seven bits
    uint64_t lanes[3];   // whose codes have at most five bits, six, and seven
    int64_t at;          // of the rows: the first of the 64 bytes
};

// The bytes of rows i * together to (i + 1) * together - 1 are vectors i * number to (i + 1) * number - 1. In vector v,
// 64 / together bytes of each row follow one another: its coordinates from v * 64 / together on, plus 128. Bytes beyond
// the coordinates mean nothing.
struct mgqe_level_rows {
    mgqe_level_vector* vectors;
    int64_t number;
    int64_t together;  // 1, 2 or 4
    int64_t row_bytes;
    uint8_t levels[256];  // those of b bits from 2^b, those of seven from 128
};

constexpr int64_t kLevelLot = 16;          // queries that are multiplied with together
constexpr int64_t kLevelStep = 128;        // rows that are unpacked at a time
constexpr int64_t kMostLevelRows = 1024;   // of a call

// Queries in whole numbers, for one search. Coordinates beyond the last are 0.
struct mgqe_level_queries {
    int64_t number;
    int64_t coordinates;     // of a query, a multiple of 64
    const int8_t* values;    // (number, coordinates)
    const int8_t* by_lot;    // (lots, coordinates / 4, kLevelLot, 4)
    const int32_t* biases;   // (lots, 256, kLevelLot): what a row's level of bias adds to the sum; or null
};

inline int64_t level_bytes(const mgqe_level_rows& of) { return kLevelStep / of.together * of.number * 64; }

// Rows of a tile, at most kMostLevelRows, whose sum of products reaches needs[q], of each query: passed (queries,
// kMostLevelRows), counts (queries). needs has a multiple of kLevelLot numbers. No byte is read from `end` on; `upcoming`
// is asked for meanwhile. `bias_codes`: of the rows, where there are biases. `bytes`: room for level_bytes(of).
void mgqe_pass_levels(const mgqe_level_rows& of, const uint8_t* codes, const uint8_t* end, int64_t rows,
                      const uint8_t* upcoming, const mgqe_level_queries& queries, const int32_t* needs,
                      const uint8_t* bias_codes, uint8_t* bytes, uint16_t* passed, int32_t* counts);

// A row of a tile to be scored with a query: start + values[0] * coordinate 0, to which the other products are added in
// order, each product and sum rounded.
struct mgqe_level_hit {
    const float* values;  // (D, filled up to a multiple of 64)
    float start;
    int32_t row;
};

void mgqe_score_levels(const mgqe_level_rows& of, const uint8_t* codes, const uint8_t* end,
                       const mgqe_level_hit* hits, int64_t count, int64_t D, uint8_t* bytes, float* scores);

// Whether this processor, as it is used, multiplies bytes four at a time and looks 64 of them up at once.
bool mgqe_has_byte_products();

#endif
