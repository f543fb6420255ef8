// The plain C interface of the native kernels: no torch, no Python, no exceptions across it.
//
// Every function returns MGQE_OK or a negative error code; nothing is written to the outputs of a refused call
// unless the comment says so. All pointers are to host memory, all matrices are dense and row-major.
// `threads` is the most threads a call may use; it uses fewer when there is little to do.
#ifndef MGQE_NATIVE_H
#define MGQE_NATIVE_H

#include <stdint.h>

#if defined(__GNUC__)
#define MGQE_API extern "C" __attribute__((visibility("default")))
#else
#define MGQE_API extern "C"
#endif

// Raised whenever a signature or a struct below changes; _library.py refuses a library with another number.
#define MGQE_ABI_VERSION 8

enum mgqe_status {
    MGQE_OK = 0,
    MGQE_BAD_ARGUMENT = -1,  // a shape or count that no caller in this package should send
    MGQE_NO_MEMORY = -2,
    MGQE_OUT_OF_RANGE = -3,  // an id or a code outside the table; nothing was read
    MGQE_UNSUPPORTED = -4,   // an instruction set that this processor or this build lacks
    MGQE_NOT_FINITE = -6,    // a query that holds NaN or infinity
    MGQE_CORRUPT = -5,       // a tier map that points outside its tier; the output is then half written
    MGQE_BAD_OFFSETS = -7,   // bags that do not start at 0, run backwards or go beyond the ids; nothing was read
    MGQE_OVERFLOW = -8,      // a query whose scores, or sums on the way to them, may leave float32
    MGQE_LONG_ROWS = -9,     // for cosine: a row whose squared length leaves float32
};

enum mgqe_isa { MGQE_SCALAR = 0, MGQE_AVX2 = 1, MGQE_AVX512 = 2, MGQE_NEON = 3 };

MGQE_API int32_t mgqe_abi_version(void);
// The instruction set in use (an mgqe_isa).
MGQE_API int32_t mgqe_get_isa(void);
// Forces one, or the best of this processor with isa = -1. For tests and for reproducing another machine.
MGQE_API int32_t mgqe_set_isa(int32_t isa);
// 1 when built with OpenMP, else 0 (calls then use threads of the library's own).
MGQE_API int32_t mgqe_has_openmp(void);

// Nearest centroid: codes[i, j] = argmin_k ||rows[i, j] - centroids[j, k]||^2, or, with a bias, argmin_k bias[j, k] -
// <rows[i, j], centroids[j, k]>, decided in double precision (assign_kernel.h says how).
// rows (n, D * s), centroids (D, K, s), bias (D, K) or null, codes (n, D).
// The lowest k wins a tie; NaN scores lose against every other score; all NaN gives 0.
MGQE_API int32_t mgqe_assign(const float* rows, const float* centroids, const float* bias, int64_t n, int64_t D,
                             int64_t K, int64_t s, int32_t* codes, int32_t threads);

// Decodes unpacked codes (n, D) into out (n, d), d = max(D, pieces) / D * D * width: see mgqe.ops.gather.
// codebook (pieces, K, width); pieces is a multiple of D, or 1 for one codebook shared by all subspaces.
MGQE_API int32_t mgqe_gather(const int32_t* codes, const float* codebook, int64_t n, int64_t D, int64_t pieces,
                             int64_t K, int64_t width, float* out, int32_t threads);

// The same, and how far rows (n, d) are from what they decode to: vectors (n, d) = decoded, NaN where the row is not
// finite; errors (n, d) = weights[i] * (row - decoded); losses (n) = weights[i] * ||row - decoded||^2.
MGQE_API int32_t mgqe_decode_error(const float* rows, const int32_t* codes, const float* codebook,
                                   const float* weights, int64_t n, int64_t D, int64_t pieces, int64_t K,
                                   int64_t width, float* vectors, float* errors, float* losses, int32_t threads);

// out (n, dim) = mean (dim) + rows (n, num_coordinates) @ matrix (num_coordinates, dim): out[i][t] begins as mean[t], and
// rows[i][k] * matrix[k][t] is added, for k = 0, 1, ..., each sum rounded once (a fused multiply-add).
MGQE_API int32_t mgqe_transform(const float* rows, int64_t n, int64_t num_coordinates, const float* mean,
                                const float* matrix, int64_t dim, float* out, int32_t threads);

