#include "backend/trt_graph.h"

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "base/half.h"

namespace mimo {
namespace {

constexpr float kUnseen = -30000.0f;      // added to the score of a position that may not be looked at; finite in half
constexpr int64_t kNarrowest = 256;       // positions attended by the first decode context; each next doubles
constexpr int kDecode = 0, kPrefill = 1;  // profiles of patch_encoder and backbone

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    throw DeviceError(message("tensorrt: ", what, " failed: ", cudaGetErrorString(status),
                              "; is there a GPU with a driver, and memory left on it?"));
}

class Log final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* text) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard lock(mutex_);
        last_ = text;
    }
    std::string last() {
        const std::lock_guard lock(mutex_);
        return last_.empty() ? "TensorRT gave no reason" : last_;
    }

private:
    std::mutex mutex_;
    std::string last_;
};

// --- what CUDA lends, given back by destructors

struct DeviceFree {
    void operator()(void* p) const { cudaFree(p); }
};
struct HostFree {
    void operator()(void* p) const { cudaFreeHost(p); }
};
using DeviceMemory = std::shared_ptr<void>;
using HostMemory = std::unique_ptr<void, HostFree>;

DeviceMemory device_zeros(int64_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))), "cudaMalloc");
    DeviceMemory owner(memory, DeviceFree{});
    check(cudaMemset(memory, 0, static_cast<size_t>(bytes)), "cudaMemset");
    check(cudaStreamSynchronize(nullptr), "cudaMemset");  // our streams do not wait for that of cudaMemset
    return owner;
}

HostMemory pinned(int64_t bytes) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))), "cudaMallocHost");
    return HostMemory(memory);
}

class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    operator cudaStream_t() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

private:
    cudaStream_t stream_ = nullptr;
};

struct GraphDestroy {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using Captured = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, GraphDestroy>;

// --- an engine

int64_t element_bytes(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32:
            return 4;
        case nvinfer1::DataType::kHALF:
        case nvinfer1::DataType::kBF16:
            return 2;
        case nvinfer1::DataType::kINT64:
            return 8;
        default:
            throw DeviceError("tensorrt: expected tensors of float, half, bfloat16, int32 or int64, got another type");
    }
}

int64_t count_of(const nvinfer1::Dims& shape) {
    int64_t count = 1;
    for (int32_t i = 0; i < shape.nbDims; ++i) count *= shape.d[i];
    return count;
}

nvinfer1::Dims dims(std::initializer_list<int64_t> sizes) {
    nvinfer1::Dims out{};
    out.nbDims = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), out.d);
    return out;
}

// Whether a tensor of a stage is one of its caches: "key.3", "value.3.after".
bool is_cache(const std::string& name) {
    return name.starts_with("key.") || name.starts_with("value.");
}

std::string before(const std::string& name) {
    return name.ends_with(".after") ? name.substr(0, name.size() - 6) : name;
}

class Engine {
public:
    Engine(nvinfer1::IRuntime& runtime, Log& log, std::string stage, std::span<const std::byte> bytes)
        : log_(log), stage_(std::move(stage)), engine_(runtime.deserializeCudaEngine(bytes.data(), bytes.size())) {
        if (!engine_) throw DeviceError(message("tensorrt: ", stage_, ": its engine is refused: ", log_.last()));
        for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) names_.emplace_back(engine_->getIOTensorName(i));
    }

    const std::string& stage() const { return stage_; }
    const std::vector<std::string>& names() const { return names_; }
    bool is_input(const std::string& name) const {
        return engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
    }
    nvinfer1::DataType type(const std::string& name) const { return engine_->getTensorDataType(name.c_str()); }

    // Size of an input's axis: the largest that a profile allows.
    int64_t most(const std::string& name, int32_t axis, int profile) const { return largest(name, profile).d[axis]; }
    nvinfer1::Dims largest(const std::string& name, int profile) const {
        const auto shape = engine_->getProfileShape(name.c_str(), profile, nvinfer1::OptProfileSelector::kMAX);
        return shape.nbDims >= 0 ? shape : engine_->getTensorShape(name.c_str());  // an input without dynamic axes
    }

    std::unique_ptr<nvinfer1::IExecutionContext> context() const {
        std::unique_ptr<nvinfer1::IExecutionContext> made(engine_->createExecutionContext());
        if (!made) throw DeviceError(message("tensorrt: ", stage_, ": no execution context: ", log_.last()));
        return made;
    }
    [[noreturn]] void fail(const std::string& what) const {
        throw DeviceError(message("tensorrt: ", stage_, ": ", what, ": ", log_.last()));
    }

