// The best k rows: their order, exclusions, and how they are kept.
#ifndef MGQE_BEST_H
#define MGQE_BEST_H

#include <stdint.h>

#include "select.h"
#include "topk.h"

namespace {

constexpr float kLowest = -__builtin_inff();

// Floats as unsigned numbers of the same order, so that threads can keep a maximum without a lock.
inline uint32_t ordered_bits(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float from_ordered_bits(uint32_t bits) {
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// Higher scores first, then lower ids. -0 and 0 are one score.
inline bool ahead(const mgqe_table& table, const mgqe_hit& a, const mgqe_hit& b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.tier == b.tier) return a.rank < b.rank;
    return id_at(table, a.tier, a.rank) < id_at(table, b.tier, b.rank);
}

// Hits held at once for the best k: when there is no room left the worse ones go.
inline int64_t room_for(int64_t k) { return k + (k > 64 ? k : 64); }

// The best k hits so far, and some that have yet to be compared with them.
struct Best {
    const mgqe_table& table;
    mgqe_hit* const hits;  // room_for(k)
    const int64_t k;
    mgqe_best& state;

    // The score that a row must reach.
    float threshold() const { return state.full ? state.worst.score : kLowest; }
    bool beaten_by(const mgqe_hit& hit) const {
        if (!state.full) return true;
        if (hit.score != state.worst.score) return hit.score > state.worst.score;
        if (hit.tier == state.worst.tier) return hit.rank < state.worst.rank;
        // Rows of a tier come one after another: one search for all of them.
        if (hit.tier != state.tied_tier) {
            state.tied_tier = hit.tier;
            state.tied_rank = rows_below(table, hit.tier, id_at(table, state.worst.tier, state.worst.rank));
        }
        return hit.rank < state.tied_rank;
    }

    void add(const mgqe_hit& hit) {
        hits[state.size++] = hit;
        if (state.size == room_for(k)) cut();
    }

    // Leaves the best k, the worst of them last.
    void cut() {
        if (state.size < k) return;
        select();
        state.size = k;
        state.full = true;
        state.worst = hits[k - 1];
        state.tied_tier = -1;
    }

private:
    void swap(int64_t a, int64_t b) const {
        const mgqe_hit kept = hits[a];
        hits[a] = hits[b];
        hits[b] = kept;
    }

    // A hit with about `rank` of hits [low, high] ahead of it: that of a few taken at even distances.
    mgqe_hit about(int64_t low, int64_t high, int64_t rank) const {
        constexpr int64_t kTaken = 16;
        const int64_t n = high - low + 1;
        mgqe_hit taken[kTaken];
        for (int64_t i = 0; i < kTaken; ++i) {
            const mgqe_hit hit = hits[low + n * i / kTaken];
            int64_t at = i;
            for (; at > 0 && ahead(table, hit, taken[at - 1]); --at) taken[at] = taken[at - 1];
            taken[at] = hit;
        }
        return taken[rank * kTaken / n];
    }

    // Moves the k best to the front and number k of all to place k - 1. No two hits compare equal.
    void select() const {
        int64_t low = 0, high = state.size - 1;
        while (low < high) {
            const mgqe_hit pivot = about(low, high, k - 1 - low);
            int64_t i = low, j = high;
            while (i <= j) {
                while (ahead(table, hits[i], pivot)) ++i;
                while (ahead(table, pivot, hits[j])) --j;
                if (i <= j) swap(i++, j--);
            }
            if (k - 1 <= j)
                high = j;
            else if (k - 1 >= i)
                low = i;
            else
                return;
        }
    }
};

// Whether an ascending list holds a value.
inline bool among(const int64_t* sorted, int64_t n, int64_t value) {
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (sorted[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && sorted[low] == value;
}

// Offers a scored row to a query: kept if it may be among the best k and is allowed. NaN never is.
inline void offer(const mgqe_scan& scan, const mgqe_query& query, Best& best, const mgqe_hit& hit) {
    if (!(hit.score == hit.score) || !best.beaten_by(hit)) return;
    if (query.num_excluded &&
        among(query.excluded, query.num_excluded, scan.tiers[hit.tier].first_position + hit.rank))
        return;
    if (query.hidden_rows) {
        if (query.hidden_rows[scan.tiers[hit.tier].first_position + hit.rank]) return;
    } else if (query.hidden) {
        const int64_t id = id_at(best.table, hit.tier, hit.rank);
        best.state.corrupt |= id < 0;
        if (id < 0 || query.hidden[id]) return;
    }
    best.add(hit);
}

}  // namespace

#endif
