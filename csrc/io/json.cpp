#include "io/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "base/error.h"
#include "io/unicode.h"

namespace mimo {

namespace {

constexpr int max_depth = 256;  // nesting of arrays and objects; keeps the recursion within any thread's stack

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

}  // namespace

// Recursive descent over the text; `at_` is the byte offset of what is read next.
class JsonReader {
public:
    JsonReader(std::string_view text, const std::string& source) : text_(text), source_(source) {}

    Json document() {
        Json root = value(0);
        blanks();
        if (at_ != text_.size()) fail("the end of the text");
        return root;
    }

private:
    [[noreturn]] void fail(std::string_view expected) const { fail(expected, here()); }

    [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
        throw BundleError(message("json: ", source_, ": expected ", expected, ", got ", got, " at byte ", at_));
    }

    std::string here() const {
        if (at_ >= text_.size()) return "the end of the text";
        const auto byte = static_cast<unsigned char>(text_[at_]);
        if (byte > 0x20 && byte < 0x7F) return std::string("'") + text_[at_] + "'";
        constexpr char hex[] = "0123456789abcdef";
        return std::string("byte 0x") + hex[byte >> 4] + hex[byte & 15];
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void blanks() {
        while (at_ < text_.size() &&
               (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
            ++at_;
        }
    }

    bool take(char c) {
        if (peek() != c || at_ >= text_.size()) return false;
        ++at_;
        return true;
    }

    void word(std::string_view expected) {
        if (text_.substr(at_, expected.size()) != expected) fail("a value");
        at_ += expected.size();
    }

    Json value(int depth) {
        Json json;
        blanks();
        switch (peek()) {
            case '{':
                json.value_ = object(depth + 1);
                break;
            case '[':
                json.value_ = array(depth + 1);
                break;
            case '"':
                json.value_ = string();
                break;
            case 't':
                word("true");
                json.value_ = true;
                break;
            case 'f':
                word("false");
                json.value_ = false;
                break;
            case 'n':
                word("null");
                break;
            default:
                json.value_ = number();
        }
        return json;
    }

    void enter(int depth) {
        if (depth > max_depth) fail(message("at most ", max_depth, " nested arrays and objects"), "one more");
        ++at_;
        blanks();
    }

    Json::Array array(int depth) {
        Json::Array items;
        enter(depth);
        if (take(']')) return items;
        while (true) {
            items.push_back(value(depth));
            blanks();
            if (take(']')) return items;
            if (!take(',')) fail("',' or ']'");
        }
    }

    Json::Object object(int depth) {
        Json::Object members;
        const size_t start = at_;
        enter(depth);
        if (take('}')) return members;
        while (true) {
            blanks();
            if (peek() != '"') fail("a key in quotes");
            std::string key = string();
            blanks();
            if (!take(':')) fail("':'");
            members.emplace_back(std::move(key), value(depth));
            blanks();
            if (take('}')) break;
            if (!take(',')) fail("',' or '}'");
        }
        refuse_repeated_key(members, start);
        return members;
    }

    // Readers disagree on which of two equal keys counts, so a file that has them is refused.
    void refuse_repeated_key(const Json::Object& members, size_t start) {
        std::vector<std::string_view> keys;
        keys.reserve(members.size());
        for (const auto& member : members) keys.push_back(member.first);
        std::sort(keys.begin(), keys.end());
        const auto repeated = std::adjacent_find(keys.begin(), keys.end());
        if (repeated == keys.end()) return;
        at_ = start;
        fail("every key once in the object", message("\"", *repeated, "\" twice"));
    }

    std::string string() {
        std::string out;
        ++at_;
        while (true) {
            const size_t start = at_;
            while (at_ < text_.size() && is_plain(text_[at_])) ++at_;
            out.append(text_, start, at_ - start);
            if (at_ >= text_.size()) fail("'\"'");
            const auto byte = static_cast<unsigned char>(text_[at_]);
            if (byte == '"') {
                ++at_;
                return out;
            }
            if (byte == '\\') {
                escape(out);
            } else if (byte < 0x20) {
                fail("a control character as an escape");
            } else {
                const Utf8Step step = utf8_step(text_.substr(at_));
                if (!step.valid) fail("valid UTF-8");
                out.append(text_, at_, step.bytes);
                at_ += step.bytes;
            }
        }
    }

    static bool is_plain(char c) {
        const auto byte = static_cast<unsigned char>(c);
        return byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\';
    }

    void escape(std::string& out) {
        constexpr std::string_view letters = "\"\\/bfnrt";
        constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
        ++at_;
        if (at_ < text_.size()) {
            if (const size_t index = letters.find(text_[at_]); index != letters.npos) {
                out += meanings[index];
                ++at_;
                return;
            }
        }
        if (peek() != 'u') fail("one of \" \\ / b f n r t u after '\\'");
        uint32_t code_point = code_unit();
        if (code_point >= 0xDC00 && code_point <= 0xDFFF) fail("a high surrogate before a low one");
        if (code_point >= 0xD800 && code_point <= 0xDBFF) {
            if (!take('\\') || peek() != 'u') fail("a low surrogate after a high one");
            const uint32_t low = code_unit();
            if (low < 0xDC00 || low > 0xDFFF) fail("a low surrogate after a high one");
            code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
        }
        append_utf8(out, code_point);
    }

    uint32_t code_unit() {
        ++at_;  // the 'u'
        uint32_t unit = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            const char lower = static_cast<char>(c | 0x20);
            if (is_digit(c)) {
                unit = unit << 4 | static_cast<uint32_t>(c - '0');
            } else if (lower >= 'a' && lower <= 'f') {
                unit = unit << 4 | static_cast<uint32_t>(lower - 'a' + 10);
            } else {
                fail("four hexadecimal digits");
            }
        }
        return unit;
    }

    void digits() {
        if (!is_digit(peek())) fail("a digit");
        while (is_digit(peek())) ++at_;
    }

    double number() {
        const size_t start = at_;
        if (peek() != '-' && !is_digit(peek())) fail("a value");
        take('-');
        if (!take('0')) digits();
        if (take('.')) digits();
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            digits();
        }
        double value = 0;
        const auto [end, status] = std::from_chars(text_.data() + start, text_.data() + at_, value);
        if (status != std::errc()) {
            const std::string got(text_.substr(start, std::min<size_t>(at_ - start, 40)));
            at_ = start;
            fail("a number in the range of a double", got);
        }
        return value;
    }