private:
    Log& log_;
    std::string stage_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::vector<std::string> names_;
};

using Shared = std::map<std::string, DeviceMemory>;

// New caches of an engine, zero, one buffer for before and after.
Shared caches_of(const Engine& engine) {
    Shared caches;
    for (const auto& name : engine.names()) {
        if (is_cache(name) && engine.is_input(name))
            caches[name] = device_zeros(count_of(engine.largest(name, 0)) * element_bytes(engine.type(name)));
    }
    return caches;
}

// --- an engine's context at one profile, with a buffer a tensor, all made here

class Run {
public:
    // shared: buffers of others by name (caches, embeddings); what is not shared is copied from and to the host.
    Run(const Engine& engine, int profile, const Stream& stream, const Shared& shared = {})
        : engine_(engine), stream_(stream), context_(engine.context()) {
        if (!context_->setOptimizationProfileAsync(profile, stream_)) engine_.fail("profile refused");
        for (const auto& name : engine_.names()) {
            if (engine_.is_input(name)) shape(name, engine_.largest(name, profile));
        }
        for (const auto& name : engine_.names()) {
            Tensor tensor = {.type = engine_.type(name), .input = engine_.is_input(name), .device = {}, .host = {}};
            const int64_t bytes = count_of(context_->getTensorShape(name.c_str())) * element_bytes(tensor.type);
            const auto lent = shared.find(before(name));
            tensor.device = lent != shared.end() ? lent->second : device_zeros(bytes);
            if (lent == shared.end()) tensor.host = pinned(bytes);
            if (!context_->setTensorAddress(name.c_str(), tensor.device.get())) engine_.fail(name + " has no place");
            tensors_.emplace(name, std::move(tensor));
        }
    }

    DeviceMemory memory(const std::string& name) const { return at(name).device; }

    void shape(const std::string& name, const nvinfer1::Dims& sizes) {
        if (!context_->setInputShape(name.c_str(), sizes))
            engine_.fail("input " + name + " is beyond the limits the engine was built for");
    }

    // Values for an input; floats become what the engine computes in.
    void set(const std::string& name, const nvinfer1::Dims& sizes, std::span<const float> values) {
        shape(name, sizes);
        const Tensor& tensor = at(name);
        if (tensor.type == nvinfer1::DataType::kFLOAT) {
            std::memcpy(tensor.host.get(), values.data(), values.size_bytes());
            return;
        }
        auto* out = static_cast<uint16_t*>(tensor.host.get());
        const bool half = tensor.type == nvinfer1::DataType::kHALF;
        std::transform(values.begin(), values.end(), out, half ? float_to_half : float_to_bfloat);
    }
    void set(const std::string& name, const nvinfer1::Dims& sizes, std::span<const int32_t> values) {
        shape(name, sizes);
        std::memcpy(at(name).host.get(), values.data(), values.size_bytes());
    }
    void set_length(int64_t length) { std::memcpy(at("length").host.get(), &length, sizeof length); }

    // Which of the first `wide` positions each of `rows` new ones after `length` sees: all up to itself.
    void set_mask(int64_t length, int64_t rows, int64_t wide) {
        mask_.assign(static_cast<size_t>(rows * wide), kUnseen);
        for (int64_t row = 0; row < rows; ++row) std::fill_n(mask_.begin() + row * wide, length + row + 1, 0.0f);
        set("mask", dims({1, 1, rows, wide}), mask_);
    }

