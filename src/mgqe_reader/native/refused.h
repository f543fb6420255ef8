// What is thrown within the reader; the functions of mgqe.h turn it into a code and a message.
#ifndef MGQE_REFUSED_H
#define MGQE_REFUSED_H

#include <stdint.h>

#include <string>

#include "mgqe.h"

struct Refused {
    int32_t status;
    std::string message;
};

[[noreturn]] inline void refuse(std::string message, int32_t status = MGQE_READER_DAMAGED) {
    throw Refused{status, static_cast<std::string&&>(message)};
}

// A file's own text as messages show it: a hostile file may hold a very long one, or none that a terminal should get.
inline std::string shown(const std::string& text) {
    std::string plain = text.substr(0, 80);
    for (char& letter : plain)
        if (letter >= 0 && (letter < ' ' || letter > '~')) letter = '?';
    return "'" + plain + (text.size() > 80 ? "...'" : "'");
}

inline std::string number(int64_t value) { return std::to_string(value); }

// body(), with what it refuses named by `what`: a path or a part of one.
template <typename Body>
auto naming(const std::string& what, const Body& body) {
    try {
        return body();
    } catch (Refused& refused) {
        refused.message = what + ": " + refused.message;
        throw;
    }
}

#endif