    std::string_view text_;
    const std::string& source_;
    size_t at_ = 0;
};

namespace {

template <typename Value, typename Variant>
const Value& as(const Variant& value, const char* expected) {
    constexpr const char* kinds[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
    if (const Value* held = std::get_if<Value>(&value)) return *held;
    throw BundleError(message("json: expected ", expected, ", got ", kinds[value.index()]));
}

}  // namespace

Json Json::parse(std::string_view text, const std::string& source) {
    return JsonReader(text, source).document();
}

bool Json::boolean() const {
    return as<bool>(value_, "a boolean");
}
double Json::number() const {
    return as<double>(value_, "a number");
}
const std::string& Json::string() const {
    return as<std::string>(value_, "a string");
}
const Json::Array& Json::array() const {
    return as<Array>(value_, "an array");
}
const Json::Object& Json::object() const {
    return as<Object>(value_, "an object");
}

int64_t Json::integer() const {
    constexpr double exact = 9007199254740992.0;  // 2^53, up to which a double holds every integer
    const double value = as<double>(value_, "an integer");
    if (!(std::abs(value) < exact) || std::trunc(value) != value) {
        throw BundleError(message("json: expected an integer below 2^53, got ", value));
    }
    return static_cast<int64_t>(value);
}

const Json* Json::find(std::string_view key) const {
    for (const auto& [name, value] : object()) {
        if (name == key) return &value;
    }
    return nullptr;
}

const Json& Json::at(std::string_view key) const {
    if (const Json* value = find(key)) return *value;
    throw BundleError(message("json: expected an object with the key \"", key, "\", got one without"));
}

}  // namespace mimo
