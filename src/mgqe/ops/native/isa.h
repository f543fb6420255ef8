// The kernels that exist once an instruction set, as a table of function pointers filled by isa_*.cpp.
//
// Each isa_*.cpp is compiled with its own flags, so it must not emit any inline function that another unit
// could pick up at link time: everything it includes lives in anonymous namespaces and no std:: template is used.
#ifndef MGQE_ISA_H
#define MGQE_ISA_H

#include <stdint.h>

#include "mgqe_native.h"

// One subspace's centroids, transposed for lanes over k: values (width, stride) less the shift, and start (stride), what
// a score starts from: the bias, or half of the squared length. stride is a multiple of 16; the padding beyond `count`
// starts from NaN, so that it never wins.
struct mgqe_lanes {
    const float* values;
    const float* start;
    const float* centroids;  // (count, width), as given
    const float* bias;       // (count), as given, or null
    const float* shift;      // (width), taken off centroids and rows; zeros where there is a bias
    double longest;          // the largest squared length of a centroid less the shift, numbers not finite taken as 0
    double largest_bias;     // the largest size of a finite bias
    int64_t count;
    int64_t stride;
    int64_t width;
};

// The centroids of one subspace of one number, in ascending order without repetition, for a search by halves. Numbers
// above low[i] and from high[i + 1] on are nearer to centroid i + 1 than to i; what lies between the two is too close to
// tell in single precision. There are 2^bits of each, bits from 5 to 8.
struct mgqe_levels {
    const float* low;      // the largest float where there is no further centroid
    const float* high;     // high[0] is the least float
    const float* top;      // (32) every 2^(bits - 5)th of low; then, in order, those half-way between these (32)
    const float* seventh;  // (64) those half-way between all of these, where there are as many
    const int32_t* codes;  // of each
    int32_t bits;
    int32_t in_order;  // whether codes[i] is i
    float gap;         // high[i + 1] is no further from low[i]
};

// Numbers that are searched for at once: a bit each in the answer.
constexpr int64_t kSearchRows = 64;

// Rows that an assign kernel takes at once: a multiple of the rows that share registers.
constexpr int64_t kAssignRows = 48;

// One row to decode: its packed codes and where its floats go.
struct mgqe_row {
    const uint8_t* codes;
    float* out;
};

constexpr int32_t kMaxTiers = 256;

// Decodes n rows of one tier; chosen for the tier's centroid type, width and code layout.
typedef void (*mgqe_decoder)(const mgqe_tier& tier, const mgqe_row* rows, int64_t n, bool stream);

// Floats of a row that can be written around the caches.
constexpr int64_t kStage = 1024;

// Bags [begin, end) of a checked call; the fields are mgqe_bag's. `books`: a float32 codebook a tier, laid out as
// (num_subspaces, 256, width), or null where tiers differ in more than their bits and codebooks.
struct mgqe_bags {
    const int64_t* ids;
    const int64_t* offsets;
    const float* weights;
    float* out;
    const float* const* books;
    int64_t n;
    int64_t count;
    int32_t mode;
};

struct mgqe_kernels {
    // Fills in what a subspace's lanes point at, and their sizes, from the centroids and the bias as given.
    void (*lay_out)(mgqe_lanes& lanes, float* values, float* start, float* shift);
    // codes[i * codes_step] = nearest centroid of rows[i * row_step ... + width), i < n. scratch (kAssignRows, width).
    void (*assign)(const mgqe_lanes& lanes, const float* rows, int64_t row_step, int64_t n, int32_t* codes,
                   int64_t codes_step, float* scratch);
    // codes[i] = nearest of the levels to column[i], i < kSearchRows. Returns a bit for each one that is to be decided
    // exactly, such as numbers that are not finite.
    uint64_t (*search)(const mgqe_levels& levels, const float* column, int32_t* codes);
    // Decodes ids [begin, end) of a checked table. MGQE_CORRUPT if its tier map points outside a tier. `stream`: the
    // output is too large for the caches, write around them (rows of at most kStage floats, 16-byte aligned).
    int32_t (*lookup)(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out,
                   bool stream);
    // Pools bags [begin, end) of a checked table. MGQE_CORRUPT as above, MGQE_NO_MEMORY.
    int32_t (*bag)(const mgqe_table& table, const mgqe_bags& bags, int64_t begin, int64_t end);
    // Writes a tier's centroids as (num_subspaces, 256, width) float32; codes beyond them repeat the last one.
    void (*bag_book)(const mgqe_tier& tier, float* book);
    // Dense rows (n, num_coordinates) times the table's matrix: out (n, embedding_dim). Nothing else of it is read.
    void (*multiply)(const mgqe_table& table, const float* rows, int64_t n, float* out);
    // Squared lengths of rows [first, first + count) of a tier of a table with a matrix (matrix_kernel.h).
    void (*square_rows)(const mgqe_table& table, int64_t tier, int64_t first, int64_t count, float* scratch,
                        float* rows, float* squares);
};

extern const mgqe_kernels mgqe_kernels_scalar;
#if defined(__x86_64__)
extern const mgqe_kernels mgqe_kernels_avx2;
extern const mgqe_kernels mgqe_kernels_avx512;
#endif

// The table in use.
const mgqe_kernels& mgqe_active();

// Whether a table's numbers fit together (lookup.cpp).
bool mgqe_well_formed(const mgqe_table& table);

#endif
