#include "json.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "refused.h"

namespace {

constexpr int kMostDepth = 64;
constexpr int64_t kMostValues = 1 << 20;  // a configuration has at most 2^20 characters

void append_utf8(std::string& text, uint32_t code) {
    if (code < 0x80) {
        text += static_cast<char>(code);
        return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t lead = more == 1 ? 0xC0u : more == 2 ? 0xE0u : 0xF0u;
    text += static_cast<char>(lead | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80u | (code >> (6 * i) & 0x3F));
}

// The code point at `at`, which moves behind it; -1 where there is no UTF-8.
int64_t next_utf8(const char*& at, const char* end) {
    const uint8_t first = static_cast<uint8_t>(*at++);
    if (first < 0x80) return first;
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    if (first < 0xC2 || first > 0xF4 || end - at < more) return -1;
    uint32_t code = first & (0x3Fu >> more);
    for (int i = 0; i < more; ++i) {
        const uint8_t next = static_cast<uint8_t>(*at++);
        if ((next & 0xC0) != 0x80) return -1;
        code = code << 6 | (next & 0x3Fu);
    }
    const uint32_t least = more == 1 ? 0x80 : more == 2 ? 0x800 : 0x10000;
    return code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) ? -1 : static_cast<int64_t>(code);
}

class Parser {
  public:
    Parser(const char* begin, const char* end) : at_(begin), end_(end) {}

    Json whole() {
        Json value = any(0);
        space();
        if (at_ != end_) wrong("something behind its end");
        return value;
    }

  private:
    [[noreturn]] void wrong(const char* what) { refuse(std::string("not JSON: ") + what); }

    void space() {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
    }

    bool next_is(char letter) {
        space();
        if (at_ == end_ || *at_ != letter) return false;
        ++at_;
        return true;
    }

    bool word(const char* letters) {
        const size_t n = strlen(letters);
        if (static_cast<size_t>(end_ - at_) < n || memcmp(at_, letters, n)) return false;
        at_ += n;
        return true;
    }

    Json any(int depth) {
        if (depth > kMostDepth) wrong("too deep");
        if (++values_ > kMostValues) wrong("too many values");
        space();
        Json value;
        if (next_is('{')) {
            value.type = Json::kObject;
            object(value, depth);
        } else if (next_is('[')) {
            value.type = Json::kList;
            if (next_is(']')) return value;
            do value.items.push_back(any(depth + 1));
            while (next_is(','));
            if (!next_is(']')) wrong("a list without an end");
        } else if (next_is('"')) {
            value.type = Json::kString;
            value.text = string();
        } else if (word("true")) {
            value.type = Json::kBool;
            value.integer = 1;
        } else if (word("false")) {
            value.type = Json::kBool;
        } else if (!word("null")) {
            number_at(value);
        }
        return value;
    }

    void object(Json& value, int depth) {
        if (next_is('}')) return;
        do {
            if (!next_is('"')) wrong("a key that is no string");
            std::string key = string();
            if (!next_is(':')) wrong("a key without a value");
            value.entries.emplace_back(static_cast<std::string&&>(key), any(depth + 1));
        } while (next_is(','));
        if (!next_is('}')) wrong("an object without an end");
        std::vector<const std::string*> keys;
        for (const auto& entry : value.entries) keys.push_back(&entry.first);
        std::sort(keys.begin(), keys.end(), [](const std::string* a, const std::string* b) { return *a < *b; });
        for (size_t i = 1; i < keys.size(); ++i)
            if (*keys[i - 1] == *keys[i]) wrong("a key occurs twice");
    }

    uint32_t four_digits() {
        if (end_ - at_ < 4) wrong("a string without an end");
        uint32_t code = 0;
        for (int i = 0; i < 4; ++i) {
            const char letter = *at_++;
            const int digit = letter >= '0' && letter <= '9'   ? letter - '0'
                              : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10
                              : letter >= 'A' && letter <= 'F' ? letter - 'A' + 10
                                                               : -1;
            if (digit < 0) wrong("an escape that is none");
            code = code << 4 | static_cast<uint32_t>(digit);
        }
        return code;
    }

    std::string string() {
        std::string text;
        while (true) {
            if (at_ == end_) wrong("a string without an end");
            const char letter = *at_;
            if (letter == '"') {
                ++at_;
                return text;
            }
            if (letter == '\\') {
                ++at_;
                escape(text);
                continue;
            }
            if (static_cast<uint8_t>(letter) < 0x20) wrong("a control character in a string");
            const char* const begin = at_;
            if (next_utf8(at_, end_) < 0) wrong("text that is not UTF-8");
            text.append(begin, at_);
        }
    }

