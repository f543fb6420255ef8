// Rows that a call has made, kept for ids that come again, as ids of logs do.
#ifndef MGQE_ROW_CACHE_H
#define MGQE_ROW_CACHE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

// An id has one place. The one that comes first keeps it until the call ends, so that rows can be used while others are made.
// To be copied: what it points at is the cache's.
struct RowPlaces {
    uint8_t* rows;
    uint16_t* owners;  // of each place: which of the ids that may have it, from 1 on, or 0
    int place_bits;
    int row_bits;

    int64_t place(int64_t id) const { return id & ((int64_t{1} << place_bits) - 1); }
    uint16_t name(int64_t id) const { return static_cast<uint16_t>((id >> place_bits) + 1); }
    uint8_t* row(int64_t id) const { return rows + (place(id) << row_bits); }
    // Whether row(id) is, or will be, this id's row.
    bool has(int64_t id) const { return owners[place(id)] == name(id); }
    // Whether row(id) has become this id's, for which it must then be written.
    bool take(int64_t id) const {
        uint16_t& owner = owners[place(id)];
        if (owner) return false;
        owner = name(id);
        return true;
    }
};

class RowCache {
public:
    // For a call of so many ids. No rows are kept where these are few, or more than can be told apart.
    RowCache(int64_t num_embeddings, int64_t ids, int64_t row_bytes) {
        while (int64_t{1} << places.row_bits < row_bytes) ++places.row_bits;
        while (places.place_bits < kMostPlaceBits && kIdsPerPlace << (places.place_bits + 1) <= ids &&
               places.place_bits + places.row_bits < kMostBits)
            ++places.place_bits;
        useful = kIdsPerPlace << kFewPlaceBits <= ids && num_embeddings >> places.place_bits < UINT16_MAX;
    }
    RowCache(const RowCache&) = delete;
    RowCache& operator=(const RowCache&) = delete;
    ~RowCache() { free(places.rows); }

    bool reserve() {
        if (!useful) return true;
        const size_t number = static_cast<size_t>(1) << places.place_bits, of_rows = number << places.row_bits;
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, of_rows + number * sizeof(uint16_t)) != 0) return false;
        places.rows = static_cast<uint8_t*>(memory);
        places.owners = reinterpret_cast<uint16_t*>(places.rows + of_rows);
        memset(places.owners, 0, number * sizeof(uint16_t));
        return true;
    }

    // Whether rows are kept, and looked for. Not any more where few of the ids come again.
    bool is_useful() const { return useful; }
    void count(int64_t ids, int64_t found) {
        asked += ids;
        answered += found;
        if (asked >= kTried && kWorthwhile * answered < asked) useful = false;
    }

    RowPlaces places = {nullptr, nullptr, 0, 6};

private:
    static constexpr int kMostPlaceBits = 12, kFewPlaceBits = 5;
    static constexpr int kMostBits = 20;  // of the bytes of all rows: half of a second-level cache
    static constexpr int64_t kIdsPerPlace = 8;
    static constexpr int64_t kTried = 1024, kWorthwhile = 4;

    bool useful = false;
    int64_t asked = 0, answered = 0;
};

}  // namespace

#endif
