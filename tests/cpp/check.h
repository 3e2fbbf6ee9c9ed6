// A test program in one header: TEST registers a case, the checks record what fails and let the case go on.
#pragma once

#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Case {
    const char* name;
    void (*body)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

inline std::vector<std::string>& failures() {  // of the running case
    static std::vector<std::string> all;
    return all;
}

inline bool add(const char* name, void (*body)()) {
    cases().push_back({name, body});
    return true;
}

template <typename... Parts>
void fail(const char* file, int line, const Parts&... parts) {
    std::ostringstream out;
    out << file << ':' << line << ": ";
    (out << ... << parts);
    failures().push_back(out.str());
}

template <typename Value>
std::string shown(const Value& value) {
    std::ostringstream out;
    if constexpr (requires { out << value; }) {
        out << value;
    } else if constexpr (requires { value.begin(); }) {
        out << "{";
        for (const auto& item : value) out << ' ' << shown(item);
        out << " }";
    } else {
        out << "(a value that does not print)";
    }
    return out.str();
}

template <typename Left, typename Right>
void equal(const char* file, int line, const char* text, const Left& left, const Right& right) {
    if (!(left == right)) fail(file, line, text, ": got ", shown(left), ", expected ", shown(right));
}

}  // namespace check

#define TEST(name)                                                   \
    static void test_##name();                                       \
    static const bool added_##name = check::add(#name, test_##name); \
    static void test_##name()

#define CHECK(...)                                                                     \
    do {                                                                               \
        if (!(__VA_ARGS__)) check::fail(__FILE__, __LINE__, #__VA_ARGS__ " is false"); \
    } while (false)

// CHECK_EQ(got, expected)
#define CHECK_EQ(...) check::equal(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)

// The expression throws Type, and the text of the exception contains the part.
#define CHECK_THROWS(expression, Type, part)                                                                  \
    do {                                                                                                      \
        try {                                                                                                 \
            static_cast<void>(expression);                                                                    \
            check::fail(__FILE__, __LINE__, #expression " did not throw");                                    \
        } catch (const Type& error) {                                                                         \
            if (std::strstr(error.what(), part) == nullptr) {                                                 \
                check::fail(__FILE__, __LINE__, #expression " threw \"", error.what(), "\", without ", part); \
            }                                                                                                 \
        } catch (const std::exception& error) {                                                               \
            check::fail(__FILE__, __LINE__, #expression " threw something else: ", error.what());             \
        }                                                                                                     \
    } while (false)
