// SHA-256 (FIPS 180-4), which names the table that appended ids belong to.
#ifndef MGQE_SHA256_H
#define MGQE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#include <string>

class Sha256 {
  public:
    void add(const void* data, size_t length);
    // The digest of all that was added, in lower-case hexadecimal. Nothing may be added afterwards.
    std::string hexadecimal();

  private:
    void take(const uint8_t* block);

    uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t pending_[64];
    uint64_t length_ = 0;
};

#endif
