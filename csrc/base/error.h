// The errors of the core: one sentence each, "<op>: expected …, got …" and, where there is one, the next step.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace mimo {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct ShapeError : Error {  // an array has the wrong rank, size or type
    using Error::Error;
};
struct InputError : Error {  // the caller's data cannot be used: NaN, too short, too long, unknown token
    using Error::Error;
};
struct BundleError : Error {  // the bundle on disk is not what this version reads
    using Error::Error;
};
struct DeviceError : Error {  // the machine cannot do what was asked
    using Error::Error;
};

// Joins its arguments as a stream would: message("mel: expected ", n, " samples, got ", m).
template <typename... Parts>
std::string message(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

}  // namespace mimo
