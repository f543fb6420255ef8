// What every function of mgqe.h does around its work: no exception leaves it, and a failure keeps its message.
#ifndef MGQE_GUARD_H
#define MGQE_GUARD_H

#include <exception>
#include <new>

#include "container.h"
#include "refused.h"

// Keeps the message for mgqe_reader_error, and returns the code.
int32_t failed(int32_t status, const char* message) noexcept;

template <typename Work>
int32_t guarded(const Work& work) noexcept {
    try {
        work();
        return MGQE_READER_OK;
    } catch (const Refused& refused) {
        return failed(refused.status, refused.message.c_str());
    } catch (const std::bad_alloc&) {
        return failed(MGQE_READER_NO_MEMORY, "there is not enough memory");
    } catch (const std::exception& error) {  // such as a length that no container can have
        return failed(MGQE_READER_NO_MEMORY, error.what());
    }
}

Reading reading_of(int32_t flags);

#endif