    void escape(std::string& text) {
        static const char kFrom[] = "\"\\/bfnrt", kTo[] = "\"\\/\b\f\n\r\t";
        if (at_ == end_) wrong("a string without an end");
        const char letter = *at_++;
        if (letter == 'u') {
            uint32_t code = four_digits();
            if (code >= 0xD800 && code < 0xDC00) {
                if (!word("\\u")) wrong("half of a surrogate pair");
                const uint32_t low = four_digits();
                if (low < 0xDC00 || low > 0xDFFF) wrong("half of a surrogate pair");
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            } else if (code >= 0xDC00 && code < 0xE000) {
                wrong("half of a surrogate pair");
            }
            return append_utf8(text, code);
        }
        const char* const found = letter ? strchr(kFrom, letter) : nullptr;
        if (!found) wrong("an escape that is none");
        text += kTo[found - kFrom];
    }

    bool digit() const { return at_ != end_ && *at_ >= '0' && *at_ <= '9'; }

    void digits() {
        if (!digit()) wrong("something that is no value");
        while (digit()) ++at_;
    }

    void number_at(Json& value) {
        const bool negative = at_ != end_ && *at_ == '-';
        if (negative) ++at_;
        const char* const begin = at_;
        digits();
        if (*begin == '0' && at_ - begin > 1) wrong("a number with a leading zero");
        value.type = Json::kInteger;
        for (const char* each = begin; each != at_; ++each) {
            const int64_t step = *each - '0';
            if (__builtin_mul_overflow(value.integer, 10, &value.integer) ||
                __builtin_add_overflow(value.integer, step, &value.integer)) {
                value.type = Json::kOther;
                break;
            }
        }
        if (negative) value.integer = value.type == Json::kOther ? 0 : -value.integer;
        if (at_ != end_ && *at_ == '.') {
            value.type = Json::kOther;
            ++at_;
            digits();
        }
        if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
            value.type = Json::kOther;
            ++at_;
            if (at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
            digits();
        }
    }

    const char* at_;
    const char* end_;
    int64_t values_ = 0;
};

void dump_string(const std::string& text, std::string& out) {
    out += '"';
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at != end) {
        const uint32_t code = static_cast<uint32_t>(next_utf8(at, end));
        static const char kSpecial[] = "\"\\\n\r\t\f\b", kLetters[] = "\"\\nrtfb";
        const char* const found = code && code < 0x80 ? strchr(kSpecial, static_cast<int>(code)) : nullptr;
        char escaped[16];
        if (found) {
            snprintf(escaped, sizeof escaped, "\\%c", kLetters[found - kSpecial]);
        } else if (code >= 0x20 && code < 0x7F) {
            snprintf(escaped, sizeof escaped, "%c", static_cast<int>(code));
        } else if (code < 0x10000) {
            snprintf(escaped, sizeof escaped, "\\u%04x", code);
        } else {
            snprintf(escaped, sizeof escaped, "\\u%04x\\u%04x", 0xD800 + (code - 0x10000) / 1024, 0xDC00 + code % 1024);
        }
        out += escaped;
    }
    out += '"';
}

void dump(const Json& value, std::string& out) {
    const char* between = "";
    switch (value.type) {
        case Json::kNull:
            out += "null";
            return;
        case Json::kBool:
            out += value.integer ? "true" : "false";
            return;
        case Json::kInteger:
            out += std::to_string(value.integer);
            return;
        case Json::kOther:
            refuse("holds a number that is no whole number of 64 bits");
        case Json::kString:
            return dump_string(value.text, out);
        case Json::kList:
            out += '[';
            for (const Json& item : value.items) {
                out += between;
                dump(item, out);
                between = ", ";
            }
            out += ']';
            return;
        case Json::kObject:
            break;
    }
    std::vector<const std::pair<std::string, Json>*> sorted;
    for (const auto& entry : value.entries) sorted.push_back(&entry);
    std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    out += '{';
    for (const auto* entry : sorted) {
        out += between;
        dump_string(entry->first, out);
        out += ": ";
        dump(entry->second, out);
        between = ", ";
    }
    out += '}';
}

}  // namespace

const Json* Json::find(const std::string& key) const {
    for (const auto& entry : entries)
        if (entry.first == key) return &entry.second;
    return nullptr;
}

Json parse_json(const char* begin, const char* end) { return Parser(begin, end).whole(); }

std::string dump_json(const Json& value) {
    std::string out;
    dump(value, out);
    return out;
}
