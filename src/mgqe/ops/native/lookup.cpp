// Checks a look-up and spreads its ids over threads.
#include <atomic>

#include "isa.h"
#include "mgqe_native.h"
#include "parallel.h"
#include "table_checks.h"
#include "whole.h"

namespace {

constexpr int64_t kRowsPerThread = 1024;
// Output that would push everything else out of the caches is written around them: half the memory traffic.
constexpr int64_t kStreamBytes = 8 << 20;

bool streams(const mgqe_table& table, const float* out, int64_t n) {
    if (n * table.embedding_dim * 4 < kStreamBytes || table.embedding_dim > kStage) return false;
    if (reinterpret_cast<uintptr_t>(out) % 16 || table.embedding_dim % 4) return false;
    if (table.tiers->layout) return table.matrix != nullptr;  // from registers
    // Narrower pieces would be read back from the staged row before they can be forwarded.
    for (int32_t g = 0; g < table.num_tiers; ++g)
        if (table.tiers[g].width < 4) return false;
    return true;
}

// Whether the pieces of a mixed tier follow one another, and lie within its rows, its codebook and the coordinates.
bool pieces_fit(const mgqe_table& table, const mgqe_tier& tier) {
    int64_t bit = 0, coordinate = 0;
    int32_t widest = 1;
    if (tier.num_subspaces != table.tiers->num_subspaces || tier.dtype != MGQE_FLOAT32 || !tier.centroids) return false;
    if (tier.book_floats < MGQE_BOOK_ROOM) return false;
    for (int32_t j = 0; j < tier.num_subspaces; ++j) {
        const mgqe_piece& piece = tier.layout[j];
        if (piece.bits < 0 || piece.bits > 16 || piece.bit != bit || piece.coordinate != coordinate) return false;
        if (piece.width < 1 || piece.num_centroids < 1 << piece.bits) return false;
        bit += piece.bits;
        coordinate += piece.width;
        if (coordinate > table.num_coordinates) return false;
        const int64_t room = tier.book_floats - MGQE_BOOK_ROOM, size = int64_t{piece.num_centroids} * piece.width;
        if (piece.entry < 0 || piece.entry > room || size > room - piece.entry) return false;
        widest = piece.bits > widest ? piece.bits : widest;
    }
    return coordinate == table.num_coordinates && tier.row_bytes == (bit + 7) / 8 && tier.bits == widest;
}

// Whether the entries of each tier follow one another, those of ids in ranges alone.
bool entries_fit(const mgqe_table& table) {
    for (int32_t g = 0; g < table.num_tiers; ++g) {
        const mgqe_tier& tier = table.tiers[g];
        if (tier.preceding < 0 || tier.following < 0) return false;
        if (g >= table.mapped_tiers && (tier.preceding || tier.following)) return false;
        if (tier.preceding && (g == 0 || table.tiers[g - 1].following == 0)) return false;
        if (!tier.following) continue;
        if (g + 1 >= table.mapped_tiers) return false;
        const mgqe_tier& next = table.tiers[g + 1];
        if (next.preceding != tier.preceding + 1 || next.following != tier.following - 1) return false;
        if (next.row_bytes != tier.row_bytes) return false;
    }
    for (int32_t l = 0; l < table.num_levels; ++l)
        if (table.tiers[table.levels[l].tier].preceding) return false;
    return table.num_levels == 0 || table.tiers[table.last_tier].preceding == 0;
}

}  // namespace

bool mgqe_well_formed(const mgqe_table& table) {
    if (table.num_tiers < 1 || table.num_tiers > kMaxTiers || table.num_levels < 0) return false;
    const int32_t mapped = table.mapped_tiers;
    if (mapped < 0 || mapped > table.num_tiers || (mapped > 0) != (table.num_levels > 0)) return false;
    if (table.num_levels > 0 && (table.last_tier < 0 || table.last_tier >= mapped)) return false;
    for (int32_t l = 0; l < table.num_levels; ++l)
        if (table.levels[l].tier < 0 || table.levels[l].tier >= mapped) return false;
    if (!entries_fit(table)) return false;
    if (table.starts[0] != 0 || table.starts[table.num_tiers] != table.num_embeddings) return false;
    if (table.starts[mapped] != table.mapped_ids) return false;
    if (table.padding_idx < -1 || table.padding_idx >= table.num_embeddings || table.embedding_dim < 1) return false;
    const bool mixed = table.tiers->layout != nullptr;
    if (!table.matrix != !table.mean || (table.matrix && !mixed)) return false;
    if (table.column_scales && !table.matrix) return false;
    if (table.diagonal && (!table.column_scales || table.num_coordinates != table.embedding_dim)) return false;
    if (!table.matrix && table.num_coordinates != table.embedding_dim) return false;
    for (int32_t g = 0; g < table.num_tiers; ++g) {
        const mgqe_tier& tier = table.tiers[g];
        if (table.starts[g + 1] - table.starts[g] != tier.rows || tier.rows < 0) return false;
        const int64_t D = tier.num_subspaces;
        if (D < 1 || tier.bits < 1 || tier.bits > 16 || mixed != (tier.layout != nullptr)) return false;
        if (mixed) {
            if (!pieces_fit(table, tier)) return false;
            continue;
        }
        if (tier.pieces < 1 || tier.num_centroids < 1 || tier.width < 1) return false;
        if (tier.pieces != 1 && tier.pieces % D != 0) return false;
        if ((tier.pieces == 1 ? D : tier.pieces) * tier.width != table.embedding_dim) return false;
        if (tier.row_bytes != (D * tier.bits + 7) / 8) return false;
        if (tier.dtype < MGQE_FLOAT32 || tier.dtype > MGQE_INT8 || (tier.dtype == MGQE_INT8 && !tier.scales))
            return false;
    }
    return true;
}

int32_t mgqe_lookup(const mgqe_table* table, const int64_t* ids, int64_t n, float* out, int32_t threads) {
    if (n < 0 || !mgqe_well_formed(*table)) return MGQE_BAD_ARGUMENT;
    if (!ids_in_range(ids, n, table->num_embeddings)) return MGQE_OUT_OF_RANGE;
    const mgqe_kernels& kernels = mgqe_active();
    const bool stream = streams(*table, out, n);
    const mgqe_whole_kernels* const whole = table->byte_matrix ? mgqe_active_whole() : nullptr;
    const auto lookup = whole ? whole->lookup : kernels.lookup;
    std::atomic<int32_t> status{MGQE_OK};
    mgqe_parallel(n, mgqe_team(n, kRowsPerThread, threads), [&](int64_t begin, int64_t end) {
        const int32_t own = lookup(*table, ids, begin, end, out, stream);
        if (own != MGQE_OK) status.store(own, std::memory_order_relaxed);
    });
    return status.load();
}
