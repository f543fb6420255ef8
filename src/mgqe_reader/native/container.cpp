#include "container.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "xxh3.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files are little-endian, and read as they are"
#endif

namespace {

constexpr int64_t kMostHeader = 100000000;  // safetensors' own limit
constexpr int64_t kVerified = 1 << 26;      // bytes that are compared by default
constexpr size_t kMostConfig = 1 << 20;
constexpr int64_t kDigest = 8;
const char kRestore[] = "Restore the file from a copy, or write it again";

struct Named {
    std::string name;
    Tensor tensor;
    int64_t begin;
};

const struct {
    const char* name;
    DType dtype;
    int64_t bytes;
} kTypes[] = {{"I64", DType::kI64, 8},   {"I32", DType::kI32, 4}, {"F32", DType::kF32, 4}, {"F16", DType::kF16, 2},
              {"BF16", DType::kBF16, 2}, {"I8", DType::kI8, 1},   {"U8", DType::kU8, 1}};

int64_t item_size(DType dtype) {
    for (const auto& type : kTypes)
        if (type.dtype == dtype) return type.bytes;
    return 1;
}

[[noreturn]] void not_whole(const std::string& why) { refuse("not a whole safetensors file (" + why + ")"); }

int64_t whole_number(const Json& value, const std::string& what) {
    if (value.type != Json::kInteger || value.integer < 0) not_whole(what + " is no whole number");
    return value.integer;
}

Named described(const std::string& name, const Json& entry, const uint8_t* data, int64_t size) {
    const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"), *offsets = entry.find("data_offsets");
    if (!dtype || dtype->type != Json::kString || !shape || shape->type != Json::kList || !offsets ||
        offsets->type != Json::kList || offsets->items.size() != 2)
        not_whole("tensor " + shown(name) + " lacks its type, shape or offsets");
    Named named = {name, {}, whole_number(offsets->items[0], "an offset")};
    const int64_t end = whole_number(offsets->items[1], "an offset");
    const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [&](const auto& each) { return dtype->text == each.name; });
    if (type == std::end(kTypes))
        refuse("tensor " + shown(name) + " has type " + shown(dtype->text) + ", which no table holds");
    int64_t expected = type->bytes;
    for (const Json& each : shape->items) {
        named.tensor.shape.push_back(whole_number(each, "a size"));
        if (__builtin_mul_overflow(expected, each.integer, &expected)) not_whole("an impossible shape");
    }
    if (end < named.begin || end > size || end - named.begin != expected)
        not_whole("tensor " + shown(name) + " does not fill its bytes");
    named.tensor.dtype = type->dtype;
    named.tensor.data = data + named.begin;
    named.tensor.nbytes = expected;
    return named;
}

// All tensors in the order of the file, in which they follow one another without a gap.
std::vector<Named> listed(const Json& header, const uint8_t* data, int64_t size) {
    std::vector<Named> tensors;
    for (const auto& entry : header.entries)
        if (entry.first != "__metadata__") tensors.push_back(described(entry.first, entry.second, data, size));
    std::stable_sort(tensors.begin(), tensors.end(), [](const Named& a, const Named& b) {
        return a.begin != b.begin ? a.begin < b.begin : a.tensor.nbytes < b.tensor.nbytes;
    });
    int64_t end = 0;
    for (const Named& each : tensors) {
        if (each.begin != end) not_whole("tensor " + shown(each.name) + " does not follow the one before it");
        end += each.tensor.nbytes;
    }
    if (end != size) not_whole("it has " + number(size) + " bytes of tensors, the header says " + number(end));
    return tensors;
}

int64_t block_bytes(const std::map<std::string, std::string>& metadata) {
    const auto found = metadata.find("block_bytes");
    const std::string text = found == metadata.end() ? "" : found->second;
    const bool fits = !text.empty() && text.size() <= 12 && text[0] != '0' &&
                      std::all_of(text.begin(), text.end(), [](char letter) { return letter >= '0' && letter <= '9'; });
    if (!fits) refuse("metadata 'block_bytes' must be a number of bytes, got " + shown(text));
    return std::stoll(text);
}

void check_blocks(const Named& each, const uint8_t* digests, int64_t block) {
    for (int64_t begin = 0; begin < each.tensor.nbytes; begin += block, digests += kDigest) {
        const int64_t n = std::min(block, each.tensor.nbytes - begin);
        const std::string digest = xxh3_digest(each.tensor.data + begin, static_cast<size_t>(n));
        if (memcmp(digest.data(), digests, kDigest))
            refuse("tensor " + shown(each.name) + ", block " + number(begin / block) + " (its bytes " + number(begin) +
                   " to " + number(begin + n - 1) + ") is damaged: its checksum is another one. " + kRestore);
    }
}