// The transpose of mgqe_gather: adds weights[i] * grad[i] (weights null: 1) to sums (pieces, K, width) and
// weights[i] to counts (pieces, K). Both are set, not added to. The order of additions does not depend on threads.
MGQE_API int32_t mgqe_scatter(const float* grad, const int32_t* codes, const float* weights, int64_t n, int64_t D,
                              int64_t pieces, int64_t K, int64_t width, float* sums, float* counts,
                              int32_t threads);

// Distinct ids in order of first appearance: uniq and counts have room for n and get *found entries, inverse n.
// MGQE_OUT_OF_RANGE if an id is outside [0, num_embeddings): *found is then the position of the first such id.
MGQE_API int32_t mgqe_unique(const int64_t* ids, int64_t n, int64_t num_embeddings, int64_t* uniq, int64_t* inverse,
                             int64_t* counts, int64_t* found);

// The same, distinct ids of a tier together, tiers in order: sizes (num_tiers) says how many each has. starts
// (num_tiers + 1): cumulative sizes of the tiers, the last the number of ids. tier_of: the tier of each id, or null where
// tier g is the ids from starts[g] to starts[g + 1].
MGQE_API int32_t mgqe_unique_by_tier(const int64_t* ids, int64_t n, const uint8_t* tier_of, const int64_t* starts,
                                     int64_t num_tiers, int64_t* uniq, int64_t* inverse, int64_t* counts,
                                     int64_t* sizes);

// One subspace of a tier of a mixed table, whose subspaces have widths and bits of their own.
struct mgqe_piece {
    int64_t bit;            // where its code begins in a packed row; codes follow one another
    int64_t entry;          // where its centroids begin in the tier's flat codebook
    int32_t bits;           // of its code, 0 to 16: the tier chooses among the first 2^bits centroids
    int32_t coordinate;     // its first coordinate; subspaces follow one another
    int32_t width;          // how many coordinates it has
    int32_t num_centroids;  // in the codebook
};

// Nearest centroids of coordinates (n, L) in a mixed table's subspaces: codes (n, D), each decided as mgqe_assign does
// without a bias, among the first 2^bits centroids of a flat codebook; 0 where a code has no bits. Only the entries,
// bits, coordinates and widths of `pieces` (D) are read.
MGQE_API int32_t mgqe_assign_mixed(const float* coordinates, int64_t n, int64_t L, const float* codebook, int64_t entries,
                                   const mgqe_piece* pieces, int64_t D, int32_t* codes, int32_t threads);

// One tier of a coder.
struct mgqe_coder_tier {
    const mgqe_piece* pieces;  // (num_subspaces); num_centroids are those of the codebook
    int64_t entries;           // of its codebook
    int64_t start;             // where that begins among the values
};

// What turns rows into codes of a mixed table and back while its centroids train.
struct mgqe_coder {
    const float* mean;            // (dim)
    const float* encoder;         // (dim, num_coordinates)
    const float* encoder_scales;  // (dim), its diagonal, where there are zeros beside it; else null
    const float* matrix;          // (num_coordinates, dim)
    const float* column_scales;   // (dim) or null
    const float* units;           // (num_coordinates)
    const float* steps;           // (num_coordinates) or null
    const mgqe_coder_tier* tiers;
    int64_t num_tiers;
    int64_t dim;
    int64_t num_coordinates;
    int64_t num_subspaces;
};

// Rows (n, dim), tier after tier, tier_rows (num_tiers) of each, through their codes. z (n, L) = (rows - mean) @ encoder,
// as mgqe_transform multiplies, or times the encoder's scales, which for finite rows are the same bits. A centroid is whole steps of its coordinates, value * unit / step rounded half to even
// and at most 127 in size; without steps it is the values. codes (n, D) are the nearest centroids, as mgqe_assign_mixed
// has them. vectors (n, dim) = mean + (numbers @ matrix) * column scale, of centroids in steps; without column scales
// mean + numbers @ matrix, as mgqe_transform multiplies; NaN where the row is not finite. A row weighs counts (n) / (the
// sum of counts * dim): errors (n, L) = weight * (z - centroid), loss (1) = the sum of weight * ||z - centroid||^2.
MGQE_API int32_t mgqe_quantize_mixed(const mgqe_coder* coder, const float* rows, const int64_t* counts,
                                     const int64_t* tier_rows, const float* values, int32_t* codes, float* vectors,
                                     float* errors, float* loss, int32_t threads);

// sums (size) = scale * unit times the sum of the gradients (n, L) of coordinates, by the values that codes (n, D) chose.
// Zeros behind the last value. MGQE_OUT_OF_RANGE for a code of more than its bits; nothing is written
// then. The order of additions does not depend on threads.
MGQE_API int32_t mgqe_scatter_mixed(const mgqe_coder* coder, const float* grad, const int32_t* codes,
                                    const int64_t* tier_rows, float scale, float* sums, int64_t size, int32_t threads);

