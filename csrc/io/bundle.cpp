#include "io/bundle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "io/json.h"
#include "io/sha256.h"

namespace mimo {
namespace {

constexpr const char* kFormat = "mimo-edge bundle";
constexpr size_t kAlwaysHashedBytes = size_t{64} << 20;

std::string_view text_of(const MappedFile& file) {
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

std::string read_json(const std::filesystem::path& folder) {
    if (!std::filesystem::is_regular_file(folder / "bundle.json")) {
        throw BundleError(message("open: expected a bundle folder with bundle.json at ", folder.string(),
                                  ", got none; make one with `mimo-edge build`"));
    }
    return std::string(text_of(MappedFile(folder / "bundle.json")));
}

Config parse_config(const std::string& text) {
    const Json bundle = Json::parse(text, "bundle.json");
    const Json* format = bundle.is_object() ? bundle.find("format") : nullptr;
    if (!format || !format->is_string() || format->string() != kFormat) {
        throw BundleError(message("bundle.json: expected format '", kFormat, "', got another kind of file"));
    }
    const int64_t revision = bundle.at("revision").integer();
    if (revision != kBundleRevision) {
        throw BundleError(message("bundle.json: expected revision ", kBundleRevision, ", got ", revision,
                                  revision > kBundleRevision ? "; update mimo-edge" : "; build the bundle again"));
    }
    return Config::parse(bundle);
}

void check_file(const Json& bundle, const std::string& name, std::span<const uint8_t> bytes, bool check) {
    const Json& entry = bundle.at("files").at(name);
    const int64_t size = entry.at("bytes").integer();
    if (size != static_cast<int64_t>(bytes.size())) {
        throw BundleError(message("open: expected ", size, " bytes in ", name, ", got ", bytes.size(),
                                  "; the bundle is truncated or altered, build or copy it again"));
    }
    if (!check && bytes.size() > kAlwaysHashedBytes) return;
    const std::string hash = sha256_hex(bytes);
    if (hash != entry.at("sha256").string()) {
        throw BundleError(message("open: expected sha256 ", entry.at("sha256").string(), " of ", name, ", got ", hash,
                                  "; the bundle is altered, build or copy it again"));
    }
}

// The layout of packed weights is that of kernels/packed.h: blocks of kRows rows, kBytes of a row side by side.
constexpr int64_t kRows = 16, kBytes = 4;

int64_t parts(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}

}  // namespace

Matrix Weights::matrix(const std::string& name, const std::vector<int64_t>& shape, size_t row_axes) const {
    const auto product = [](auto first, auto last) {
        return std::accumulate(first, last, int64_t{1}, std::multiplies());
    };
    const auto border = shape.begin() + static_cast<std::ptrdiff_t>(row_axes);
    const int64_t rows = product(shape.begin(), border), cols = product(border, shape.end());
    const DType type = file_->get(prefix_ + name).type;
    if (type == DType::f8_e4m3 && expands_) return expanded(name, rows, cols);
    if (type == DType::i8 || type == DType::i4 || type == DType::f8_e4m3) return packed(name, rows, cols);
    if (type != DType::f32 && type != DType::bf16) {
        throw BundleError(message("bundle: expected F32, BF16, I8, U8 or F8_E4M3 for ", prefix_ + name, ", got ",
                                  name_of(type), "; the native core does not read it"));
    }
    const auto& tensor = file_->get(prefix_ + name, shape);
    return {.data = tensor.data, .rows = rows, .cols = cols, .type = type, .name = tensor.name};
}

// E4M3 weights are for GPUs; here they become floats when the bundle is opened, so that what they mean can be heard.
// Layout and scales as for int8, the bytes being sign, 4 bits of exponent (bias 7), 3 of mantissa.
Matrix Weights::expanded(const std::string& name, int64_t rows, int64_t cols) const {
    const std::string full = prefix_ + name;
    const int64_t blocks = parts(rows, kRows), chunks = parts(cols, kBytes);
    const auto& tensor = file_->get(full, {blocks, chunks, kRows, kBytes});
    const auto& scales = file_->get(full + "_scale", {blocks, 1, kRows});
    if (scales.type != DType::f32)
        throw BundleError(message("bundle: expected F32 for ", full, "_scale, got ", name_of(scales.type)));
    float table[256];
    for (int code = 0; code < 256; ++code) {
        const int exponent = code >> 3 & 15, mantissa = code & 7;
        const int whole = exponent == 0 ? mantissa : 8 + mantissa;
        const float size = std::ldexp(static_cast<float>(whole), std::max(exponent, 1) - 10);
        table[code] = (code & 0x7F) == 0x7F ? std::numeric_limits<float>::quiet_NaN() : code & 0x80 ? -size : size;
    }
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (int64_t n = 0; n < rows; ++n) {
        float scale;
        std::memcpy(&scale, scales.data + n * static_cast<int64_t>(sizeof(float)), sizeof(scale));
        for (int64_t k = 0; k < cols; ++k) {
            const int64_t at = ((n / kRows * chunks + k / kBytes) * kRows + n % kRows) * kBytes + k % kBytes;
            values[static_cast<size_t>(n * cols + k)] = table[tensor.data[at]] * scale;
        }
    }
    return {
        .data = file_->keep(std::move(values)), .rows = rows, .cols = cols, .type = DType::f32, .name = tensor.name};
}

Matrix Weights::packed(const std::string& name, int64_t rows, int64_t cols) const {
    const std::string full = prefix_ + name;
    if (!quantization_) {
        throw BundleError(message("bundle: expected 'quantization' in bundle.json beside the packed tensor ", full,
                                  ", got none; quantise the bundle again"));
    }
    const DType type = file_->get(full).type;
    const bool wide = type != DType::i4;
    const int64_t group = wide ? cols : quantization_->group;
    const auto& tensor = file_->get(full, {parts(rows, kRows), parts(cols, wide ? kBytes : 2 * kBytes), kRows, kBytes});
    const auto& scales = file_->get(full + "_scale", {parts(rows, kRows), parts(cols, group), kRows});
    if (scales.type != (wide ? DType::f32 : DType::f16)) {
        throw BundleError(
            message("bundle: expected ", wide ? "F32" : "F16", " for ", full, "_scale, got ", name_of(scales.type)));
    }
    return {.data = tensor.data,
            .rows = rows,
            .cols = cols,
            .type = type,
            .name = tensor.name,
            .scales = scales.data,
            .group = group,
            .activation_bits = quantization_->activation_bits_of(full)};
}

Vector Weights::vector(const std::string& name, int64_t size) const {
    const auto& tensor = file_->get(prefix_ + name, {size});
    if (tensor.type != DType::f32)
        throw BundleError(message("bundle: expected F32 for ", prefix_ + name, ", got ", name_of(tensor.type)));
    return {reinterpret_cast<const float*>(tensor.data), static_cast<size_t>(size)};
}

Bundle::Bundle(const std::filesystem::path& folder, bool check)
    : json_(read_json(folder)),
      config_(parse_config(json_)),
      lm_(folder / "lm.safetensors"),
      codec_(folder / "codec.safetensors"),
      tokenizer_(folder / "tokenizer.json") {
    const Json bundle = Json::parse(json_, "bundle.json");
    check_file(bundle, "lm.safetensors", lm_.bytes(), check);
    check_file(bundle, "codec.safetensors", codec_.bytes(), check);
    check_file(bundle, "tokenizer.json", tokenizer_.bytes(), check);
}

std::string_view Bundle::tokenizer_json() const {
    return text_of(tokenizer_);
}

void Bundle::check_all_used() const {
    for (const Safetensors* file : {&lm_, &codec_}) {
        const auto names = file->unused();
        if (!names.empty()) {
            throw BundleError(message("bundle: expected only tensors of its configuration, got ", names.size(),
                                      " others, first ", names[0]));
        }
    }
}

}  // namespace mimo
