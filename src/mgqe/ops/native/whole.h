// Tables of whole numbers, whose centroids and matrix are bytes: kernels that add and multiply them as such.
#ifndef MGQE_WHOLE_H
#define MGQE_WHOLE_H

#include <stdint.h>

#include "isa.h"
#include "mgqe_native.h"

// What a call has laid out of a table, and room for a block of rows. Each instruction set has a class for it.
struct mgqe_whole;

// For tables with a byte_matrix. Sums of whole numbers are exact, so that the bits are those of the other kernels.
struct mgqe_whole_kernels {
    // mgqe_kernels' lookup.
    int32_t (*lookup)(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out, bool stream);
    mgqe_whole* (*prepare)(const mgqe_table& table);  // null without memory
    void (*release)(mgqe_whole* whole);
    // Reads the codes of a block of n rows, at most 64, of tiers tiers[i]; the next two are about this block.
    void (*read)(mgqe_whole* whole, const mgqe_row* rows, const int32_t* tiers, int64_t n);
    // out[k] = coordinate k of row i of the block. Up to 15 floats more are written.
    void (*row)(mgqe_whole* whole, int64_t i, float* out);
    // out[k] = the sum of coordinate k of rows [from, to) of the block; added to out[k] unless `fresh`. The same.
    void (*sum)(mgqe_whole* whole, int64_t from, int64_t to, bool fresh, float* out);
};

#if defined(__x86_64__)
extern const mgqe_whole_kernels mgqe_whole_avx2;
extern const mgqe_whole_kernels mgqe_whole_vbmi;  // AVX-512 VBMI and VNNI
#endif

// Those of the instruction set in use, or null where it has none.
const mgqe_whole_kernels* mgqe_active_whole();

#endif
