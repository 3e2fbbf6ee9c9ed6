// The whole language model on a device against the core: hidden states, logits, tokens, patches.
#include <cmath>

#include "check.h"
#include "cuda/sequence.h"
#include "lm/patch_decoder.h"
#include "tiny_model.h"

using namespace mimo;

namespace {

// The core's own networks, without a bundle.
class CoreSequence final : public Sequence {
public:
    explicit CoreSequence(const tiny::Model& model)
        : config_(model.config()),
          pool_(1),
          speech_(config_.lm, model.weights()),
          encoder_(config_, model.weights()),
          backbone_(backbone_config(config_.lm), model.weights().under("model")),
          head_{model.weights().matrix("lm_head.weight", {config_.lm.vocab_size, config_.lm.hidden_size}), {}},
          decoder_(config_, model.weights()),
          cache_(backbone_.config(), config_.lm.max_position_embeddings),
          patch_cache_(decoder_.make_cache()) {}

    Array append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes, const Tap&) override {
        cache_.length = first;
        const Positions positions = {{tokens.begin(), tokens.end()}, {codes.begin(), codes.end()}};
        const Array all = backbone_.append(context(), encoder_(context(), positions, speech_), cache_);
        hidden_ = all.part(all.rows - 1, 1);
        return hidden_;
    }
    std::vector<float> text_logits() override { return linear(context(), hidden_, head_).values(); }
    Array local_hidden() override { return decoder_.enter(context(), hidden_); }
    std::vector<std::vector<float>> local_step(int64_t step, std::span<const int32_t> made, const Tap&) override {
        if (step == 0) patch_cache_.length = 0;
        Array input = step == 0 ? local_hidden() : decoder_.embed(context(), made, speech_);
        return decoder_.step(context(), step, std::move(input), patch_cache_);
    }

private:
    Context context() const { return {pool_, plain_kernels()}; }

    const Config& config_;
    Pool pool_;
    SpeechEmbeddings speech_;
    PatchEncoder encoder_;
    Qwen2 backbone_;
    Linear head_;
    PatchDecoder decoder_;
    KvCache cache_, patch_cache_;
    Array hidden_;
};

Positions some_positions(const Config& config, int64_t count, uint32_t seed) {
    std::mt19937 random(seed);
    Positions positions;
    for (int64_t i = 0; i < count; ++i) {
        if (i % 3 == 1) {
            append(positions, static_cast<int32_t>(random() % 300), nullptr, config.lm);
            continue;
        }
        Codes patch(config.lm.audio_channels, config.lm.group_size);
        for (int64_t level = 0; level < patch.levels; ++level) {
            for (int64_t frame = 0; frame < patch.frames; ++frame) {  // some of them empty
                patch.at(level, frame) =
                    static_cast<int32_t>(random() % config.lm.speech_vocab_size[static_cast<size_t>(level)]);
            }
        }
        append(positions, config.tokens.empty, &patch, config.lm);
    }
    return positions;
}

std::shared_ptr<Sequence> device_sequence(const tiny::Model& model, int64_t capacity) {
    const Pool pool(1);
    const gpu::Device device = gpu::use_device(0);
    const auto weights =
        std::make_shared<gpu::LmWeights>(model.config(), gpu::Tensors(model.weights().with_e4m3()), pool);
    return std::make_shared<gpu::CudaSequence>(model.config(), weights, device, capacity);
}

double distance(std::span<const float> a, std::span<const float> b) {
    if (a.size() != b.size()) return NAN;
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
        size += double{b[i]} * b[i];
    }
    return std::sqrt(difference / size);
}

