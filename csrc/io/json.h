// A strict JSON reader (RFC 8259) for bundle.json, safetensors headers and tokenizer.json. Read only, UTF-8 in and out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace mimo {

class Json {
public:
    using Array = std::vector<Json>;
    using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the file

    // text: one JSON value. source: what the text is, for errors ("bundle.json"). Throws BundleError with the byte
    // offset.
    static Json parse(std::string_view text, const std::string& source);

    bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
    bool is_object() const { return std::holds_alternative<Object>(value_); }
    bool is_array() const { return std::holds_alternative<Array>(value_); }
    bool is_string() const { return std::holds_alternative<std::string>(value_); }
    bool is_number() const { return std::holds_alternative<double>(value_); }

    // Each throws BundleError naming the expected and the actual kind.
    bool boolean() const;
    double number() const;
    int64_t integer() const;  // a number without fraction that a double holds exactly
    const std::string& string() const;
    const Array& array() const;
    const Object& object() const;

    const Json* find(std::string_view key) const;  // null if absent
    const Json& at(std::string_view key) const;    // throws BundleError naming the key

private:
    std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value_ = nullptr;
    friend class JsonReader;
};

}  // namespace mimo
