#include "guard.h"

#include <stdio.h>

namespace {

constexpr size_t kMostMessage = 2000;
thread_local char message_of_thread[kMostMessage] = "";

}  // namespace

int32_t failed(int32_t status, const char* message) noexcept {
    snprintf(message_of_thread, kMostMessage, "%s", message);
    return status;
}

const char* mgqe_reader_error() { return message_of_thread; }

Reading reading_of(int32_t flags) {
    if (flags & ~(MGQE_READER_VERIFY | MGQE_READER_NO_VERIFY | MGQE_READER_COPY) ||
        (flags & MGQE_READER_VERIFY && flags & MGQE_READER_NO_VERIFY))
        refuse("flags must be those of mgqe_reader_flags, got " + number(flags), MGQE_READER_BAD_ARGUMENT);
    const bool copy = flags & MGQE_READER_COPY;
    const bool all = flags & MGQE_READER_VERIFY || copy;
    return {flags & MGQE_READER_NO_VERIFY ? Reading::kNone : all ? Reading::kAll : Reading::kSmallest, copy};
}
