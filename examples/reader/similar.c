/* Opens a table, looks a row up, and finds the rows most similar to it.
 *
 *   cc similar.c -I "$(python -c 'import mgqe_reader as r; print(r.include_folder())')" \
 *      "$(python -c 'import mgqe_reader as r; print(r.library_path())')" -o similar
 *   LD_LIBRARY_PATH="$(dirname LIBRARY)" ./similar items.safetensors 17 5
 */
#include <stdio.h>
#include <stdlib.h>

#include "mgqe.h"

static void require(int32_t status) {
    if (status == MGQE_READER_OK) return;
    fprintf(stderr, "similar: %s\n", mgqe_reader_error());
    exit(1);
}

int main(int argc, char** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: similar TABLE ID K\n");
        return 2;
    }
    mgqe_reader* table;
    require(mgqe_reader_open(argv[1], MGQE_READER_DEFAULT, &table));
    const int64_t dim = mgqe_reader_embedding_dim(table), id = atoll(argv[2]), k = atoll(argv[3]);
    float* row = malloc((size_t)dim * sizeof *row);
    require(mgqe_reader_lookup(table, &id, 1, row, 0));

    mgqe_reader_search search = {0};
    search.score = MGQE_READER_COSINE;
    search.excluded = &id;
    search.num_excluded = 1;
    float* scores = malloc((size_t)(k > 0 ? k : 0) * sizeof *scores);
    int64_t* ids = malloc((size_t)(k > 0 ? k : 0) * sizeof *ids);
    require(mgqe_reader_topk(table, row, 1, k, &search, scores, ids));
    for (int64_t i = 0; i < k && ids[i] >= 0; ++i) printf("%lld %.6f\n", (long long)ids[i], scores[i]);

    free(row);
    free(scores);
    free(ids);
    mgqe_reader_close(table);
    return 0;
}
