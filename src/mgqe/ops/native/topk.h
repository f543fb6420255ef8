// What the top-K entry (topk.cpp) prepares and the scans (topk_kernel.h, one a set of instructions) read.
//
// A row's score is a sum of partial scores, one per subspace: <query piece, centroid>, read from a table that is made
// once a query. The sum runs in the order of subspaces in float32, then the bias is added, so that every path gives
// the same bits. A scan may skip rows that cannot reach the top k; it never scores them in another way.
#ifndef MGQE_TOPK_H
#define MGQE_TOPK_H

#include <stdint.h>

#include "level_rows.h"
#include "mgqe_native.h"

// A row among the best so far.
struct mgqe_hit {
    float score;
    int32_t tier;
    int64_t rank;
};

// Up to eight codes, of at most 8 bits each, that lie within 64 bits from the start of a byte of a row.
struct mgqe_code_group {
    int64_t first;      // subspace
    int64_t byte;       // of the row
    uint64_t lanes;     // the bits that each code can have, in a byte each
    uint8_t shifts[8];  // where each code begins in the 64 bits
    bool whole_bytes;   // the codes are these bytes
};

// A tier cut into tiles of rows. Partial scores have `stride` entries per subspace: all that `bits` can say, those
// beyond the codebook repeating its last centroid as the look-up does, and at least 16.
struct mgqe_tier_view {
    const mgqe_tier* tier;
    const mgqe_code_group* groups;  // of its codes, where there is a filter
    int64_t num_groups;
    int64_t first_tile;
    int64_t tile_rows;       // a multiple of 256
    int64_t first_position;  // rows of the tiers before
    int64_t stride;
    const int32_t* entries;  // how many of these each code of a mixed tier can name, null where that is `stride`
    int64_t table_offset;    // of this tier in a query's partial scores
    const float* book;       // the codebook as float32
    const float* norms;      // (D, stride) squared norms of the pieces, where the job needs them, else null
    double norm_low;         // bounds of a row's norm, where there are norms
    double norm_high;
    bool filtered;           // a byte filter exists for this layout
    const mgqe_level_rows* level_rows;  // where products of bytes filter instead (level_filter.h), else null
};

struct mgqe_query {
    const float* tables;         // partial scores of all tiers
    const int64_t* excluded;     // positions, ascending
    int64_t num_excluded;
    const uint8_t* hidden;       // by id: not to be returned; or null
    const uint8_t* hidden_rows;  // the same by position, where few rows are left
    const int64_t* candidates;   // ids, when the job is restricted to some
    int64_t num_candidates;
    uint32_t* shared_threshold;  // the best k-th score of any thread so far, as ordered bits (see best.h)
    const float* values;         // (num_coordinates), as rows' coordinates are multiplied with
    float start;                 // what every score begins with
    double length;               // of the values
};

struct mgqe_scan {
    const mgqe_table* table;
    const mgqe_tier_view* tiers;
    const mgqe_query* queries;
    const float* bias;          // by id, or null
    const uint8_t* bias_codes;  // by position: the level of each row's bias
    const float* bias_levels;   // (256) no bias is above its level
    const float* row_squares;   // by position: squared lengths of rows that are no sums over subspaces, or null
    int64_t num_queries;
    int64_t k;
    int64_t padding_tier;       // where padding_idx is, -1 without one: the scans leave it out
    int64_t padding_rank;
    bool cosine;
    int32_t method;             // MGQE_TOPK_SCAN, _FILTER or _BLOCKS
};

// How far a thread is with a query: `worst` is the k-th best of the hits that it has compared, once there are k.
struct mgqe_best {
    int64_t size;
    mgqe_hit worst;
    bool full;
    int32_t tied_tier;  // a tier, or -1, of which rows below tied_rank come before `worst` at the same score
    int64_t tied_rank;
    bool corrupt;  // the tier map has no id for a row
};

// A thread's best rows of each query: hits (num_queries, room_for(k)) (see best.h).
struct mgqe_worker {
    mgqe_hit* hits;
    mgqe_best* bests;
    int64_t rescored;  // rows that were scored exactly
};

// Scans tiles [begin, end) for all queries of the scan. MGQE_NO_MEMORY or MGQE_OK.
typedef int32_t (*mgqe_scanner)(const mgqe_scan& scan, int64_t begin, int64_t end, mgqe_worker& worker);

int32_t mgqe_scan_scalar(const mgqe_scan& scan, int64_t begin, int64_t end, mgqe_worker& worker);
#if defined(__x86_64__)
int32_t mgqe_scan_avx2(const mgqe_scan& scan, int64_t begin, int64_t end, mgqe_worker& worker);
int32_t mgqe_scan_vbmi(const mgqe_scan& scan, int64_t begin, int64_t end, mgqe_worker& worker);
#endif

// The scan of the instruction set in use, whether it has a byte filter for codes of so many bits.
mgqe_scanner mgqe_active_scanner();
bool mgqe_has_filter(int32_t bits);

#endif
