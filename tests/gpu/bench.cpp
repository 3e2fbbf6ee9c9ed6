// Times on a GPU, at the released shape, on weights made up on the spot: bandwidth, one barrier, every linear layer,
// one backbone step, its token, one patch, a layer of the codec. Prints the report's tables (Markdown).
//
//   mimo_gpu_bench [--small]     small: a tenth of the layers and the context, to try the program itself
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <string_view>

#include "cuda/sequence.h"
#include "tiny_model.h"

using namespace mimo;
using namespace mimo::gpu;

namespace {

LmConfig released_shape() {  // MiMo-Audio-7B's config.json
    return {.hidden_size = 4096,
            .num_hidden_layers = 36,
            .num_attention_heads = 32,
            .num_key_value_heads = 8,
            .head_dim = 128,
            .intermediate_size = 11008,
            .vocab_size = 151680,
            .rope_theta = 640000,
            .rms_norm_eps = 1e-6,
            .max_position_embeddings = 8192,
            .tie_word_embeddings = false,
            .group_size = 4,
            .audio_channels = 8,
            .delay_pattern = {0, 1, 2, 3, 4, 5, 6, 7},
            .speech_vocab_size = {1025, 1025, 129, 129, 129, 129, 129, 129},
            .speech_zeroemb_idx = {1024, 1024, 128, 128, 128, 128, 128, 128},
            .local_dim = 1024,
            .local_layers = 16,
            .local_attn_heads = 64,
            .local_ffn_dim = 4096,
            .input_local_dim = 1024,
            .input_local_layers = 6,
            .input_full_attention = true};
}

// Random bytes that every matrix looks at: what they hold does not change the time, as long as it is not all zeros.
class MadeUp {
public:
    explicit MadeUp(int64_t bytes) : bytes_(static_cast<size_t>(bytes)), half_(1 << 22, 0x1000), ones_(1 << 18, 1.0f) {
        std::mt19937_64 random(1);
        for (size_t i = 0; i + 8 <= bytes_.size(); i += 8) {
            uint64_t bits = random();
            std::memcpy(bytes_.data() + i, &bits, 8);
        }
        // As bfloat16 and E4M3: exponents that keep sums small.
        for (uint8_t& byte : bytes_) byte &= 0xB7;
        for (float& scale : scales_) scale = 1e-4f;
    }

