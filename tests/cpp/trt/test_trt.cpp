// The TensorRT backend's own logic (caches in place, profiles, captured steps, no allocation after the beginning) on a
// toy model behind stand-ins of TensorRT and CUDA (this folder). What a GPU would do is not tested here.
#include <NvInfer.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "backend/trt_graph.h"
#include "base/half.h"
#include "check.h"

using namespace mimo;

namespace {

constexpr int64_t kLevels = 2, kGroup = 2, kHidden = 2, kCapacity = 600, kMost = 128, kSteps = 3, kVocabulary = 5;

struct Spy {
    int allocations = 0, captures = 0, launches = 0, runs = 0;
    int64_t widest = 0;  // mask of the last run of the backbone
    bool full = false;   // of memory
} spy;

using Work = std::vector<std::function<void()>>;
Work* recording = nullptr;

void enqueue(std::function<void()> work) {
    if (recording)
        recording->push_back(work);
    else
        work();
}

}  // namespace

// --- CUDA

struct CUgraph_st {
    Work work;
};
struct CUgraphExec_st {
    Work work;
};

const char* cudaGetErrorString(cudaError_t) {
    return "out of memory";
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
    ++spy.allocations;
    *p = spy.full ? nullptr : std::malloc(bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
    return cudaMalloc(p, bytes);
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    std::memset(p, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    std::free(p);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
    return cudaFree(p);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    enqueue([=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = nullptr;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    ++spy.captures;
    recording = new Work;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    *graph = new CUgraph_st{std::move(*recording)};
    delete recording;
    recording = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    *made = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    ++spy.launches;
    for (const auto& work : graph->work) work();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    return cudaSuccess;
}

// --- TensorRT, and the toy stages: a hidden state is the sum of all embeddings seen

namespace nvinfer1 {
namespace {

struct Port {
    const char* name;
    bool input;
    DataType type;
    std::vector<int64_t> shape;  // -1 positions, -2 attended, -3 mel or code frames, -4 levels of the codec
};

constexpr DataType kFloat = DataType::kHALF, kInt = DataType::kINT32;

const std::vector<Port>& ports(const std::string& stage) {
    static const std::map<std::string, std::vector<Port>> all = {
        {"patch_encoder",
         {{"tokens", true, kInt, {-1}},
          {"codes", true, kInt, {kLevels, -1, kGroup}},
          {"embeds", false, kFloat, {1, -1, kHidden}}}},
        {"backbone",
         {{"embeds", true, kFloat, {1, -1, kHidden}},
          {"length", true, DataType::kINT64, {1}},
          {"mask", true, kFloat, {1, 1, -1, -2}},
          {"key.0", true, kFloat, {1, 1, kCapacity, 1}},
          {"value.0", true, kFloat, {1, 1, kCapacity, 1}},
          {"logits", false, DataType::kFLOAT, {1, kVocabulary}},
          {"local_hidden", false, kFloat, {1, kHidden}},
          {"hidden", false, kFloat, {1, -1, kHidden}},
          {"key.0.after", false, kFloat, {1, 1, kCapacity, 1}},
          {"value.0.after", false, kFloat, {1, 1, kCapacity, 1}}}},
        {"patch_decoder_step",
         {{"start", true, kFloat, {1, kHidden}},
          {"codes", true, kInt, {kLevels}},
          {"length", true, DataType::kINT64, {1}},
          {"mask", true, kFloat, {1, 1, 1, -2}},
          {"key.0", true, kFloat, {1, 1, kSteps, 1}},
          {"hidden", false, kFloat, {1, kHidden}},
          {"logits.0", false, DataType::kFLOAT, {1, 3}},
          {"logits.1", false, DataType::kFLOAT, {1, 2}},
          {"key.0.after", false, kFloat, {1, 1, kSteps, 1}}}},
        {"codec_encoder",
         {{"mel", true, DataType::kFLOAT, {-3, 3}},
          {"padded", true, DataType::kFLOAT, {1}},
          {"batched", true, DataType::kFLOAT, {1}},
          {"hidden", false, DataType::kFLOAT, {-3, 2}},
          {"codes", false, kInt, {4, -3}}}},
        {"codec_decoder", {{"codes", true, kInt, {-4, -3}}, {"wav", false, DataType::kFLOAT, {-3}}}},
    };
    return all.at(stage);
}

const Port& port(const std::string& stage, const std::string& name) {
    for (const Port& p : ports(stage))
        if (p.name == name) return p;
    throw std::out_of_range(name);
}

Dims largest(const std::string& stage, const std::string& name, int32_t profile) {
    const int64_t sizes[] = {0, profile == 0 ? 1 : kMost, stage == "backbone" ? kCapacity : kSteps, 100, 4};
    Dims out{};
    for (const int64_t size : port(stage, name).shape) out.d[out.nbDims++] = size < 0 ? sizes[-size] : size;
    return out;
}

}  // namespace

bool IExecutionContext::setOptimizationProfileAsync(int32_t profile, cudaStream_t) {
    profile_ = profile;
    return true;
}
bool IExecutionContext::setInputShape(const char* name, const Dims& sizes) {
    const Dims most = largest(stage_, name, profile_);
    for (int32_t i = 0; i < sizes.nbDims; ++i)
        if (sizes.d[i] > most.d[i]) return false;
    shapes_[name] = sizes;
    return sizes.nbDims == most.nbDims;
}
Dims IExecutionContext::getTensorShape(const char* name) const {
    if (port(stage_, name).input) return shapes_.at(name);
    Dims out{};
    for (int64_t size : port(stage_, name).shape) {
        if (size == -1) size = shapes_.at(stage_ == "backbone" ? "embeds" : "tokens").d[stage_ == "backbone" ? 1 : 0];
        if (size == -3) size = stage_ == "codec_encoder" ? shapes_.at("mel").d[0] : shapes_.at("codes").d[1];
        out.d[out.nbDims++] = size;
    }
    return out;
}
bool IExecutionContext::setTensorAddress(const char* name, void* address) {
    addresses_[name] = address;
    return true;
}
bool IExecutionContext::enqueueV3(cudaStream_t) {
    enqueue([this] { compute(); });
    return true;
}

void IExecutionContext::compute() {
    ++spy.runs;
    const auto ints = [&](const char* name) { return static_cast<int32_t*>(addresses_.at(name)); };
    const auto halves = [&](const char* name) { return static_cast<uint16_t*>(addresses_.at(name)); };
    const auto floats = [&](const char* name) { return static_cast<float*>(addresses_.at(name)); };
    if (stage_ == "patch_encoder") {
        const int64_t count = shapes_.at("tokens").d[0];
        for (int64_t p = 0; p < count; ++p) {
            int32_t sum = 0;
            for (int64_t k = 0; k < kLevels; ++k)
                for (int64_t g = 0; g < kGroup; ++g) sum += (k + 1) * ints("codes")[(k * count + p) * kGroup + g];
            halves("embeds")[p * kHidden] = float_to_half(static_cast<float>(ints("tokens")[p]));
            halves("embeds")[p * kHidden + 1] = float_to_half(static_cast<float>(sum));
        }
    } else if (stage_ == "backbone") {
        CHECK(addresses_.at("key.0") == addresses_.at("key.0.after"));
        CHECK(addresses_.at("key.0") != addresses_.at("value.0"));
        const int64_t count = shapes_.at("embeds").d[1], length = *static_cast<int64_t*>(addresses_.at("length"));
        const int64_t wide = spy.widest = shapes_.at("mask").d[3];
        CHECK(wide >= length + count);
        for (int64_t p = 0; p < count; ++p) {
            halves("key.0")[length + p] = halves("embeds")[p * kHidden];
            halves("value.0")[length + p] = halves("embeds")[p * kHidden + 1];
        }
        float key = 0, value = 0;
        for (int64_t p = 0; p < count; ++p) {
            key = value = 0;
            for (int64_t j = 0; j < wide; ++j) {
                if (halves("mask")[p * wide + j] != 0) continue;
                key += half_to_float(halves("key.0")[j]);
                value += half_to_float(halves("value.0")[j]);
            }
            halves("hidden")[p * kHidden] = float_to_half(key);
            halves("hidden")[p * kHidden + 1] = float_to_half(value);
        }
        for (int64_t v = 0; v < kVocabulary; ++v) floats("logits")[v] = key * static_cast<float>(v);
        halves("local_hidden")[0] = float_to_half(key);
        halves("local_hidden")[1] = float_to_half(value);
    } else if (stage_ == "patch_decoder_step") {
        const auto length = *static_cast<int64_t*>(addresses_.at("length"));
        float sum = half_to_float(halves("start")[0]);
        for (int64_t k = 0; k < kLevels; ++k)
            if (ints("codes")[k] >= 0) sum += static_cast<float>(ints("codes")[k]);
        halves("key.0")[length] = float_to_half(sum);
        float seen = 0;
        for (int64_t j = 0; j < kSteps; ++j)
            if (halves("mask")[j] == 0) seen += half_to_float(halves("key.0")[j]);
        for (int v = 0; v < 3; ++v) floats("logits.0")[v] = seen + static_cast<float>(v);
        for (int v = 0; v < 2; ++v) floats("logits.1")[v] = seen - static_cast<float>(v);
    } else if (stage_ == "codec_encoder") {
        for (int64_t t = 0; t < shapes_.at("mel").d[0]; ++t) {
            floats("hidden")[2 * t] = floats("mel")[3 * t];
            floats("hidden")[2 * t + 1] = *floats("padded") + 2 * *floats("batched");
        }
    } else {
        const int64_t frames = shapes_.at("codes").d[1];
        for (int64_t t = 0; t < frames; ++t) floats("wav")[t] = static_cast<float>(ints("codes")[frames + t]);
    }
}

int32_t ICudaEngine::getNbIOTensors() const {
    return static_cast<int32_t>(ports(stage_).size());
}
const char* ICudaEngine::getIOTensorName(int32_t index) const {
    return ports(stage_)[static_cast<size_t>(index)].name;
}
TensorIOMode ICudaEngine::getTensorIOMode(const char* name) const {
    return port(stage_, name).input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}
DataType ICudaEngine::getTensorDataType(const char* name) const {
    return port(stage_, name).type;
}
Dims ICudaEngine::getTensorShape(const char* name) const {
    return largest(stage_, name, 0);
}
Dims ICudaEngine::getProfileShape(const char* name, int32_t profile, OptProfileSelector) const {
    return largest(stage_, name, profile);
}
IExecutionContext* ICudaEngine::createExecutionContext() {
    return new IExecutionContext(stage_);
}
ICudaEngine* IRuntime::deserializeCudaEngine(const void* bytes, size_t size) {
    const std::string stage(static_cast<const char*>(bytes), size);
    if (stage != "broken") return new ICudaEngine(stage);
    log_.log(ILogger::Severity::kERROR, "serialised for another device");
    return nullptr;
}
IRuntime* createInferRuntime(ILogger& log) {
    return new IRuntime(log);
}

}  // namespace nvinfer1

int32_t getInferLibVersion() noexcept {
    return 100300;
}

namespace {

std::map<std::string, std::span<const std::byte>> engines() {
    static const std::string names[] = {"codec_encoder", "codec_decoder", "patch_encoder", "backbone",
                                        "patch_decoder_step"};
    std::map<std::string, std::span<const std::byte>> out;
    for (const auto& name : names) out[name] = std::as_bytes(std::span(name));
    return out;
}

// n positions whose token is 1 and whose codes are 0, but for the first.
struct Prompt {
    std::vector<int32_t> tokens, codes;
    explicit Prompt(int64_t n, int32_t token = 1)
        : tokens(static_cast<size_t>(n), token), codes(static_cast<size_t>(n * kGroup * kLevels)) {}
};

}  // namespace

TEST(trt_reads_prompts_in_runs_and_then_one_by_one) {
    const auto sequence = open_tensorrt(engines())->sequence(kCapacity);
    Prompt prompt(300);   // three runs of at most 128
    prompt.codes[1] = 7;  // level 1 of the first code frame
    Array hidden = sequence->append(0, prompt.tokens, prompt.codes, {});
    CHECK(hidden.data == (Unfilled<float>{300, 14}));
    const Prompt one(1, 2);
    for (int i = 1; i <= 4; ++i) hidden = sequence->append(299 + i, one.tokens, one.codes, {});
    CHECK(hidden.data == (Unfilled<float>{308, 14}));
    CHECK(sequence->text_logits() == (std::vector<float>{0, 308, 616, 924, 1232}));
    CHECK(sequence->local_hidden().data == hidden.data);
    hidden = sequence->append(10, one.tokens, one.codes, {});  // a rewind: what came after is not seen
    CHECK(hidden.data == (Unfilled<float>{12, 14}));
}

TEST(trt_decodes_by_a_recorded_graph_and_allocates_nothing) {
    const auto sequence = open_tensorrt(engines())->sequence(kCapacity);
    const Prompt one(1, 1);
    const Spy before = spy;
    float expected = 0;
    for (int64_t at = 0; at < kCapacity; ++at) {
        const Array hidden = sequence->append(at, one.tokens, one.codes, {});
        CHECK_EQ(hidden.data[0], ++expected);
        CHECK_EQ(spy.widest, at < 256 ? int64_t{256} : at < 512 ? int64_t{512} : kCapacity);
    }
    CHECK_EQ(spy.allocations, before.allocations);
    CHECK_EQ(spy.captures - before.captures, 4);  // the patch encoder's and a graph for each of three widths
    CHECK_EQ(spy.launches - before.launches, 2 * kCapacity - 4);
    CHECK_EQ(spy.runs - before.runs, 2 * kCapacity);
}

TEST(trt_makes_local_steps) {
    const auto sequence = open_tensorrt(engines())->sequence(100);
    const Prompt prompt(4);
    sequence->append(0, prompt.tokens, prompt.codes, {});
    for (int patch = 0; patch < 3; ++patch) {  // run, recorded, replayed
        const std::vector<int32_t> none = {-1, -1}, made = {2, -1}, both = {1, 1};
        CHECK(sequence->local_step(0, none, {}) == (std::vector<std::vector<float>>{{4, 5, 6}, {4, 3}}));
        CHECK(sequence->local_step(1, made, {})[0][0] == 6);
        CHECK(sequence->local_step(2, both, {})[0][0] == 8);
    }
}

TEST(trt_codec_stages) {
    const auto backend = open_tensorrt(engines());
    Array mel(5, 3);
    mel.row(4)[0] = 9;
    CHECK(backend->encode(mel, 5, {}).data == (Unfilled<float>{0, 0, 0, 0, 0, 0, 0, 0, 9, 0}));
    CHECK(backend->encode(mel, 6, {}).data[1] == 3);
    Codes codes(2, 3);
    codes.at(1, 2) = 8;
    CHECK(backend->decode(codes, {}) == (std::vector<float>{0, 0, 8}));
    CHECK_THROWS(backend->encode(Array(101, 3), 101, {}), DeviceError, "input mel is beyond the limits");
}

TEST(trt_says_what_does_not_fit) {
    CHECK(tensorrt_version() == "10.3.0");
    auto given = engines();
    CHECK_THROWS(open_tensorrt(given)->sequence(kCapacity + 1), DeviceError, "at least 601 positions, got 600");
    static const std::string broken = "broken";
    given["backbone"] = std::as_bytes(std::span(broken));
    CHECK_THROWS(open_tensorrt(given), DeviceError, "backbone: its engine is refused: serialised for another device");
    given.erase("backbone");
    CHECK_THROWS(open_tensorrt(given), DeviceError, "expected an engine of backbone, got none");
    spy.full = true;
    CHECK_THROWS(open_tensorrt(engines()), DeviceError, "cudaMalloc failed: out of memory");
    spy.full = false;
}

TEST(halves_round_as_the_standard_says) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float value = half_to_float(half);
        if (std::isnan(value))
            CHECK(std::isnan(half_to_float(float_to_half(value))));
        else if (std::isfinite(value))
            CHECK_EQ(float_to_half(value), half);
    }
    CHECK_EQ(float_to_half(2049.0f), float_to_half(2048.0f));  // a tie goes to the even one
    CHECK_EQ(float_to_half(2051.0f), float_to_half(2052.0f));
    CHECK_EQ(float_to_half(0x1p-25f), uint16_t{0});
    CHECK_EQ(float_to_half(0x1.8p-25f), uint16_t{1});
    CHECK_EQ(float_to_half(65519.0f), uint16_t{0x7BFF});
    CHECK_EQ(float_to_half(-65520.0f), uint16_t{0xFBFF});           // the largest
    CHECK_EQ(bfloat_to_float(float_to_bfloat(1.00390625f)), 1.0f);  // 1 + 2^-8: a tie
    CHECK_EQ(bfloat_to_float(float_to_bfloat(1.01171875f)), 1.015625f);
}
