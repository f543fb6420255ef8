#include "collection.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "json.h"
#include "xxh3.h"

namespace {

const char kRestore[] = ". Restore the file from a copy, or write it again";

bool hexadecimal_digits(const std::string& text) {
    return text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// The path of a part; the name of its file is table.<8 digits>.safetensors, or ids.<...>.
std::string path_of(const Json& entry, const std::string& part, const std::string& folder) {
    const Json *file = entry.find("file"), *checksum = entry.find("checksum");
    const std::string name = file && file->type == Json::kString ? file->text : "";
    const size_t token = part.size() + 1;
    const bool own = name.size() == token + 8 + 12 && name.compare(0, token, part + ".") == 0 &&
                     hexadecimal_digits(name.substr(token, 8)) && name.substr(token + 8) == ".safetensors";
    if (!own || !checksum || checksum->type != Json::kString)
        refuse("entry '" + part + "' names no file of a collection");
    const std::string path = folder + "/" + name;
    std::string stored;
    try {
        stored = last_checksum(path);
    } catch (Refused& refused) {
        refuse(name + " cannot be read, which the manifest names (" + refused.message + ")" + kRestore);
    }
    if (stored != checksum->text) refuse(name + " is not the file that the manifest was saved with" + kRestore);
    return path;
}

// Float32, little-endian, in hexadecimal digits.
std::vector<float> weights_of(const Json& entry) {
    const std::string& digits = entry.text;
    std::vector<float> weights(digits.size() / 8);
    bool fits = entry.type == Json::kString && digits.size() % 8 == 0 && hexadecimal_digits(digits);
    for (size_t i = 0; fits && i < weights.size(); ++i) {
        uint32_t bits = 0;
        for (int byte = 3; byte >= 0; --byte)
            bits = bits << 8 | static_cast<uint32_t>(std::stoul(digits.substr(8 * i + 2 * byte, 2), nullptr, 16));
        std::memcpy(&weights[i], &bits, sizeof bits);
        fits = std::isfinite(weights[i]);
    }
    if (!fits) refuse(std::string("entry 'query_weight' holds no finite float32 in hexadecimal digits") + kRestore);
    return weights;
}

}  // namespace

CollectionFiles read_manifest(const std::string& folder) {
    const std::string path = folder + "/" + kManifest;
    return naming(path, [&] {
        const Bytes bytes(path, true);
        const char* const text = reinterpret_cast<const char*>(bytes.data());
        Json manifest = parse_json(text, text + bytes.size());
        const Json *format = manifest.find("format"), *version = manifest.find("version");
        if (!format || format->text != "mgqe collection") refuse("not the manifest of a collection");
        if (!version || version->type != Json::kInteger || version->integer != 1)
            refuse("this reader knows version 1 alone: install a newer one", MGQE_READER_UNSUPPORTED);
        const Json* const checksum = manifest.find("checksum");
        const std::string expected = checksum ? checksum->text : "";
        auto& entries = manifest.entries;
        entries.erase(std::remove_if(entries.begin(), entries.end(), [](const auto& each) { return each.first == "checksum"; }),
                      entries.end());
        const std::string content = dump_json(manifest);
        if (hexadecimal(xxh3_digest(content.data(), content.size())) != expected)
            refuse(std::string("damaged: its checksum is another one") + kRestore);
        const Json *table = manifest.find("table"), *ids = manifest.find("ids"), *weight = manifest.find("query_weight");
        if (!table) refuse(std::string("names no table") + kRestore);
        return CollectionFiles{path_of(*table, "table", folder), ids ? path_of(*ids, "ids", folder) : std::string(),
                               weight ? weights_of(*weight) : std::vector<float>()};
    });
}
