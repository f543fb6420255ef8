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

// Raised whenever a signature or a struct below changes; native.py refuses a library with another number.
#define MGQE_ABI_VERSION 1

enum mgqe_status {
    MGQE_OK = 0,
    MGQE_BAD_ARGUMENT = -1,  // a shape or count that no caller in this package should send
    MGQE_NO_MEMORY = -2,
    MGQE_OUT_OF_RANGE = -3,  // an id or a code outside the table; nothing was read
    MGQE_UNSUPPORTED = -4,   // an instruction set that this processor or this build lacks
};

enum mgqe_isa { MGQE_SCALAR = 0, MGQE_AVX2 = 1, MGQE_AVX512 = 2, MGQE_NEON = 3 };

MGQE_API int32_t mgqe_abi_version(void);
// The instruction set in use (an mgqe_isa).
MGQE_API int32_t mgqe_get_isa(void);
// Forces one, or the best of this processor with isa = -1. For tests and for reproducing another machine.
MGQE_API int32_t mgqe_set_isa(int32_t isa);
// 1 when built with OpenMP, else 0 (every call then uses one thread).
MGQE_API int32_t mgqe_has_openmp(void);

// Nearest centroid: codes[i, j] = argmin_k bias[j, k] - <rows[i, j], centroids[j, k]>.
// rows (n, D * s), centroids (D, K, s), bias (D, K) or null for 0.5 * ||centroid||^2, codes (n, D).
// The lowest k wins a tie; NaN scores lose against every other score; all NaN gives 0.
MGQE_API int32_t mgqe_assign(const float* rows, const float* centroids, const float* bias, int64_t n, int64_t D,
                             int64_t K, int64_t s, int32_t* codes, int32_t threads);

// Decodes unpacked codes (n, D) into out (n, d), d = max(D, pieces) / D * D * width: see mgqe.ops.gather.
// codebook (pieces, K, width); pieces is a multiple of D, or 1 for one codebook shared by all subspaces.
MGQE_API int32_t mgqe_gather(const int32_t* codes, const float* codebook, int64_t n, int64_t D, int64_t pieces,
                             int64_t K, int64_t width, float* out, int32_t threads);

// The transpose of mgqe_gather: adds weights[i] * grad[i] (weights null: 1) to sums (pieces, K, width) and
// weights[i] to counts (pieces, K). Both are set, not added to. The order of additions does not depend on threads.
MGQE_API int32_t mgqe_scatter(const float* grad, const int32_t* codes, const float* weights, int64_t n, int64_t D,
                              int64_t pieces, int64_t K, int64_t width, float* sums, float* counts,
                              int32_t threads);

// Distinct ids in order of first appearance: uniq and counts have room for n and get *found entries, inverse n.
// MGQE_OUT_OF_RANGE if an id is outside [0, num_embeddings): *found is then the position of the first such id.
MGQE_API int32_t mgqe_unique(const int64_t* ids, int64_t n, int64_t num_embeddings, int64_t* uniq, int64_t* inverse,
                             int64_t* counts, int64_t* found);

#endif
