// The largest code in a packed table, to check files whose codebook does not fill the code's bits.
#include <atomic>

#include "bits.h"
#include "mgqe_native.h"
#include "parallel.h"

int32_t mgqe_max_code(const uint8_t* packed, int64_t n, int64_t num_subspaces, int32_t bits, int32_t* most,
                      int32_t threads) {
    if (n < 0 || num_subspaces < 1 || bits < 1 || bits > 16) return MGQE_BAD_ARGUMENT;
    const int64_t row_bytes = (num_subspaces * bits + 7) / 8;
    const uint32_t mask = (1u << bits) - 1u;
    const uint8_t* const end = packed + n * row_bytes;
    std::atomic<int32_t> overall{-1};
    mgqe_parallel(n, mgqe_team(n * num_subspaces, 1 << 16, threads), [&](int64_t first, int64_t last) {
        int32_t largest = -1;
        for (int64_t i = first; i < last; ++i) {
            const uint8_t* const row = packed + i * row_bytes;
            const bool roomy = end - row >= row_bytes + 8;
            for (int64_t j = 0; j < num_subspaces; ++j) {
                const uint32_t code = roomy ? code_at(row, j, bits, mask) : code_before(row, j, bits, mask, end);
                largest = static_cast<int32_t>(code) > largest ? static_cast<int32_t>(code) : largest;
            }
        }
        int32_t seen = overall.load();
        while (largest > seen && !overall.compare_exchange_weak(seen, largest)) {
        }
    });
    *most = overall.load();
    return MGQE_OK;
}
