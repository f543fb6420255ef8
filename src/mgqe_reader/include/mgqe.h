/* Reading mgqe's files from C, or from any language that can call C: look-ups, bags and top-K in a frozen table, and the
 * ids of its rows. docs/reader.md shows how; docs/format.md specifies the files.
 *
 * Every function that returns int32_t returns MGQE_READER_OK or one of the negative codes below. After a failure,
 * mgqe_reader_error() says what was expected, what came and what to do. Failed calls may have written part of their
 * outputs.
 *
 * What mgqe_reader_open and mgqe_ids_open give never changes: any number of threads may use it at once, until one closes
 * it. Matrices are dense and row-major; ids of rows are 0 to num_embeddings - 1. The functions below keep their
 * signatures from release to release; mgqe_reader_version() rises when one is added. */
#ifndef MGQE_H
#define MGQE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MGQE_READER_API __attribute__((visibility("default")))
#else
#define MGQE_READER_API
#endif

#define MGQE_READER_VERSION 1

enum mgqe_reader_status {
    MGQE_READER_OK = 0,
    MGQE_READER_BAD_ARGUMENT = -1,  /* a count, a mode or a pointer that does not fit */
    MGQE_READER_NO_MEMORY = -2,
    MGQE_READER_OUT_OF_RANGE = -3,  /* an id outside the table, which has no fallback; nothing was written */
    MGQE_READER_DAMAGED = -5,       /* a file that is damaged, cut short or contradicts itself */
    MGQE_READER_NOT_FINITE = -6,    /* a query or a bias that holds NaN or infinity */
    MGQE_READER_BAD_OFFSETS = -7,   /* bags or lists that do not start at 0, run backwards or end elsewhere */
    MGQE_READER_OVERFLOW = -8,      /* scores of a query that may leave float32 */
    MGQE_READER_LONG_ROWS = -9,     /* for cosine: a row whose squared length leaves float32 */
    MGQE_READER_CANNOT_OPEN = -20,  /* no such file, or one that cannot be read */
    MGQE_READER_UNSUPPORTED = -21   /* a file of another kind or version; the message says what reads it */
};

typedef struct mgqe_reader mgqe_reader; /* an open table, with the ids of its rows if it is a collection's */
typedef struct mgqe_ids mgqe_ids;       /* an open id map */

/* MGQE_READER_VERSION of the library. */
MGQE_READER_API int32_t mgqe_reader_version(void);

/* What was wrong with the last failed call of this thread, in UTF-8; valid until its next failure. Never null. */
MGQE_READER_API const char* mgqe_reader_error(void);

/* ---- opening ---------------------------------------------------------------------------------------------------- */

enum mgqe_reader_flags {
    MGQE_READER_DEFAULT = 0,    /* map the file; compare the checksums of the header and of up to 64 MiB of tensors */
    MGQE_READER_VERIFY = 1,     /* compare all checksums, which reads the whole file */
    MGQE_READER_NO_VERIFY = 2,  /* compare none */
    MGQE_READER_COPY = 4        /* read the files into memory, and compare all checksums unless told otherwise */
};

/* Opens a table at `path`: a file that mgqe.save wrote, together with what mgqe.append added beside it; a folder of
 * shards; or the folder of a collection, whose ids mgqe_reader_ids gives. A mapped file must not be cut short while it
 * is open; replacing it by another file is safe. *reader is null after a failure. */
MGQE_READER_API int32_t mgqe_reader_open(const char* path, int32_t flags, mgqe_reader** reader);

/* Frees a table and its ids. Null is allowed. */
MGQE_READER_API void mgqe_reader_close(mgqe_reader* reader);

MGQE_READER_API int64_t mgqe_reader_num_embeddings(const mgqe_reader* reader); /* N */
MGQE_READER_API int64_t mgqe_reader_embedding_dim(const mgqe_reader* reader);  /* d */
MGQE_READER_API int64_t mgqe_reader_padding_idx(const mgqe_reader* reader);    /* the id of the zero row, or -1 */
MGQE_READER_API const float* mgqe_reader_fallback(const mgqe_reader* reader);  /* (d) the row of other ids, or null */
MGQE_READER_API const mgqe_ids* mgqe_reader_ids(const mgqe_reader* reader);    /* of a collection, or null */

/* (d) What each coordinate counts in the inner products of a collection's model: multiply queries by it, coordinate by
 * coordinate, before mgqe_reader_topk; or null where all count alike. */
MGQE_READER_API const float* mgqe_reader_query_weight(const mgqe_reader* reader);