// sums (rows, dim) = the sum of the gradients (n, dim) whose index (n) is that row. MGQE_OUT_OF_RANGE for an index outside
// [0, rows). Additions run in the order of gradients whatever the threads.
MGQE_API int32_t mgqe_sum_rows(const float* grad, const int64_t* index, int64_t n, int64_t dim, int64_t rows, float* sums,
                               int32_t threads);

// Floats that a flat codebook has behind its last centroid, so that centroids may be read in whole vectors.
enum { MGQE_BOOK_ROOM = 16 };

// One tier of a frozen table, or a part of one: packed codes and the centroids they name.
struct mgqe_tier {
    const uint8_t* codes;   // (rows, row_bytes); code j of a row at bits [j * bits, (j + 1) * bits), low bits first
    const void* centroids;  // (pieces, num_centroids, width) of dtype; in a mixed table (book_floats) of float32
    const float* scales;    // (pieces) for int8, else null
    const mgqe_piece* layout;  // (num_subspaces) of a mixed table, which has no use for pieces, num_centroids, width
    const uint8_t* bytes;   // where the table has a byte_matrix: centroids + 128, with MGQE_BOOK_ROOM bytes at the end
    const uint8_t* levels;  // of a tier with `bytes` whose subspaces are one coordinate wide, have at most 7 bits, and, if
                            // as many, the same centroids: those of b bits from 2^b - 1, those of 7 from 128; else null
    int64_t book_floats;    // of a mixed table: in `centroids`, with MGQE_BOOK_ROOM at its end
    int64_t rows;
    int64_t row_bytes;
    int32_t bits;           // 1 to 16; in a mixed table those of the widest code, at least 1
    int32_t num_subspaces;
    int32_t pieces;         // a multiple of num_subspaces, or 1: shared by all subspaces
    int32_t num_centroids;
    int32_t width;
    int32_t dtype;          // an mgqe_dtype
    int32_t preceding;      // of a tier of the tier map whose rows are in several places, which are then entries of their
    int32_t following;      // own, one after another: how many come before this one, and after it. Else 0
};

enum mgqe_dtype { MGQE_FLOAT32 = 0, MGQE_FLOAT16 = 1, MGQE_INT8 = 2 };

// One level of the tier map: of the `length` ids still left, those with bit 1 are in `tier`, the others go on.
struct mgqe_level {
    const uint64_t* bits;  // (4 * ceil(length / 256)), least significant bit first
    const int32_t* ranks;  // (ceil(length / 256)) ones before each 256 bits
    int64_t length;
    int64_t tier;  // the first of its entries
};

// Rows of a matrix are a multiple of so many floats.
enum { MGQE_MATRIX_STEP = 16 };

struct mgqe_table {
    const mgqe_tier* tiers;          // all of them mixed, or none
    const mgqe_level* levels;  // num_levels of them; 0 when every tier is a range of ids
    const int64_t* starts;     // (num_tiers + 1) first id of each tier that is a range; cumulative sizes for the others
    int64_t num_embeddings;
    const float* mean;         // (embedding_dim, rounded up to MGQE_MATRIX_STEP), zeros at the end; or null
    const float* matrix;       // (num_coordinates, the same): rows are mean + coordinates @ matrix; or null
    const float* column_scales;  // (the same) or null: rows are mean + column_scales * (coordinates @ matrix), and
                                 // coordinates and the matrix whole numbers, whose sums are exact
    const int8_t* byte_matrix;  // where there are column scales, codes of at most 8 bits, and books below 65,536 bytes:
                                // (ceil(num_coordinates / 4), columns as above, 4), filled up with zeros; else null
    const int32_t* byte_sums;   // (the same columns): -128 * the sum of each column of the matrix
    int64_t embedding_dim;
    int64_t num_coordinates;   // that the codes of a row decode to; embedding_dim without a matrix
    int64_t padding_idx;       // the id that looks up as zeros, or -1
    int64_t mapped_ids;        // ids that the levels split; those from here on are in tiers that are ranges
    int32_t num_tiers;         // 1 to 256
    int32_t num_levels;
    int32_t last_tier;         // the first entry of the tier of mapped ids that no level claims
    int32_t diagonal;          // 1 where there are column scales and the matrix is the identity, else 0
    int32_t mapped_tiers;      // entries of tiers that the levels split: the first ones; 0 without levels
};

