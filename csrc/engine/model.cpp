#include "engine/model.h"

#include <algorithm>
#include <charconv>
#include <typeinfo>

#include "cuda/open.h"
#include "engine/native.h"
#include "io/sha256.h"

namespace mimo {
namespace {

int thread_count(int asked) {
    if (asked < 0 || asked > 1024) throw InputError(message("open: expected 0 to 1024 threads, got ", asked));
    return asked > 0 ? asked : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// The index behind "cuda:"; -1 if `name` is no CUDA device.
int cuda_index(std::string_view name) {
    if (name == "cuda") return 0;
    int index = -1;
    if (name.starts_with("cuda:")) {
        const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), index);
        if (error != std::errc() || end != name.data() + name.size()) return -1;
    }
    return index;
}

std::shared_ptr<const Backend> backend_of(const Model& model, const Bundle& bundle, const Pool& pool,
                                          const OpenOptions& options) {
    if (options.backend) return options.backend;
    const auto native = std::make_shared<Native>(model);
    if (options.device == "cpu") return native;
    const int index = cuda_index(options.device);
    if (index < 0) {
        throw InputError(message("open: expected the device cpu, cuda or cuda:INDEX, got '", options.device, "'"));
    }
    return open_cuda({bundle.config(), bundle.lm().with_e4m3(), pool, native, index});
}

Linear text_head_of(const LmConfig& lm, const Weights& weights) {
    const char* name = lm.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    return {weights.matrix(name, {lm.vocab_size, lm.hidden_size}), {}};
}

}  // namespace

std::shared_ptr<const Model> Model::open(const std::filesystem::path& folder, const OpenOptions& options) {
    return std::shared_ptr<const Model>(new Model(folder, options));
}

Model::Model(const std::filesystem::path& folder, const OpenOptions& options)
    : bundle_(folder, options.check),
      pool_(thread_count(options.threads)),
      kernels_(choose_kernels(options.kernels)),
      backend_(backend_of(*this, bundle_, pool_, options)),
      config(bundle_.config()),
      bundle_json(bundle_.json()),
      mel(config.codec),
      codec_encoder(config, bundle_.codec().under("encoder"), backend_->layers_device()),
      rvq(config.codec, bundle_.codec().under("encoder").under("quantizer")),
      tokenizer(Tokenizer::parse(bundle_.tokenizer_json())),
      prompts(config, tokenizer),
      speech_embeddings(config.lm, bundle_.lm()),
      patch_encoder(config, bundle_.lm()),
      backbone(backbone_config(config.lm), bundle_.lm().under("model")),
      text_head(text_head_of(config.lm, bundle_.lm())),
      patch_decoder(config, bundle_.lm()),
      codec_decoder(config, bundle_.codec().under("decoder"), backend_->layers_device()) {
    bundle_.check_all_used();
    if (tokenizer.size() > config.lm.vocab_size) {
        throw BundleError(
            message("tokenizer.json: expected at most ", config.lm.vocab_size, " tokens, got ", tokenizer.size()));
    }
}

Codes Model::encode(std::span<const float> wav, const Tap& tap) const {
    const Context c = context(tap);
    const Array frames = mel(c, wav);
    tap("mel", frames);
    return rvq.encode(c, encode_mel(frames, tap));
}

Array Model::encode_mel(const Array& frames, const Tap& tap) const {
    if (frames.cols != config.codec.n_mels)
        throw ShapeError(message("encode: expected ", config.codec.n_mels, " mel channels, got ", frames.cols));
    Array hidden(0, config.codec.d_model);
    for (const auto& segment : codec_encoder.segments(frames.rows)) {
        const Array made = encode_segment(frames, segment, tap);
        hidden.data.insert(hidden.data.end(), made.data.begin(), made.data.end());
        hidden.rows += made.rows;
    }
    return hidden;
}

Array Model::encode_segment(const Array& frames, const CodecEncoder::Segment& segment, const Tap& tap) const {
    const Array part = frames.part(segment.first, segment.frames);
    Array made = backend_->encode(part, segment.longest, tap);
    expect_made("hidden", {codec_encoder.code_frames_of(part.rows), config.codec.d_model}, {made.rows, made.cols});
    return made;
}

std::string Model::identity() const {
    const std::string text = message(bundle_json, kernels_.name, typeid(*backend_).name());
    return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::vector<float> Model::decode(const Codes& codes, const Tap& tap) const {
    rvq.check(codes);
    std::vector<float> wav = backend_->decode(codes, tap);
    expect_made("samples", {codes.frames * codec_decoder.samples_per_frame()}, {static_cast<int64_t>(wav.size())});
    return wav;
}

}  // namespace mimo
