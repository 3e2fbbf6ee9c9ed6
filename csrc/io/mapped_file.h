// A file mapped for reading: opening costs nothing, pages arrive when touched and are shared between processes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace mimo {

class MappedFile {
public:
    explicit MappedFile(const std::filesystem::path& path);  // throws BundleError if it cannot be read
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&&) = delete;

    std::span<const uint8_t> bytes() const { return {data_, size_}; }

private:
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace mimo
