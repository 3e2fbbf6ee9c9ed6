// A bundle on disk: bundle.json, the weights (mapped), the text tokenizer. Everything is checked here, once, at open.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/array.h"
#include "io/config.h"
#include "io/safetensors.h"

namespace mimo {

inline constexpr int64_t kBundleRevision = 1;

// Hands out the tensors of one weights file under a name prefix; asking for a tensor checks its name, shape and type.
class Weights {
public:
    // quantization: how packed tensors are to be read; null if the bundle has none.
    explicit Weights(const Safetensors& file, const Quantization* quantization = nullptr, std::string prefix = "")
        : file_(&file), quantization_(quantization), prefix_(std::move(prefix)) {}

    Weights under(const std::string& name) const {
        Weights inner = *this;
        inner.prefix_ += name + ".";
        return inner;
    }
    Weights under(const std::string& name, int64_t index) const { return under(name + "." + std::to_string(index)); }

    // The same, with E4M3 weights as they are: for a device that computes with them.
    Weights with_e4m3() const {
        Weights copy = *this;
        copy.expands_ = false;
        return copy;
    }

    bool has(const std::string& name) const { return file_->find(prefix_ + name) != nullptr; }

    // Floats of this shape, or packed integers of this size with their scales in the tensor `name`_scale. The first
    // `row_axes` axes are flattened into rows, the others into columns.
    Matrix matrix(const std::string& name, const std::vector<int64_t>& shape, size_t row_axes = 1) const;
    Vector vector(const std::string& name, int64_t size) const;

private:
    Matrix expanded(const std::string& name, int64_t rows, int64_t cols) const;
    Matrix packed(const std::string& name, int64_t rows, int64_t cols) const;

    const Safetensors* file_;
    const Quantization* quantization_;
    std::string prefix_;
    bool expands_ = true;
};

class Bundle {
public:
    // folder: the bundle. check: hash every file, not only those up to 64 MiB.
    // Throws BundleError if it is missing, of another kind, newer, truncated or altered.
    Bundle(const std::filesystem::path& folder, bool check);

    const std::string& json() const { return json_; }
    const Config& config() const { return config_; }
    Weights lm() const { return Weights(lm_, quantization()); }
    Weights codec() const { return Weights(codec_, quantization()); }
    std::string_view tokenizer_json() const;

    // Call when every stage has taken its tensors. Throws BundleError naming tensors that nobody asked for.
    void check_all_used() const;

private:
    const Quantization* quantization() const { return config_.quantization ? &*config_.quantization : nullptr; }

    std::string json_;
    Config config_;
    Safetensors lm_, codec_;
    MappedFile tokenizer_;
};

}  // namespace mimo
