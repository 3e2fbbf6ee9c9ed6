// A tap listens at the named boundaries between stages ("backbone.hidden"); nothing is computed or copied if nobody
// listens.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "base/array.h"

namespace mimo {

// name, shape, values (valid during the call only).
using TapFunction = std::function<void(const std::string&, const std::vector<int64_t>&, const float*)>;

class Tap {
public:
    Tap() = default;
    explicit Tap(TapFunction listener) : listener_(std::move(listener)) {}

    explicit operator bool() const { return static_cast<bool>(listener_); }

    void operator()(const std::string& name, std::initializer_list<int64_t> shape, const float* values) const {
        if (listener_) listener_(name, shape, values);
    }
    void operator()(const std::string& name, const std::vector<int64_t>& shape, const float* values) const {
        if (listener_) listener_(name, shape, values);
    }
    void operator()(const std::string& name, const Array& array) const {
        (*this)(name, {array.rows, array.cols}, array.data.data());
    }

private:
    TapFunction listener_;
};

}  // namespace mimo
