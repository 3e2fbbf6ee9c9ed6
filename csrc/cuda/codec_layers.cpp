#include "cuda/codec_layers.h"

#include <algorithm>

namespace mimo::gpu {
namespace {

class CodecWeights {
public:
    CodecWeights(const Layers& layers, const Pool& pool) {
        WeightLoader loader(arena_, pool);
        const LayersConfig& c = layers.config();
        const std::vector<float> none(static_cast<size_t>(c.dim));  // keys have no bias
        const auto put_all = [&] {
            stack = {.hidden = c.dim,
                     .ffn = c.ffn_dim,
                     .eps = kLayerNormEps,
                     .up = Finish::gelu,
                     .heads = heads_of(c.heads, c.heads, c.dim / c.heads),
                     .layers = {},
                     .norm = nullptr};
            for (const Layers::Layer& from : layers.layers()) {
                LayerWeights& to = stack.layers.emplace_back();
                to.attention_norm = loader.put(from.attention_norm.weight);
                to.attention_norm_bias = loader.put(from.attention_norm.bias);
                to.ffn_norm = loader.put(from.ffn_norm.weight);
                to.ffn_norm_bias = loader.put(from.ffn_norm.bias);
                to.qkv = loader.put_qkv({from.q.weight, from.k.weight, from.v.weight},
                                        {from.q.bias, Vector(none), from.v.bias}, stack.heads, false);
                const auto linear = [&](const Linear& layer, SlabMatrix& w, const float*& bias) {
                    w = loader.put(layer.weight);
                    const std::vector<float> padded = in_order({&layer.bias, 1}, rows_in_order(layer.weight.rows));
                    bias = loader.put(std::span<const float>(padded));
                };
                linear(from.out, to.o, to.o_bias);
                linear(from.up, to.up, to.up_bias);
                linear(from.down, to.down, to.down_bias);
            }
        };
        put_all();
        arena_.allocate();
        put_all();
    }

    StackWeights stack;

private:
    Arena arena_;
};

class CodecSequence final : public DeviceLayers {
public:
    CodecSequence(std::shared_ptr<const CodecWeights> weights, int device, int64_t capacity, int64_t rows, bool keeps)
        : weights_(std::move(weights)), device_(use_device(device)), rows_(rows) {
        lay_out(capacity, keeps);
        arena_.allocate();
        lay_out(capacity, keeps);
        grid_ = grid_of(device_, shared_bytes_);
    }

    void run(Array& x, const Rope& rope, const std::vector<KeyRange>& seen, int64_t first,
             const std::function<void(int64_t layer)>& after) override {
        if (x.rows > rows_) throw ShapeError(message("codec layers: expected at most ", rows_, " rows, got ", x.rows));
        if (x.rows == 0) return;
        const auto bytes = [](const Array& a) { return std::ssize(a.data) * int64_t{4}; };
        std::vector<KeySpan> spans;
        for (const KeyRange& range : seen)
            spans.push_back({static_cast<int32_t>(range.begin), static_cast<int32_t>(range.end)});
        Request request = {};
        request.rows = static_cast<int32_t>(x.rows);
        request.length = static_cast<int32_t>(first);
        stream_.copy_in(request_, &request, sizeof(request));
        stream_.copy_in(seen_, spans.data(), std::ssize(spans) * static_cast<int64_t>(sizeof(KeySpan)));
        stream_.copy_in(cosine_, rope.cosine.data.data(), bytes(rope.cosine));
        stream_.copy_in(sine_, rope.sine.data.data(), bytes(rope.sine));
        stream_.copy_in(x_, x.data.data(), bytes(x));
        for (size_t layer = 0; after && layer < ends_.size(); ++layer) {
            stream_.run(program_, 0, grid_, layer == 0 ? 0 : ends_[layer - 1], ends_[layer]);
            stream_.copy_out(x.data.data(), x_, bytes(x));
            stream_.wait();
            after(static_cast<int64_t>(layer));
        }
        if (after) return;
        stream_.run(program_, 0, grid_);
        stream_.copy_out(x.data.data(), x_, bytes(x));
        stream_.wait();
    }

private:
    void lay_out(int64_t capacity, bool keeps) {
        StackWeights stack = weights_->stack;
        const int64_t half = stack.heads.head_dim / 2;
        request_ = arena_.take<Request>(1);
        seen_ = arena_.take<KeySpan>(rows_);
        stack.heads.cosine = cosine_ = arena_.take<float>(rows_ * half);
        stack.heads.sine = sine_ = arena_.take<float>(rows_ * half);
        stack.heads.call_angles = 1;
        // More rows than one item of attention has, so that nothing is spread over blocks.
        const StackBuffers buffers(arena_, stack, std::max<int64_t>(rows_, kMaxRows + 1), capacity, keeps);
        x_ = buffers.x;
        std::vector<Job> jobs;
        add_stack(jobs, stack, buffers, 0, Clock::request, false, seen_);
        ends_.clear();
        for (size_t i = 0; i < jobs.size(); ++i) {
            shared_bytes_ = std::max(shared_bytes_, fit(jobs[i], rows_, device_));
            if (jobs[i].op == Op::linear && jobs[i].linear.x == buffers.inner)
                ends_.push_back(static_cast<int32_t>(i) + 1);
        }
        auto* to = arena_.take<Job>(std::ssize(jobs));
        if (!arena_.counting()) {
            stream_.copy_in(to, jobs.data(), std::ssize(jobs) * static_cast<int64_t>(sizeof(Job)));
            stream_.wait();
        }
        program_ = {.jobs = to,
                    .before = static_cast<int32_t>(jobs.size()),
                    .each = 0,
                    .steps = 0,
                    .request = request_,
                    .patches = nullptr,
                    .answer = nullptr,
                    .codes = nullptr,
                    .arrived = arena_.take<uint32_t>(1)};
    }

    std::shared_ptr<const CodecWeights> weights_;
    Device device_;
    int64_t rows_;
    Arena arena_;
    Stream stream_;
    Grid grid_;
    int64_t shared_bytes_ = 0;
    Program program_;
    std::vector<int32_t> ends_;  // jobs up to the end of each layer
    Request* request_ = nullptr;
    KeySpan* seen_ = nullptr;
    float *cosine_ = nullptr, *sine_ = nullptr, *x_ = nullptr;
};

}  // namespace

LayersDevice::Open CodecLayers::load(const Layers& layers) const {
    use_device(device_);
    const auto weights = std::make_shared<CodecWeights>(layers, pool_);
    return [weights, device = device_](int64_t capacity, int64_t rows, bool keeps) {
        return std::make_unique<CodecSequence>(weights, device, capacity, rows, keeps);
    };
}

}  // namespace mimo::gpu
