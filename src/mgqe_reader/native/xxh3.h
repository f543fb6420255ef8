// XXH3 with 64 bits and seed 0, https://github.com/Cyan4973/xxHash: the checksum of files.
#ifndef MGQE_XXH3_H
#define MGQE_XXH3_H

#include <stddef.h>
#include <stdint.h>

#include <string>

uint64_t xxh3_64(const void* data, size_t length);

// Its canonical form: 8 bytes, the first the most significant.
std::string xxh3_digest(const void* data, size_t length);

#endif