// Compares checksums, which are taken out of the tensors.
void check(std::vector<Named>& tensors, const uint8_t* head, int64_t head_size, int64_t block, Reading::Verify verify) {
    if (tensors.empty() || tensors.back().name != "checksums") refuse("the last tensor must be 'checksums'");
    const Tensor digests = tensors.back().tensor;
    tensors.pop_back();
    int64_t total = 0;
    std::vector<int64_t> first;
    for (const Named& each : tensors) {
        first.push_back(total);
        total += each.tensor.nbytes / block + (each.tensor.nbytes % block != 0);
    }
    if (digests.dtype != DType::kU8 || digests.shape != std::vector<int64_t>{total + 1, kDigest})
        refuse("tensor 'checksums' must be U8 of shape (" + number(total + 1) + ", 8)");
    if (verify == Reading::kNone) return;
    std::string all(reinterpret_cast<const char*>(head), static_cast<size_t>(head_size));
    all.append(reinterpret_cast<const char*>(digests.data), static_cast<size_t>(total * kDigest));
    if (memcmp(xxh3_digest(all.data(), all.size()).data(), digests.data + total * kDigest, kDigest))
        refuse(std::string("the header or the list of checksums is damaged: its checksum is another one. ") + kRestore);
    std::vector<size_t> order(tensors.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return tensors[a].tensor.nbytes < tensors[b].tensor.nbytes; });
    int64_t compared = 0;
    for (const size_t i : order) {
        compared += tensors[i].tensor.nbytes;
        if (verify == Reading::kSmallest && compared > kVerified) return;
        check_blocks(tensors[i], digests.data + first[i] * kDigest, block);
    }
}

std::string metadata_entry(const StoredFile& file, const char* key) {
    const auto found = file.metadata.find(key);
    if (found == file.metadata.end()) refuse(std::string("metadata '") + key + "' is missing");
    return found->second;
}

}  // namespace

int64_t Tensor::size() const { return nbytes / item_size(dtype); }

Bytes::Bytes(const std::string& path, bool copy) {
    // Without waiting for the writer of a FIFO.
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;
    if (file < 0 || fstat(file, &status)) {
        const std::string why = strerror(errno);
        if (file >= 0) close(file);
        refuse(why, MGQE_READER_CANNOT_OPEN);
    }
    struct Closing {
        int file;
        ~Closing() { close(file); }
    } closing = {file};
    if (!S_ISREG(status.st_mode)) refuse("expected a regular file", MGQE_READER_CANNOT_OPEN);
    size_ = status.st_size;
    if (size_ == 0) return;
    if (!copy) {
        void* const at = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, file, 0);
        if (at != MAP_FAILED) {
            data_ = static_cast<const uint8_t*>(at);
            mapped_ = true;
            return;
        }
    }
    content_.resize(static_cast<size_t>(size_));
    for (int64_t at = 0; at < size_;) {
        const ssize_t n = read(file, content_.data() + at, static_cast<size_t>(size_ - at));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) refuse(n ? strerror(errno) : "cut short while it was read", MGQE_READER_CANNOT_OPEN);
        at += n;
    }
    data_ = content_.data();
}

Bytes::~Bytes() {
    if (mapped_) munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

StoredFile open_stored(const std::string& path, const Reading& reading) {
    StoredFile file;
    file.bytes = std::make_shared<Bytes>(path, reading.copy);
    const uint8_t* const begin = file.bytes->data();
    const int64_t size = file.bytes->size();
    if (size < 8) not_whole("it has " + number(size) + " bytes");
    uint64_t length;
    memcpy(&length, begin, sizeof length);
    if (length > static_cast<uint64_t>(std::min(kMostHeader, size - 8))) not_whole("the header is cut short");
    const int64_t head = 8 + static_cast<int64_t>(length);
    const char* const text = reinterpret_cast<const char*>(begin);
    if (length == 0 || text[8] != '{') not_whole("it does not begin with a header");
    const Json header = naming("the header", [&] { return parse_json(text + 8, text + head); });
    if (const Json* metadata = header.find("__metadata__"))
        for (const auto& entry : metadata->entries) {
            if (entry.second.type != Json::kString) not_whole("metadata that are no text");
            file.metadata[entry.first] = entry.second.text;
        }
    std::vector<Named> tensors = listed(header, begin + head, size - head);
    if (file.metadata["format"] != "mgqe")
        refuse("metadata 'format' must be 'mgqe', got " + shown(file.metadata["format"]) + ": no file of mgqe",
               MGQE_READER_UNSUPPORTED);
    const std::string version = file.metadata["version"];
    if (version != "1" && version != "2")
        refuse("metadata 'version' must be '1' or '2', got " + shown(version) + ": read it with the mgqe that wrote it",
               MGQE_READER_UNSUPPORTED);
    if (version == "2") check(tensors, begin, head, block_bytes(file.metadata), reading.verify);
    for (Named& each : tensors) {
        const size_t alignment = static_cast<size_t>(item_size(each.tensor.dtype));
        if (reinterpret_cast<uintptr_t>(each.tensor.data) % alignment) {
            file.copies.emplace_back(each.tensor.data, each.tensor.data + each.tensor.nbytes);
            each.tensor.data = file.copies.back().data();
        }
        file.tensors.emplace(each.name, each.tensor);
    }
    file.kind = metadata_entry(file, "kind");
    const std::string config = metadata_entry(file, "config");
    if (config.size() > kMostConfig) refuse("metadata 'config' is longer than " + number(kMostConfig) + " characters");
    file.config = naming("metadata 'config'", [&] { return parse_json(config.data(), config.data() + config.size()); });
    if (file.config.type != Json::kObject) refuse("metadata 'config' must be a JSON object");
    return file;
}

std::string last_checksum(const std::string& path) {
    const Bytes bytes(path, false);
    const int64_t n = std::min(kDigest, bytes.size());
    return hexadecimal(std::string(reinterpret_cast<const char*>(bytes.data() + bytes.size() - n), static_cast<size_t>(n)));
}

std::string hexadecimal(const std::string& bytes) {
    std::string digits;
    for (const char each : bytes) {
        digits += "0123456789abcdef"[static_cast<uint8_t>(each) >> 4];
        digits += "0123456789abcdef"[each & 15];
    }
    return digits;
}
