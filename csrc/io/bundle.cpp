#include "io/bundle.h"

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

}  // namespace

Matrix Weights::matrix(const std::string& name, const std::vector<int64_t>& shape) const {
    const auto& tensor = file_->get(prefix_ + name, shape);
    int64_t cols = 1;
    for (size_t i = 1; i < shape.size(); ++i) cols *= shape[i];
    return {.data = tensor.data, .rows = shape[0], .cols = cols, .type = tensor.type};
}

Vector Weights::vector(const std::string& name, int64_t size) const {
    const auto& tensor = file_->get(prefix_ + name, {size});
    if (tensor.type != DType::f32)
        throw BundleError(message("bundle: expected F32 for ", prefix_ + name, ", got BF16"));
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
