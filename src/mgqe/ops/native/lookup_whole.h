// Look-ups in tables of whole numbers, for processors that add products of bytes (lookup_whole.cpp).
#ifndef MGQE_LOOKUP_WHOLE_H
#define MGQE_LOOKUP_WHOLE_H

#include <stdint.h>

#include "isa.h"
#include "mgqe_native.h"

constexpr int64_t kMaxWholeCodes = 1024;  // of a row, a multiple of what is unpacked at once

// mgqe_kernels' lookup, for a table with a byte_matrix. Only where mgqe_has_byte_products().
int32_t mgqe_lookup_whole(const mgqe_table& table, const int64_t* ids, int64_t begin, int64_t end, float* out,
                          bool stream);

// The same table's rows as coordinates: made once, for many blocks of rows.
class mgqe_whole;
mgqe_whole* mgqe_whole_of(const mgqe_table& table);  // null without memory
void mgqe_free_whole(mgqe_whole* whole);
// Decodes a block of n rows, at most 64, of tiers tiers[i]; the next two read it.
void mgqe_whole_decode(const mgqe_whole& whole, const mgqe_row* rows, const int32_t* tiers, int64_t n);
// out[k] = coordinate k of row i of the block. Up to 15 floats more are written.
void mgqe_whole_row(const mgqe_whole& whole, int64_t i, float* out);
// out[k] = the sum of coordinate k of rows [from, to) of the block; added to out[k] unless `fresh`. The same.
void mgqe_whole_sum(const mgqe_whole& whole, int64_t from, int64_t to, bool fresh, float* out);

// Whether the instruction set in use has AVX-512 VBMI and VNNI.
bool mgqe_has_byte_products();

#endif
