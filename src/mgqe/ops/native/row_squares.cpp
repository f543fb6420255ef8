// Squared lengths of the rows of a table with a matrix, where they are no sums over subspaces.
#include <stdlib.h>

#include <atomic>

#include "isa.h"
#include "locate.h"
#include "matrix_kernel.h"
#include "mgqe_native.h"
#include "parallel.h"

namespace {

constexpr int64_t kRowsPerThread = 1024;

bool all_finite_but(const float* values, int64_t n, int64_t exempt) {
    bool finite = true;
    for (int64_t i = 0; i < n; ++i) finite &= values[i] - values[i] == 0 || i == exempt;
    return finite;
}

}  // namespace

int32_t mgqe_row_squares(const mgqe_table* table, float* squares, int32_t threads) {
    if (!mgqe_well_formed(*table) || !table->matrix) return MGQE_BAD_ARGUMENT;
    const mgqe_kernels& kernels = mgqe_active();
    std::atomic<int32_t> status{MGQE_OK};
    for (int32_t g = 0; g < table->num_tiers; ++g) {
        const int64_t rows = table->tiers[g].rows;
        mgqe_parallel(rows, mgqe_team(rows, kRowsPerThread, threads), [&](int64_t begin, int64_t end) {
            CoordinateRows coordinates(*table);
            float* const decoded =
                static_cast<float*>(malloc(static_cast<size_t>(kSquaredRows * table->embedding_dim) * sizeof(float)));
            if (decoded && coordinates.reserve(kSquaredRows))
                kernels.square_rows(*table, g, begin, end - begin, coordinates.row(0), decoded,
                                    squares + table->starts[g] + begin);
            else
                status.store(MGQE_NO_MEMORY, std::memory_order_relaxed);
            free(decoded);
        });
    }
    if (status.load() != MGQE_OK) return status.load();
    const Place padding = table->padding_idx < 0 ? Place{-1, 0} : locate(*table, table->padding_idx);
    if (table->padding_idx >= 0 && padding.tier < 0) return MGQE_CORRUPT;
    const int64_t exempt = padding.tier < 0 ? -1 : table->starts[padding.tier] + padding.rank;
    return all_finite_but(squares, table->num_embeddings, exempt) ? MGQE_OK : MGQE_LONG_ROWS;
}
