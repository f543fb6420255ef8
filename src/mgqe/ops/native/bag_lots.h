// Sums of rows of levels, included by bag_kernel.h: a lot of a bag's rows is summed straight from its codes while lots
// that come later are located and their codes asked for. Rows lie in lists by tier, because a choice for each row would
// be mispredicted.
#ifndef MGQE_BAG_LOTS_H
#define MGQE_BAG_LOTS_H

#include <stdint.h>

#include "lookup_kernel.h"
#include "whole.h"

namespace {

constexpr int64_t kLots = 8;         // that are located at once, at most
constexpr int64_t kIdsLocated = 64;  // before another lot is: about as many as that are asked for

struct Lot : mgqe_lot {
    int64_t ids;   // padding, too
    int64_t bag_ids;
    bool ends_bag;
};

// The locator of a table that has at most so many tiers.
template <typename Locator, int kTiers>
struct NarrowLocator {
    const Locator& all;
    explicit NarrowLocator(const Locator& of) : all(of) {}
    bool find(int64_t id, const uint8_t*& at, int32_t& tier, int64_t& bytes) const {
        return all.find(id, at, tier, bytes);
    }
};
template <>
struct NarrowLocator<TierRanges, 2> {
    const TierRanges::Span first, later;
    const int64_t second;
    explicit NarrowLocator(const TierRanges& of) : first(of.spans[0]), later(of.spans[1]), second(of.second) {}
    bool find(int64_t id, const uint8_t*& at, int32_t& tier, int64_t& bytes) const {
        const bool is_later = id >= second;
        const TierRanges::Span& span = is_later ? later : first;
        tier = is_later;
        bytes = span.row_bytes;
        at = reinterpret_cast<const uint8_t*>(span.origin + static_cast<uintptr_t>(id * bytes));
        return true;
    }
};

// Locates lot after lot of bags [bag, last_bag). end_of(b): where bag b ends.
template <typename Locator, int kTiers, typename EndOf>
class LotMaker {
public:
    LotMaker(const Locator& where, const int64_t* of, int64_t padding, const EndOf& end, int64_t first, int64_t last)
        : locator(where), ids(of), padding_idx(padding), end_of(end), bag(first), last_bag(last),
          next(first ? end(first - 1) : 0), begin(next) {}

    bool more() const { return bag < last_bag; }

    // False if the tier map is damaged.
    bool make(Lot& lot) {
        const int64_t end = end_of(bag);
        lot.bag_ids = end - begin;
        lot.ends_bag = end - next <= kLotRows;
        lot.ids = lot.ends_bag ? end - next : kLotRows;
        if (!locate(lot, ids + next, lot.ids)) return false;
        next += lot.ids;
        if (lot.ends_bag) {
            ++bag;
            begin = next;
        }
        return true;
    }

private:
    __attribute__((noinline)) bool locate(mgqe_lot& lot, const int64_t* some, int64_t n) const {
        const NarrowLocator<Locator, kTiers> where(locator);
        const int64_t padding = padding_idx;
        int64_t counts[kTiers] = {};
        for (int64_t i = 0; i < n; ++i) {
            const int64_t id = some[i];
            if (id == padding) continue;
            const uint8_t* codes;
            int32_t tier;
            int64_t bytes;
            if (!where.find(id, codes, tier, bytes)) return false;
            prefetch_ends(codes, bytes);
#pragma GCC unroll 4
            for (int32_t g = 0; g < kTiers; ++g) {
                lot.codes[g][counts[g]] = codes;  // counted only if it is of this tier
                counts[g] += g == tier;
            }
        }
        for (int32_t g = 0; g < kLotTiers; ++g) lot.counts[g] = g < kTiers ? counts[g] : 0;
        return true;
    }

    const Locator& locator;
    const int64_t* const ids;
    const int64_t padding_idx;
    const EndOf& end_of;
    int64_t bag;
    const int64_t last_bag;
    int64_t next;   // id
    int64_t begin;  // of the bag
};

// Calls use(lot) with each lot in order. False if the tier map is damaged.
template <typename Maker, typename Use>
bool for_each_lot(Maker& maker, const Use& use) {
    Lot lots[kLots];
    int64_t made = 0, used = 0, located = 0;
    while (maker.more() || used < made) {
        while (maker.more() && made - used < kLots && located < kIdsLocated) {
            Lot& lot = lots[made++ % kLots];
            if (!maker.make(lot)) return false;
            located += lot.ids;
        }
        const Lot& lot = lots[used++ % kLots];
        located -= lot.ids;
        use(lot);
    }
    return true;
}

}  // namespace

#endif