    Matrix matrix(int64_t rows, int64_t cols, DType type, int bits) const {
        const bool packed = type == DType::i8 || type == DType::f8_e4m3;
        return {.data = bytes_.data(),
                .rows = rows,
                .cols = cols,
                .type = type,
                .scales = type == DType::i4 ? static_cast<const void*>(half_.data()) : scales_.data(),
                .group = packed ? cols : 128,
                .activation_bits = bits};
    }
    Vector ones(int64_t n) const { return {ones_.data(), static_cast<size_t>(n)}; }

private:
    std::vector<uint8_t> bytes_;
    std::vector<uint16_t> half_;  // [rows, groups] of int4
    std::vector<float> scales_ = std::vector<float>(1 << 18);
    std::vector<float> ones_;
};

float median(std::vector<float> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

float time_of(Stream& stream, const std::function<void()>& work, int repeats = 7) {
    work();
    stream.wait();
    std::vector<float> ms;
    for (int i = 0; i < repeats; ++i) ms.push_back(stream.time(work));
    return median(ms);
}

// Bytes a second, counting those read and those written.
double copy_bandwidth(int64_t bytes) {
    const Memory from(bytes), to(bytes);
    Stream stream;
    return 2.0 * static_cast<double>(bytes) /
           (1e-3 * time_of(stream, [&] { stream.copy(to.as<char>(), from.as<char>(), bytes); }));
}

// A list of jobs with memory for what they need.
struct List {
    Memory jobs, request, answer, codes, arrived;
    Program program;

    explicit List(const std::vector<Job>& list, int32_t steps)
        : jobs(std::ssize(list) * static_cast<int64_t>(sizeof(Job))),
          request(static_cast<int64_t>(sizeof(Request))),
          answer(static_cast<int64_t>(sizeof(Answer))),
          codes(1024),
          arrived(4) {
        Stream stream;
        stream.copy_in(jobs.as<Job>(), list.data(), jobs.bytes());
        stream.wait();
        program = {.jobs = jobs.as<Job>(),
                   .before = 0,
                   .each = static_cast<int32_t>(list.size()),
                   .steps = steps,
                   .request = request.as<Request>(),
                   .patches = codes.as<int32_t>(),
                   .answer = answer.as<Answer>(),
                   .codes = codes.as<int32_t>(),
                   .arrived = arrived.as<uint32_t>()};
    }
};

double barrier_us(const Device& device) {
    Job job = {};
    job.op = Op::text;  // of no rows: nothing but the barrier
    job.text.table.cols = 1;
    const int32_t steps = 2000;
    const List list({job}, steps);
    Stream stream;
    const Grid grid = grid_of(device, 4096);
    return 1e3 * time_of(stream, [&] { stream.run(list.program, 0, grid); }) / steps;
}

struct Layer {
    const char* name;
    int64_t rows, cols;
};

// Microseconds of one linear layer among others like it, whose weights together do not fit in the cache.
double linear_us(const Device& device, const MadeUp& made_up, const Layer& layer, DType type, int bits, int rows,
                 int64_t& bytes) {
    const Matrix source = made_up.matrix(layer.rows, layer.cols, type, bits);
    SlabMatrix w = slab_shape({&source, 1}, layer.rows);
    bytes = data_bytes(w) + scale_bytes(w);
    const int64_t copies = std::clamp<int64_t>(4 * device.cache_bytes / bytes, 2, 64);
    const Memory data(copies * data_bytes(w)), scales(copies * scale_bytes(w));
    const Memory x(rows * layer.cols * 4), y(rows * layer.rows * 4);
    Stream stream;
    int64_t shared = 0;
    std::vector<Job> jobs;
    for (int64_t i = 0; i < copies; ++i) {
        w.data = data.as<uint8_t>() + i * data_bytes(w);
        w.scales = scales.as<uint8_t>() + i * scale_bytes(w);
        stream.copy_in(data.as<uint8_t>() + i * data_bytes(w), source.data, data_bytes(w));
        stream.wait();
        Job job = {};
        job.op = Op::linear;
        job.linear.w = w;
        job.linear.x = x.as<float>();
        job.linear.x_stride = layer.cols;
        job.linear.rows = rows;
        job.linear.out = y.as<float>();
        job.linear.out_stride = layer.rows;
        shared = fit(job, rows, device);
        jobs.push_back(job);
    }
    const List list(jobs, 8);
    const Grid grid = grid_of(device, shared);
    return 1e3 * time_of(stream, [&] { stream.run(list.program, 0, grid); }) / static_cast<double>(8 * copies);
}

struct Recipe {
    const char* name;
    DType backbone, local;
    int bits;
};

const char* short_name(DType type) {
    return type == DType::i4 ? "INT4" : type == DType::i8 ? "INT8" : type == DType::f8_e4m3 ? "FP8" : "bf16";
}

int64_t bytes_of_layers(const StackWeights& stack) {
    int64_t bytes = 0;
    for (const LayerWeights& layer : stack.layers) {
        for (const QkvPart& part : layer.qkv) bytes += data_bytes(part.w) + scale_bytes(part.w);
        for (const SlabMatrix& w : {layer.o, layer.up, layer.down}) bytes += data_bytes(w) + scale_bytes(w);
    }
    return bytes;
}

void time_model(const Device& device, const MadeUp& made_up, const Config& config, const Recipe& recipe,
                double bandwidth) {
    Tensors tensors;
    tensors.matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
        const bool backbone = name.starts_with("model.layers") || name.starts_with("lm_head");
        const bool table = name.find("embed") != std::string::npos;
        return made_up.matrix(rows, cols, table ? DType::i8 : backbone ? recipe.backbone : recipe.local, recipe.bits);
    };
    tensors.vector = [&](const std::string&, int64_t n) { return made_up.ones(n); };
    const Pool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    const auto weights = std::make_shared<LmWeights>(config, tensors, pool);
    const int64_t length = std::min<int64_t>(500, config.lm.max_position_embeddings / 2);
    CudaSequence sequence(config, weights, device, length + 64);
    const auto [append, token, patch] = sequence.time(length, 20);
    const auto floor_ms = [&](int64_t bytes) { return 1e3 * static_cast<double>(bytes) / bandwidth; };
    const double step = floor_ms(bytes_of_layers(weights->backbone) + bytes_of_layers(weights->encoder));
    const double head = floor_ms(data_bytes(weights->text_head) + scale_bytes(weights->text_head));
    const double decoder = floor_ms(bytes_of_layers(weights->decoder) * config.lm.local_steps());
    std::printf("| %s | %.2f / %.2f (%.1f×) | %.2f / %.2f (%.1f×) | %.2f / %.2f (%.1f×) | %.2f | %.0f× |\n",
                recipe.name, append, step, append / step, token, head, token / head, patch, decoder, patch / decoder,
                append + token + patch, 160 / (append + token + patch));
    std::fflush(stdout);
}

// Two of the codec's layers in bf16, with the copies there and back: milliseconds a layer for `rows` positions.
float codec_layer_ms(const LayersConfig& c, const Weights& weights, int64_t rows) {
    const Pool pool(1);
    const CodecLayers device(0, pool);
    const Layers layers(c, weights, &device);
    LayersMemory memory = layers.memory(c.left, rows);
    std::vector<float> ms;
    for (int i = 0; i < 8; ++i) {
        Array x(rows, c.dim);
        const auto begin = std::chrono::steady_clock::now();
        layers.append({pool, plain_kernels()}, x, 0, memory);
        ms.push_back(std::chrono::duration<float, std::milli>(std::chrono::steady_clock::now() - begin).count());
    }
    return median(ms) / static_cast<float>(c.count);
}

}  // namespace

