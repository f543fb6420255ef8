// Rows of numbers times a matrix, as the rows of a table are multiplied.
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"

namespace {

constexpr int64_t kProductsPerThread = 1 << 18;

}  // namespace

int32_t mgqe_transform(const float* rows, int64_t n, int64_t num_coordinates, const float* mean, const float* matrix,
                       int64_t dim, float* out, int32_t threads) {
    if (n < 0 || num_coordinates < 0 || dim < 1) return MGQE_BAD_ARGUMENT;
    const int64_t step = (dim + MGQE_MATRIX_STEP - 1) / MGQE_MATRIX_STEP * MGQE_MATRIX_STEP;
    // The mean and the rows of the matrix, filled up with zeros.
    float* const filled = static_cast<float*>(calloc(static_cast<size_t>((num_coordinates + 1) * step), sizeof(float)));
    if (!filled) return MGQE_NO_MEMORY;
    memcpy(filled, mean, static_cast<size_t>(dim) * sizeof(float));
    for (int64_t k = 0; k < num_coordinates; ++k)
        memcpy(filled + (k + 1) * step, matrix + k * dim, static_cast<size_t>(dim) * sizeof(float));
    mgqe_table table = {};
    table.mean = filled;
    table.matrix = filled + step;
    table.num_coordinates = num_coordinates;
    table.embedding_dim = dim;
    const mgqe_kernels& kernels = mgqe_active();
    const int team = mgqe_team(n * (num_coordinates + 1) * dim, kProductsPerThread, threads);
    mgqe_parallel(n, team, [&](int64_t begin, int64_t end) {
        kernels.multiply(table, rows + begin * num_coordinates, end - begin, out + begin * dim);
    });
    free(filled);
    return MGQE_OK;
}