    // Queues copies in, the engine, copies out. captured: the first call runs, the second records a CUDA graph of it,
    // the others replay that; shapes then must not change from call to call.
    void start(bool captured = false) {
        if (!captured || !warm_) {
            queue();
            warm_ = true;
        } else {
            if (!graph_) record();
            check(cudaGraphLaunch(graph_.get(), stream_), "cudaGraphLaunch");
        }
    }

    // An output of the last run that has been waited for. count: its first values.
    std::vector<float> floats(const std::string& name, int64_t first, int64_t count) const {
        const Tensor& tensor = at(name);
        std::vector<float> out(static_cast<size_t>(count));
        if (tensor.type == nvinfer1::DataType::kFLOAT) {
            std::copy_n(static_cast<const float*>(tensor.host.get()) + first, count, out.begin());
        } else {
            const auto* in = static_cast<const uint16_t*>(tensor.host.get()) + first;
            std::transform(in, in + count, out.begin(),
                           tensor.type == nvinfer1::DataType::kHALF ? half_to_float : bfloat_to_float);
        }
        return out;
    }
    nvinfer1::Dims made(const std::string& name) const { return context_->getTensorShape(name.c_str()); }

private:
    struct Tensor {
        nvinfer1::DataType type;
        bool input;
        DeviceMemory device;
        HostMemory host;  // none if the buffer is shared
    };

    const Tensor& at(const std::string& name) const {
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) engine_.fail("expected a tensor " + name + ", got none; build the engines again");
        return found->second;
    }

    void queue() {
        copy(true);
        if (!context_->enqueueV3(stream_)) engine_.fail("a run failed");
        copy(false);
    }

    void copy(bool inputs) {
        for (const auto& [name, tensor] : tensors_) {
            if (!tensor.host || tensor.input != inputs) continue;
            const auto bytes =
                static_cast<size_t>(count_of(context_->getTensorShape(name.c_str())) * element_bytes(tensor.type));
            if (inputs) {
                check(cudaMemcpyAsync(tensor.device.get(), tensor.host.get(), bytes, cudaMemcpyHostToDevice, stream_),
                      "copy to the GPU");
            } else {
                check(cudaMemcpyAsync(tensor.host.get(), tensor.device.get(), bytes, cudaMemcpyDeviceToHost, stream_),
                      "copy from the GPU");
            }
        }
    }

    void record() {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t made = nullptr;
        check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        try {
            queue();
        } catch (...) {
            cudaStreamEndCapture(stream_, &graph);
            if (graph) cudaGraphDestroy(graph);
            throw;
        }
        check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
        const cudaError_t status = cudaGraphInstantiateWithFlags(&made, graph, 0);
        cudaGraphDestroy(graph);
        check(status, "cudaGraphInstantiate");
        graph_.reset(made);
    }

    const Engine& engine_;
    const Stream& stream_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::map<std::string, Tensor> tensors_;
    std::vector<float> mask_;
    Captured graph_;
    bool warm_ = false;
};

// --- the seam

// What all conversations share.
struct Engines {
    Log log;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::map<std::string, Engine> stages;

    explicit Engines(const std::map<std::string, std::span<const std::byte>>& serialised)
        : runtime(nvinfer1::createInferRuntime(log)) {
        if (!runtime) throw DeviceError(message("tensorrt: it does not start: ", log.last()));
        for (const char* stage :
             {"codec_encoder", "codec_decoder", "patch_encoder", "backbone", "patch_decoder_step"}) {
            const auto found = serialised.find(stage);
            if (found == serialised.end())
                throw DeviceError(message("tensorrt: expected an engine of ", stage, ", got none"));
            stages.try_emplace(stage, *runtime, log, stage, found->second);
        }
    }
};

