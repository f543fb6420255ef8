// The container of every file, docs/format.md: a safetensors file with metadata and checksums.
#ifndef MGQE_CONTAINER_H
#define MGQE_CONTAINER_H

#include <stdint.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "refused.h"

enum class DType { kI64, kI32, kF32, kF16, kBF16, kI8, kU8 };

struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    const uint8_t* data;
    int64_t nbytes;

    // The elements, at an address that is a multiple of their size.
    template <typename T>
    const T* as() const {
        return reinterpret_cast<const T*>(data);
    }
    int64_t size() const;
};

// The bytes of a file, mapped or in memory; and copies of tensors that are not aligned in it.
class Bytes {
  public:
    // Refuses, as MGQE_READER_CANNOT_OPEN, what cannot be read or is no regular file.
    Bytes(const std::string& path, bool copy);
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes();

    const uint8_t* data() const { return data_; }
    int64_t size() const { return size_; }

  private:
    const uint8_t* data_ = nullptr;
    int64_t size_ = 0;
    bool mapped_ = false;
    std::vector<uint8_t> content_;
};

// What mgqe_reader_open was told about files.
struct Reading {
    enum Verify { kNone, kSmallest, kAll };
    Verify verify;
    bool copy;
};

struct StoredFile {
    std::shared_ptr<Bytes> bytes;
    std::vector<std::vector<uint8_t>> copies;
    std::map<std::string, std::string> metadata;
    std::map<std::string, Tensor> tensors;  // without the checksums
    std::string kind;
    Json config;
};

// A file, its checksums compared; refuses what is no whole file of mgqe.
StoredFile open_stored(const std::string& path, const Reading& reading);

// Its last eight bytes, the checksum of its header and of all other checksums, in lower-case hexadecimal.
std::string last_checksum(const std::string& path);

std::string hexadecimal(const std::string& bytes);

#endif
