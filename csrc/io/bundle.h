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

// Hands out the tensors of one weights file under a name prefix; asking for a tensor checks its name and shape.
class Weights {
public:
    explicit Weights(const Safetensors& file, std::string prefix = "") : file_(&file), prefix_(std::move(prefix)) {}

    Weights under(const std::string& name) const { return Weights(*file_, prefix_ + name + "."); }
    Weights under(const std::string& name, int64_t index) const { return under(name + "." + std::to_string(index)); }

    bool has(const std::string& name) const { return file_->find(prefix_ + name) != nullptr; }

    // [rows, ...]: all but the first axis are flattened into columns.
    Matrix matrix(const std::string& name, const std::vector<int64_t>& shape) const;
    Vector vector(const std::string& name, int64_t size) const;

private:
    const Safetensors* file_;
    std::string prefix_;
};

class Bundle {
public:
    // folder: the bundle. check: hash every file, not only those up to 64 MiB.
    // Throws BundleError if it is missing, of another kind, newer, truncated or altered.
    Bundle(const std::filesystem::path& folder, bool check);

    const std::string& json() const { return json_; }
    const Config& config() const { return config_; }
    Weights lm() const { return Weights(lm_); }
    Weights codec() const { return Weights(codec_); }
    std::string_view tokenizer_json() const;

    // Call when every stage has taken its tensors. Throws BundleError naming tensors that nobody asked for.
    void check_all_used() const;

private:
    std::string json_;
    Config config_;
    Safetensors lm_, codec_;
    MappedFile tokenizer_;
};

}  // namespace mimo
