#include "io/safetensors.h"

#include <algorithm>
#include <cstring>

#include "io/json.h"

namespace mimo {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

DType parse_type(const std::string& text, const std::string& tensor) {
    for (const DType type : {DType::f32, DType::bf16, DType::f16, DType::i8, DType::i4, DType::f8_e4m3}) {
        if (text == name_of(type)) return type;
    }
    throw BundleError(message("safetensors: expected F32, BF16, F16, I8, U8 or F8_E4M3 for ", tensor, ", got ", text));
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& path) : file_(path), name_(path.filename().string()) {
    const auto bytes = file_.bytes();
    uint64_t header = 0;
    if (bytes.size() >= 8) std::memcpy(&header, bytes.data(), 8);
    if (bytes.size() < 8 || header > bytes.size() - 8) {
        throw BundleError(message("safetensors: expected a header of ", header, " bytes in ", name_, ", got a file of ",
                                  bytes.size(), " bytes; the file is truncated or of another kind"));
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes.data() + 8), header);
    const auto body = bytes.subspan(8 + header);
    std::vector<std::pair<int64_t, int64_t>> extents;
    const Json parsed = Json::parse(text, name_);
    for (const auto& [name, entry] : parsed.object()) {
        if (name == "__metadata__") continue;
        Tensor tensor = {.type = parse_type(entry.at("dtype").string(), name), .shape = {}, .data = nullptr};
        int64_t size = bytes_of(tensor.type);
        for (const Json& extent : entry.at("shape").array()) {
            tensor.shape.push_back(extent.integer());
            if (tensor.shape.back() < 0 || __builtin_mul_overflow(size, tensor.shape.back(), &size)) {
                throw BundleError(
                    message("safetensors: expected a sensible shape for ", name, ", got ", shape_text(tensor.shape)));
            }
        }
        const auto& offsets = entry.at("data_offsets").array();
        const int64_t begin = offsets.size() == 2 ? offsets[0].integer() : -1;
        const int64_t end = offsets.size() == 2 ? offsets[1].integer() : -1;
        if (begin < 0 || end - begin != size || end > static_cast<int64_t>(body.size()) ||
            (8 + static_cast<int64_t>(header) + begin) % bytes_of(tensor.type) != 0) {
            throw BundleError(message("safetensors: expected ", size, " bytes for ", name, " inside the ", body.size(),
                                      " of ", name_, ", got [", begin, ", ", end,
                                      "); the file is truncated or altered"));
        }
        tensor.data = body.data() + begin;
        extents.emplace_back(begin, end);
        const auto [placed, added] = tensors_.emplace(name, std::move(tensor));
        placed->second.name = placed->first.c_str();
        if (!added) {
            throw BundleError(message("safetensors: expected each tensor once, got ", name, " twice in ", name_));
        }
    }
    std::sort(extents.begin(), extents.end());
    int64_t covered = 0;
    for (const auto& [begin, end] : extents) {
        if (begin != covered)
            throw BundleError(message("safetensors: expected tensors side by side in ", name_,
                                      ", got a gap or overlap at byte ", begin));
        covered = end;
    }
}

const Safetensors::Tensor* Safetensors::find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
}

const Safetensors::Tensor& Safetensors::get(const std::string& name) const {
    const Tensor* tensor = find(name);
    if (!tensor) throw BundleError(message("bundle: expected tensor ", name, " in ", name_, ", got none"));
    return *tensor;
}

const Safetensors::Tensor& Safetensors::get(const std::string& name, const std::vector<int64_t>& shape) const {
    const Tensor& tensor = get(name);
    if (tensor.shape != shape) {
        throw BundleError(
            message("bundle: expected shape ", shape_text(shape), " for ", name, ", got ", shape_text(tensor.shape)));
    }
    tensor.used = true;
    return tensor;
}

std::vector<std::string> Safetensors::unused() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) {
        if (!tensor.used) names.push_back(name);
    }
    return names;
}

}  // namespace mimo
