// Arrays and single jobs on the device under test: a GPU, or the host that plays one.
#pragma once

#include <optional>
#include <random>

#include "cuda/arena.h"
#include "cuda/pack.h"

namespace on_device {

inline std::vector<float> noise(int64_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = normal(random);
    return values;
}

// A copy of values in device memory.
template <typename T>
class Buffer {
public:
    explicit Buffer(const std::vector<T>& values)
        : count_(values.size()), memory_(static_cast<int64_t>(values.size() * sizeof(T))) {
        mimo::gpu::Stream stream;
        stream.copy_in(memory_.as<T>(), values.data(), static_cast<int64_t>(count_ * sizeof(T)));
        stream.wait();
    }
    explicit Buffer(int64_t count, T value = T()) : Buffer(std::vector<T>(static_cast<size_t>(count), value)) {}

    T* data() const { return memory_.as<T>(); }

    std::vector<T> read() const {
        std::vector<T> values(count_);
        mimo::gpu::Stream stream;
        stream.copy_out(values.data(), memory_.as<T>(), static_cast<int64_t>(count_ * sizeof(T)));
        stream.wait();
        return values;
    }

private:
    size_t count_;
    mimo::gpu::Memory memory_;
};

// Weights on the device.
class Slabs {
public:
    Slabs(std::span<const mimo::Matrix> sources, const std::vector<mimo::gpu::SourceRow>& order, int64_t rows)
        : w(mimo::gpu::slab_shape(sources, rows)) {
        const mimo::Pool pool(1);
        std::vector<uint8_t> data(static_cast<size_t>(mimo::gpu::data_bytes(w)));
        std::vector<uint8_t> scales(static_cast<size_t>(mimo::gpu::scale_bytes(w)));
        mimo::gpu::pack_slabs(pool, sources, order, w, data.data(), scales.data());
        data_.emplace(data);
        scales_.emplace(scales);
        w.data = data_->data();
        w.scales = scales_->data();
    }
    explicit Slabs(const mimo::Matrix& source)
        : Slabs({&source, 1}, mimo::gpu::rows_in_order(source.rows), source.rows) {}

    mimo::gpu::SlabMatrix w;

private:
    std::optional<Buffer<uint8_t>> data_, scales_;
};

// Runs one job once, at `step`, with shared_bytes of shared memory. Returns what the request was answered.
inline mimo::gpu::Answer run(const mimo::gpu::Job& job, int64_t shared_bytes, const mimo::gpu::Request& request = {},
                             int32_t step = 0, std::vector<int32_t>* codes = nullptr) {
    using namespace mimo::gpu;
    const Buffer<Job> jobs(std::vector<Job>(static_cast<size_t>(1), job));
    const Buffer<Request> asked(std::vector<Request>{request});
    const Buffer<Answer> answer(1);
    const Buffer<uint32_t> arrived(1);
    const Buffer<int32_t> made(codes ? *codes : std::vector<int32_t>(64));
    const Program program = {.jobs = jobs.data(),
                             .before = 0,
                             .each = 1,
                             .steps = step + 1,
                             .request = asked.data(),
                             .patches = made.data(),
                             .answer = answer.data(),
                             .codes = made.data(),
                             .arrived = arrived.data()};
    Stream stream;
    stream.run(program, 0, grid_of(use_device(0), shared_bytes), step, step + 1);
    stream.wait();
    if (codes) *codes = made.read();
    return answer.read()[0];
}

}  // namespace on_device