int main(int count, char** arguments) {
    const bool small = count > 1 && std::string_view(arguments[1]) == "--small";
    const Device device = use_device(0);
    Config config = {};
    config.lm = released_shape();
    config.tokens.empty = 151667;
    if (small) {
        config.lm.num_hidden_layers = config.lm.local_layers = config.lm.input_local_layers = 1;
        config.lm.hidden_size = 256;
        config.lm.num_attention_heads = 2;
        config.lm.num_key_value_heads = 1;
        config.lm.intermediate_size = 300;
        config.lm.vocab_size = 2000;
        config.lm.local_dim = config.lm.input_local_dim = 128;
        config.lm.local_attn_heads = 8;
        config.lm.local_ffn_dim = 200;
        config.lm.max_position_embeddings = 128;
        config.tokens.empty = 1999;
    }
    const double bandwidth = copy_bandwidth(small ? 1 << 20 : int64_t{1} << 31);
    std::printf("%s, SM %d, %d multiprocessors, L2 %.0f MB, %s launch. ", device.name.c_str(), device.sm,
                device.processors, static_cast<double>(device.cache_bytes) / 1e6,
                device.cooperative ? "cooperative" : "separate");
    std::printf("Device copy: %.2f TB/s (read + written). A job of nothing, with its barrier: %.2f µs.\n\n",
                bandwidth / 1e12, barrier_us(device));

    const MadeUp made_up(small ? 1 << 22 : int64_t{1} << 31);
    std::printf("| linear layer | | rows | µs | of the copy's bandwidth |\n|---|---|---|---|---|\n");
    const std::vector<Layer> layers =
        small ? std::vector<Layer>{{"small", 256, 300}}
              : std::vector<Layer>{{"patch decoder qkv", 3072, 1024},  {"patch decoder gate, up", 8192, 1024},
                                   {"patch decoder down", 1024, 4096}, {"backbone qkv", 6144, 4096},
                                   {"backbone o", 4096, 4096},         {"backbone gate, up", 22016, 4096},
                                   {"backbone down", 4096, 11008},     {"text head", 151680, 4096}};
    for (const Layer& layer : layers) {
        for (const DType type : {DType::i4, DType::i8, DType::f8_e4m3, DType::bf16}) {
            for (const int rows : {1, 4}) {
                if (rows > 1 && (layer.rows > 100000 || type == DType::bf16 || type == DType::f8_e4m3)) continue;
                int64_t bytes = 0;
                const double us = linear_us(device, made_up, layer, type, 16, rows, bytes);
                std::printf("| %s | %s | %d | %.2f | %.0f %% |\n", layer.name, short_name(type), rows, us,
                            100 * static_cast<double>(bytes) / (us * 1e-6) / bandwidth);
                std::fflush(stdout);
            }
        }
    }
    std::printf(
        "\nMilliseconds / floor by weights and that bandwidth. Backbone: one patch read at position 500 "
        "(patch encoder and all layers).\n\n");
    std::printf(
        "| weights (backbone, rest; inputs) | backbone | text head, token | patch, 11 steps | all | of real time |\n");
    std::printf("|---|---|---|---|---|---|\n");
    std::vector<Recipe> recipes = {
        {"INT4, INT8; 16 bit", DType::i4, DType::i8, 16}, {"INT4, INT8; 8 bit", DType::i4, DType::i8, 8},
        {"INT4, INT4; 16 bit", DType::i4, DType::i4, 16}, {"INT8, INT8; 16 bit", DType::i8, DType::i8, 16},
        {"FP8, FP8", DType::f8_e4m3, DType::f8_e4m3, 16}, {"bf16, bf16", DType::bf16, DType::bf16, 16}};
    for (const Recipe& recipe : recipes) {
        if (device.memory_bytes < int64_t{24} << 30 && recipe.backbone == DType::bf16) continue;
        time_model(device, made_up, config, recipe, bandwidth);
    }
    const LayersConfig codec = {.count = 2,  // of the codec's 32
                                .dim = small ? 128 : 1280,
                                .heads = small ? 2 : 20,
                                .ffn_dim = small ? 512 : 5120,
                                .causal = true,
                                .left = 500,
                                .right = 0,
                                .rope_theta = 10000};
    const tiny::Model codec_model(codec, {.type = DType::bf16});
    std::printf(
        "\nCodec, a layer of 1280 in bf16, there and back: %.3f ms for 8 positions (a patch), %.3f ms for %d (%d s).\n",
        codec_layer_ms(codec, codec_model.weights(), 8), codec_layer_ms(codec, codec_model.weights(), small ? 50 : 500),
        small ? 50 : 500, small ? 1 : 10);
    return 0;
}
