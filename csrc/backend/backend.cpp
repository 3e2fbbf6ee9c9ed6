#include "backend/backend.h"

namespace mimo {
namespace {

std::string text_of(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
}

}  // namespace

Array Sequence::look(int64_t) {
    throw DeviceError("look: expected a backend that reads ahead, got one that does not");
}

std::vector<float> Sequence::save() const {
    throw DeviceError("save: expected a backend that can save a conversation, got one that cannot; prefill it anew");
}

void Sequence::load(std::span<const float>, int64_t) {
    throw DeviceError("load: expected a backend that can restore a conversation, got one that cannot; prefill it anew");
}

void expect_made(const char* what, const std::vector<int64_t>& expected, const std::vector<int64_t>& got) {
    if (expected == got) return;
    throw DeviceError(message("backend: expected ", what, " ", text_of(expected), ", got ", text_of(got),
                              "; its graphs are not of this bundle: export them again"));
}

}  // namespace mimo
