#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace mimo {

MappedFile::MappedFile(const std::filesystem::path& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a named pipe would wait for a writer
    struct stat info = {};
    const bool opened = file >= 0 && fstat(file, &info) == 0;
    if (!opened || !S_ISREG(info.st_mode)) {
        const std::string reason = opened ? "not a regular file" : std::strerror(errno);
        if (file >= 0) close(file);
        throw BundleError(message("open: expected a readable file at ", path.string(), ", got: ", reason));
    }
    size_ = static_cast<size_t>(info.st_size);
    void* data = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (data == MAP_FAILED) {
        throw BundleError(message("open: expected to map ", path.string(), ", got: ", std::strerror(errno)));
    }
    // Weights on large pages where the kernel has them for files (Linux 6.16 with ext4, say), else nothing happens.
    if (data) madvise(data, size_, MADV_HUGEPAGE);
    data_ = static_cast<const uint8_t*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

}  // namespace mimo
