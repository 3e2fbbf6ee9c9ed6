// Reads one safetensors file: 8 bytes header length (little endian), a JSON header, then the tensors without holes.
// Format: https://github.com/huggingface/safetensors
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "base/array.h"
#include "io/mapped_file.h"

namespace mimo {

class Safetensors {
public:
    struct Tensor {
        DType type;
        std::vector<int64_t> shape;
        const uint8_t* data;
        const char* name = nullptr;
        mutable bool used = false;
    };

    // Throws BundleError on a header that is cut short, overlaps or points past the end.
    explicit Safetensors(const std::filesystem::path& path);

    std::span<const uint8_t> bytes() const { return file_.bytes(); }
    const Tensor* find(const std::string& name) const;

    // Marks the tensor as used. Throws BundleError naming the tensor with both shapes.
    const Tensor& get(const std::string& name, const std::vector<int64_t>& shape) const;
    const Tensor& get(const std::string& name) const;  // whatever its shape; does not mark it

    // Keeps computed values as long as the file is open.
    const float* keep(std::vector<float> values) const { return kept_.emplace_back(std::move(values)).data(); }

    // Names never asked for; a bundle that holds some belongs to another configuration.
    std::vector<std::string> unused() const;

private:
    MappedFile file_;
    std::string name_;
    std::map<std::string, Tensor> tensors_;
    mutable std::deque<std::vector<float>> kept_;
};

}  // namespace mimo
