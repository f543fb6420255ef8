// JSON as files hold it: headers, configurations and manifests. Strict, of bounded depth and size.
#ifndef MGQE_JSON_H
#define MGQE_JSON_H

#include <stdint.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

struct Json {
    enum Type { kNull, kBool, kInteger, kOther, kString, kList, kObject };  // kOther: a number that is no int64

    Type type = kNull;
    int64_t integer = 0;  // 0 or 1 of a bool
    std::string text;     // of a string, UTF-8
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> entries;  // of an object, no key twice

    // An entry of an object, or null.
    const Json* find(const std::string& key) const;
};

// Refuses what is no JSON, a key that occurs twice, and text that is no UTF-8.
Json parse_json(const char* begin, const char* end);

// As Python's json.dumps(value, sort_keys=True) writes it, whose checksum manifests hold. Refuses fractions.
std::string dump_json(const Json& value);

#endif