/* ---- reading. `threads`: how many a call may use at most; 0 for as many as there are processors ------------------- */

/* Rows of ids (n) into out (n, d). Ids outside the table get the fallback, or are MGQE_READER_OUT_OF_RANGE. */
MGQE_READER_API int32_t mgqe_reader_lookup(const mgqe_reader* reader, const int64_t* ids, int64_t n, float* out,
                                           int32_t threads);

enum mgqe_reader_pooling { MGQE_READER_SUM = 0, MGQE_READER_MEAN = 1, MGQE_READER_MAX = 2 };

/* Sums, means or maxima of bags of rows into out (bags, d). Bag b is ids[offsets[b]] up to ids[offsets[b + 1]], the last
 * one up to n; with offsets null all bags have n / bags ids. Ids equal to padding_idx are left out, also of a mean's
 * count; a bag of none is zeros. weights (n): multiply rows, for sums alone; or null. */
MGQE_READER_API int32_t mgqe_reader_bag(const mgqe_reader* reader, const int64_t* ids, int64_t n, const int64_t* offsets,
                                        int64_t bags, int32_t pooling, const float* weights, float* out,
                                        int32_t threads);

enum mgqe_reader_score { MGQE_READER_DOT = 0, MGQE_READER_COSINE = 1 };

/* What a search may return. Set all of it to zeros, then what you need. */
typedef struct mgqe_reader_search {
    int32_t score;   /* an mgqe_reader_score */
    int32_t threads;
    const float* bias;                 /* (N) added to the scores, for MGQE_READER_DOT alone; or null */
    const int64_t* excluded;           /* ids that are not to be returned; or null */
    const int64_t* excluded_offsets;   /* (num_queries + 1) query q's are from [q] up to [q + 1]; null: all are every query's */
    int64_t num_excluded;
    const int64_t* candidates;         /* the only ids to be returned; null: all may be. An empty list is not null */
    const int64_t* candidate_offsets;  /* as excluded_offsets */
    int64_t num_candidates;
} mgqe_reader_search;

/* The k rows that score highest with each of queries (num_queries, d), exactly: scores (num_queries, k) falling, and ids
 * (num_queries, k), ascending among equal scores. Where fewer than k may be returned the rest is -infinity and -1.
 * search: null for inner products over all rows, on all processors. */
MGQE_READER_API int32_t mgqe_reader_topk(const mgqe_reader* reader, const float* queries, int64_t num_queries, int64_t k,
                                         const mgqe_reader_search* search, float* scores, int64_t* ids);

/* ---- ids of any type -------------------------------------------------------------------------------------------- */

enum mgqe_ids_kind { MGQE_IDS_INT64 = 0, MGQE_IDS_UINT64 = 1, MGQE_IDS_STRING = 2, MGQE_IDS_BINARY = 3 };

/* Opens a file that mgqe.IdMap.save wrote. Ids of a collection belong to their reader, and are closed with it. */
MGQE_READER_API int32_t mgqe_ids_open(const char* path, int32_t flags, mgqe_ids** ids);
MGQE_READER_API void mgqe_ids_close(mgqe_ids* ids);

MGQE_READER_API int64_t mgqe_ids_count(const mgqe_ids* ids);
MGQE_READER_API int32_t mgqe_ids_kind(const mgqe_ids* ids); /* an mgqe_ids_kind */

/* The rows (n) of integer ids (n), -1 for those that are not there. Ids of kind uint64 are given as the same 64 bits. */
MGQE_READER_API int32_t mgqe_ids_rows_of_integers(const mgqe_ids* ids, const int64_t* values, int64_t n, int64_t* rows);

/* The same of strings (UTF-8) or binaries: id i is bytes[offsets[i]] up to bytes[offsets[i + 1]]; offsets (n + 1). */
MGQE_READER_API int32_t mgqe_ids_rows_of_texts(const mgqe_ids* ids, const char* bytes, const int64_t* offsets, int64_t n,
                                               int64_t* rows);

/* The integer ids (n) of rows (n). */
MGQE_READER_API int32_t mgqe_ids_integers(const mgqe_ids* ids, const int64_t* rows, int64_t n, int64_t* values);

/* The string or binary of a row: `length` bytes at *bytes, without a zero behind them, as long as the ids are open. */
MGQE_READER_API int32_t mgqe_ids_text(const mgqe_ids* ids, int64_t row, const char** bytes, int64_t* length);

#ifdef __cplusplus
}
#endif

#endif