class TrtSequence final : public Sequence {
public:
    TrtSequence(std::shared_ptr<const Engines> engines, int64_t capacity)
        : engines_(std::move(engines)), backbone_(engines_->stages.at("backbone")) {
        const Engine& embed = engines_->stages.at("patch_encoder");
        const Engine& local = engines_->stages.at("patch_decoder_step");
        capacity_ = backbone_.most("mask", 3, kDecode);
        if (capacity > capacity_) {
            throw DeviceError(message("tensorrt: expected engines for at least ", capacity, " positions, got ",
                                      capacity_, "; mimo-edge build-engine --capacity ", capacity));
        }
        const nvinfer1::Dims codes = embed.largest("codes", kDecode);
        levels_ = codes.d[0];
        group_ = codes.d[2];
        most_ = backbone_.most("embeds", 1, kPrefill);
        hidden_size_ = backbone_.most("embeds", 2, kDecode);
        local_dim_ = local.most("start", 1, 0);
        steps_ = local.most("mask", 3, 0);

        Shared shared = caches_of(backbone_);
        for (const int profile : {kDecode, kPrefill}) embed_.push_back(std::make_unique<Run>(embed, profile, stream_));
        shared["embeds"] = embed_[kPrefill]->memory("embeds");
        prefill_ = std::make_unique<Run>(backbone_, kPrefill, stream_, shared);
        shared["embeds"] = embed_[kDecode]->memory("embeds");
        for (int64_t wide = std::min(kNarrowest, capacity_);; wide = std::min(2 * wide, capacity_)) {
            decode_.push_back({wide, std::make_unique<Run>(backbone_, kDecode, stream_, shared)});
            if (wide == capacity_) break;
        }
        local_ = std::make_unique<Run>(local, 0, stream_, caches_of(local));
        for (const auto& name : local.names()) {
            if (name.starts_with("logits.")) scores_.emplace_back();
        }
        stream_.wait();
    }

    Array append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes,
                 const Tap& tap) override {
        const auto count = static_cast<int64_t>(tokens.size());
        Array last;
        for (int64_t begin = 0; begin < count; begin += most_) {
            const int64_t rows = std::min(most_, count - begin);
            Run& run = read(first + begin, tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows)),
                            codes.subspan(static_cast<size_t>(begin * group_ * levels_)));
            if (tap) tap("backbone.hidden", {rows, hidden_size_}, run.floats("hidden", 0, rows * hidden_size_).data());
            last = row_of(run, "hidden", (rows - 1) * hidden_size_, hidden_size_);
            last_ = &run;
        }
        return last;
    }

    std::vector<float> text_logits() override { return last_->floats("logits", 0, count_of(last_->made("logits"))); }

    Array local_hidden() override { return row_of(*last_, "local_hidden", 0, local_dim_); }

    std::vector<std::vector<float>> local_step(int64_t step, std::span<const int32_t> made, const Tap&) override {
        const std::vector<float> silent(static_cast<size_t>(local_dim_));
        local_->set("start", dims({1, local_dim_}), step == 0 ? local_hidden().values() : silent);
        local_->set("codes", dims({levels_}), made);
        local_->set_length(step);
        local_->set_mask(step, 1, steps_);  // as wide as the cache: one shape, one recorded graph for all steps
        local_->start(true);
        stream_.wait();
        for (size_t level = 0; level < scores_.size(); ++level) {
            const std::string name = "logits." + std::to_string(level);
            scores_[level] = local_->floats(name, 0, count_of(local_->made(name)));
        }
        return scores_;
    }