// Reads a prompt in one piece and position by position, then compares all that comes out.
void compare(tiny::Format format, double tolerance) {
    const tiny::Model model(tiny::config(), format);
    const Config& config = model.config();
    CoreSequence core(model);
    const auto device = device_sequence(model, 150);
    const Positions prompt = some_positions(config, 11, 5);
    const int64_t width = config.lm.group_size * config.lm.audio_channels;
    const Array expected = core.append(0, prompt.tokens, prompt.codes, {});
    const Array got = device->append(0, prompt.tokens, prompt.codes, {});
    CHECK(distance(got.data, expected.data) <= tolerance);
    const std::span<const int32_t> tokens = prompt.tokens, codes = prompt.codes;
    for (size_t i = 8; i < 11; ++i) {  // again from the ninth on, one by one
        const Array one = device->append(static_cast<int64_t>(i), tokens.subspan(i, 1),
                                         codes.subspan(i * static_cast<size_t>(width), static_cast<size_t>(width)), {});
        if (i == 10) CHECK(one.data == got.data);
    }
    const auto first = codes.first(9 * static_cast<size_t>(width));
    const Array ninth = device->append(0, tokens.first(9), first, {});
    const auto logits = device->text_logits();
    device->append(0, prompt.tokens, prompt.codes, {});  // the last two are guesses
    CHECK(device->look(2).data == ninth.data);
    CHECK(device->text_logits() == logits);
    const auto elsewhere = device_sequence(model, 150);
    elsewhere->load(device->save(), 9);
    CHECK(elsewhere->text_logits() == logits);
    CHECK(device->look(0).data == got.data);
    CHECK(distance(device->text_logits(), core.text_logits()) <= tolerance);
    CHECK(distance(device->local_hidden().data, core.local_hidden().data) <= tolerance);

    const std::vector<int32_t> removed = {3, 299};
    for (const Sampling& sampling :
         {Sampling{}, Sampling{.sample = true, .temperature = 0.9f, .top_k = 20, .top_p = 0.95f}}) {
        const Draw draw = {.seed = 11, .stream = 2, .position = 12};
        CHECK_EQ(device->sample_token(sampling, removed, draw).value_or(-1),
                 sample(core.text_logits(), sampling, removed, draw));
        const Codes patch = decode_patch(core, config.lm, sampling, draw, nullptr, {});
        CHECK(device->decode_patch(sampling, draw).value_or(Codes()).data == patch.data);
        CHECK(decode_patch(*device, config.lm, sampling, draw, nullptr, {}).data == patch.data);
        CHECK(decode_patch(*device, config.lm, sampling, draw, &patch, {}).data == patch.data);
    }
}

}  // namespace

TEST(device_model_equals_the_core_f32) {
    compare({}, 2e-5);
}
TEST(device_model_equals_the_core_int8) {
    compare({.type = DType::i8, .bits = 16}, 1e-3);
}
TEST(device_model_equals_the_core_int4) {
    compare({.type = DType::i4, .bits = 16, .group = 32}, 1e-3);
}
TEST(device_model_equals_the_core_e4m3) {  // which computes with the same weights as floats
    compare({.type = DType::f8_e4m3}, 2e-5);
}

// Three conversations on one device take turns: each goes as it would alone, also when it is saved and goes on
// elsewhere, or takes back what it read.
TEST(device_conversations_do_not_meet) {
    const tiny::Model model(tiny::config(), {.type = DType::i8, .bits = 16});
    const Config& config = model.config();
    const Pool pool(1);
    const auto weights = std::make_shared<gpu::LmWeights>(config, gpu::Tensors(model.weights().with_e4m3()), pool);
    const auto open = [&](int64_t capacity) {
        return std::make_shared<gpu::CudaSequence>(config, weights, gpu::use_device(0), capacity);
    };
    const auto width = static_cast<size_t>(config.lm.group_size * config.lm.audio_channels);
    const auto read = [&](Sequence& sequence, const Positions& what, size_t first, size_t count) {
        const std::span<const int32_t> tokens = what.tokens, codes = what.codes;
        sequence.append(static_cast<int64_t>(first), tokens.subspan(first, count),
                        codes.subspan(first * width, count * width), {});
    };
    const auto answer = [&](Sequence& sequence) {
        const Draw draw = {.seed = 5, .stream = 1, .position = 9};
        std::vector<int32_t> made = sequence.decode_patch({.sample = true, .top_p = 0.9f}, draw).value_or(Codes()).data;
        made.push_back(sequence.sample_token({.sample = true}, {}, draw).value_or(-1));
        return made;
    };
    std::vector<Positions> prompts;
    std::vector<std::vector<int32_t>> alone;
    for (uint32_t i = 0; i < 3; ++i) {
        prompts.push_back(some_positions(config, 12, 20 + i));
        const auto sequence = open(70);
        read(*sequence, prompts[i], 0, 12);
        alone.push_back(answer(*sequence));
    }
    CHECK(alone[0] != alone[1]);
    const auto a = open(70), b = open(130), c = open(70);
    read(*a, prompts[0], 0, 5);
    read(*b, prompts[1], 0, 12);
    read(*c, prompts[0], 0, 9);  // c reads another prompt first, and takes it back
    read(*a, prompts[0], 5, 7);
    read(*c, prompts[2], 0, 12);
    CHECK(answer(*a) == alone[0]);
    CHECK(answer(*c) == alone[2]);
    CHECK(answer(*b) == alone[1]);

    const auto d = open(200);  // of another capacity
    read(*d, prompts[2], 0, 3);
    const std::vector<float> saved = a->save();
    d->load(saved, 12);
    CHECK(d->text_logits() == a->text_logits());
    CHECK(answer(*d) == alone[0]);
    CHECK(d->save() == saved);
    read(*d, prompts[0], 7, 5);
    CHECK(answer(*d) == alone[0]);
    CHECK_THROWS(d->load(std::span(saved).first(saved.size() - 1), 12), DeviceError, "saved floats");
    const auto fresh = open(70);
    fresh->load({}, 0);
    CHECK(fresh->save().empty());
    read(*fresh, prompts[1], 0, 12);
    CHECK(answer(*fresh) == alone[1]);
}