// Decodes ids (n) into out (n, embedding_dim). MGQE_OUT_OF_RANGE before anything is read if an id is outside
// [0, num_embeddings). With a matrix rows are those of mgqe_transform; with column scales those of a mean of zeros,
// times the scales, plus the mean, each rounded.
MGQE_API int32_t mgqe_lookup(const mgqe_table* table, const int64_t* ids, int64_t n, float* out, int32_t threads);

enum mgqe_topk_method {
    MGQE_TOPK_AUTO = 0,
    MGQE_TOPK_SCAN = 1,    // every row exactly
    MGQE_TOPK_FILTER = 2,  // through the byte filter wherever there is one
    MGQE_TOPK_BLOCKS = 3,  // decoded rows multiplied with all queries, a block at a time
};

// What mgqe_topk looks for. Spans are (num_queries, 2): where a query's ids begin and end in their list.
struct mgqe_topk_job {
    const float* queries;  // (num_queries, embedding_dim); of length 1 or 0 for cosine
    int64_t num_queries;
    int64_t k;             // 1 to num_embeddings
    const float* bias;     // (num_embeddings) added to scores, or null
    const uint8_t* bias_codes;   // (num_embeddings) from mgqe_bias_codes
    const float* bias_levels;    // (256)
    const int64_t* excluded;     // ids not to be returned, or null
    const int64_t* excluded_spans;
    int64_t num_excluded;        // ids in the list
    const int64_t* candidates;   // the only ids that may be returned, or null
    const int64_t* candidate_spans;
    int64_t num_candidates;      // ids in the list
    const uint8_t* hidden;       // query q must not return id if hidden[q * hidden_step + id]; or null
    int64_t hidden_step;
    float* scores;         // (num_queries, k) falling; -infinity where fewer than k were found
    int64_t* ids;          // (num_queries, k) ascending among equal scores; -1 where fewer than k were found
    int64_t* rescored;     // how many scores were worked out exactly, or null
    const float* row_squares;  // from mgqe_row_squares: for cosine of a table with a matrix, else null
    int32_t cosine;        // divide scores by the length of the row
    int32_t method;        // an mgqe_topk_method
};

// The k rows of highest inner product with each query: see mgqe.ops.topk. MGQE_OUT_OF_RANGE for an excluded or a
// candidate id outside the table or a span outside its list, MGQE_NOT_FINITE for a query that holds NaN or infinity,
// MGQE_OVERFLOW and MGQE_LONG_ROWS.
MGQE_API int32_t mgqe_topk(const mgqe_table* table, const mgqe_topk_job* job, int32_t threads);

// The squared lengths (num_embeddings) of a table's decoded rows, by tier and row, summed over t in order, each product
// and sum rounded. MGQE_LONG_ROWS if one but that of padding_idx is not finite.
MGQE_API int32_t mgqe_row_squares(const mgqe_table* table, float* squares, int32_t threads);

// Sorts biases into 256 levels, for mgqe_topk: levels (256) ascending; codes (num_embeddings), by tier and row, so
// that no bias is above the level its code names. Biases must be finite.
MGQE_API int32_t mgqe_bias_codes(const mgqe_table* table, const float* bias, uint8_t* codes, float* levels);

enum mgqe_pooling { MGQE_SUM = 0, MGQE_MEAN = 1, MGQE_MAX = 2 };

// Sums, means or maxima of bags of rows, out (bags, embedding_dim). Bag b is ids offsets[b] up to offsets[b + 1], the
// last one up to n; with offsets null all bags have n / bags ids. Ids equal to padding_idx are left out, a bag of none
// gives zeros. weights (n) or null, for sums only. Rows are added in the order of the ids, starting from 0, each product
// and sum rounded; a mean is that sum divided by the number of ids counted. MGQE_OUT_OF_RANGE as in mgqe_lookup.
// With a matrix the coordinates are pooled for sums and means, and a 1 with them; then row[t] begins as the pooled 1
// times mean[t], rounded, and the pooled coordinates are multiplied as in mgqe_transform.
MGQE_API int32_t mgqe_bag(const mgqe_table* table, const int64_t* ids, int64_t n, const int64_t* offsets, int64_t bags,
                          int32_t mode, const float* weights, float* out, int32_t threads);

// The largest code among packed rows (n, ceil(num_subspaces * bits / 8)) of no mixed table, -1 if there are none.
MGQE_API int32_t mgqe_max_code(const uint8_t* packed, int64_t n, int64_t num_subspaces, int32_t bits, int32_t* most,
                               int32_t threads);

#endif
