// The functions of mgqe.h: ids.
#include "guard.h"
#include "ids_handle.h"

namespace {

void require_kind(const mgqe_ids* ids, bool integers) {
    if ((ids->map.kind() <= MGQE_IDS_UINT64) != integers)
        refuse(integers ? "the ids are text, not integers" : "the ids are integers, not text", MGQE_READER_BAD_ARGUMENT);
}

void require_row(const mgqe_ids* ids, int64_t row) {
    if (row < 0 || row >= ids->map.count())
        refuse("row " + number(row) + " is out of range: rows are 0 to " + number(ids->map.count() - 1), MGQE_READER_OUT_OF_RANGE);
}

}  // namespace

int32_t mgqe_ids_open(const char* path, int32_t flags, mgqe_ids** ids) {
    *ids = nullptr;
    return guarded([&] { *ids = new mgqe_ids(path, reading_of(flags)); });
}

void mgqe_ids_close(mgqe_ids* ids) { delete ids; }

int64_t mgqe_ids_count(const mgqe_ids* ids) { return ids->map.count(); }
int32_t mgqe_ids_kind(const mgqe_ids* ids) { return ids->map.kind(); }

int32_t mgqe_ids_rows_of_integers(const mgqe_ids* ids, const int64_t* values, int64_t n, int64_t* rows) {
    return guarded([&] {
        require_kind(ids, true);
        for (int64_t i = 0; i < n; ++i) rows[i] = ids->map.row_of(static_cast<uint64_t>(values[i]));
    });
}

int32_t mgqe_ids_rows_of_texts(const mgqe_ids* ids, const char* bytes, const int64_t* offsets, int64_t n, int64_t* rows) {
    return guarded([&] {
        require_kind(ids, false);
        for (int64_t i = 0; i < n; ++i) {
            if (offsets[i] < 0 || offsets[i + 1] < offsets[i])
                refuse("offsets must not be negative and not decrease", MGQE_READER_BAD_OFFSETS);
            rows[i] = ids->map.row_of(bytes + offsets[i], offsets[i + 1] - offsets[i]);
        }
    });
}

int32_t mgqe_ids_integers(const mgqe_ids* ids, const int64_t* rows, int64_t n, int64_t* values) {
    return guarded([&] {
        require_kind(ids, true);
        for (int64_t i = 0; i < n; ++i) {
            require_row(ids, rows[i]);
            values[i] = static_cast<int64_t>(ids->map.integer(rows[i]));
        }
    });
}

int32_t mgqe_ids_text(const mgqe_ids* ids, int64_t row, const char** bytes, int64_t* length) {
    return guarded([&] {
        require_kind(ids, false);
        require_row(ids, row);
        ids->map.text(row, bytes, length);
    });
}