private:
    // codes [n, G, K] -> the graph's [K, n, G]; then both graphs, one after the other on the GPU.
    Run& read(int64_t length, std::span<const int32_t> tokens, std::span<const int32_t> codes) {
        const auto rows = static_cast<int64_t>(tokens.size());
        codes_.resize(static_cast<size_t>(levels_ * rows * group_));
        for (int64_t at = 0; at < rows * group_; ++at) {
            for (int64_t level = 0; level < levels_; ++level)
                codes_[static_cast<size_t>(level * rows * group_ + at)] =
                    codes[static_cast<size_t>(at * levels_ + level)];
        }
        Run& embed = *embed_[rows == 1 ? kDecode : kPrefill];
        embed.set("tokens", dims({rows}), tokens);
        embed.set("codes", dims({levels_, rows, group_}), codes_);
        embed.start(rows == 1);

        const auto fits = [&](const auto& context) { return context.first >= length + 1; };
        const auto found = std::find_if(decode_.begin(), decode_.end(), fits);
        Run& run = rows == 1 ? *found->second : *prefill_;
        const int64_t wide = rows == 1 ? found->first : std::min(round_up(length + rows), capacity_);
        run.shape("embeds", dims({1, rows, hidden_size_}));
        run.set_length(length);
        run.set_mask(length, rows, wide);
        run.start(rows == 1);
        stream_.wait();
        return run;
    }

    static int64_t round_up(int64_t positions) { return (positions + kNarrowest - 1) / kNarrowest * kNarrowest; }

    static Array row_of(const Run& run, const char* name, int64_t first, int64_t cols) {
        return {1, cols, run.floats(name, first, cols)};
    }

    std::shared_ptr<const Engines> engines_;
    const Engine& backbone_;
    Stream stream_;
    int64_t capacity_, levels_, group_, most_, hidden_size_, local_dim_, steps_;
    std::vector<std::unique_ptr<Run>> embed_;
    std::vector<std::pair<int64_t, std::unique_ptr<Run>>> decode_;  // by positions attended: a context has one graph
    std::unique_ptr<Run> prefill_, local_;
    Run* last_ = nullptr;
    std::vector<int32_t> codes_;
    std::vector<std::vector<float>> scores_;
};

class TrtBackend final : public Backend {
public:
    explicit TrtBackend(std::shared_ptr<const Engines> engines)
        : engines_(std::move(engines)),
          encoder_(engines_->stages.at("codec_encoder"), 0, stream_),
          decoder_(engines_->stages.at("codec_decoder"), 0, stream_) {
        stream_.wait();
    }

    std::shared_ptr<Sequence> sequence(int64_t capacity) const override {
        return std::make_shared<TrtSequence>(engines_, capacity);
    }

    Array encode(const Array& mel, int64_t longest, const Tap&) const override {
        const std::lock_guard lock(mutex_);
        const std::vector<float> shorter = {mel.rows < longest ? 1.0f : 0.0f};
        encoder_.set("mel", dims({mel.rows, mel.cols}), mel.data);
        encoder_.set("padded", dims({1}), shorter);
        encoder_.set("batched", dims({1}), shorter);
        encoder_.start();
        stream_.wait();
        const nvinfer1::Dims made = encoder_.made("hidden");
        return {made.d[0], made.d[1], encoder_.floats("hidden", 0, count_of(made))};
    }

    std::vector<float> decode(const Codes& codes, const Tap&) const override {
        const std::lock_guard lock(mutex_);
        decoder_.set("codes", dims({codes.levels, codes.frames}), codes.data);
        decoder_.start();
        stream_.wait();
        return decoder_.floats("wav", 0, count_of(decoder_.made("wav")));
    }

private:
    std::shared_ptr<const Engines> engines_;
    Stream stream_;
    mutable std::mutex mutex_;  // one codec context for all conversations
    mutable Run encoder_, decoder_;
};

}  // namespace

std::string tensorrt_version() {
    const int32_t version = getInferLibVersion();  // of the library that is loaded: 100300 for 10.3.0
    return message(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

std::shared_ptr<const Backend> open_tensorrt(const std::map<std::string, std::span<const std::byte>>& engines) {
    return std::make_shared<TrtBackend>(std::make_shared<const Engines>(engines));
}

}  // namespace mimo
