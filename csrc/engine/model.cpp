#include "engine/model.h"

#include <algorithm>

namespace mimo {
namespace {

int thread_count(int asked) {
    if (asked < 0 || asked > 1024) throw InputError(message("open: expected 0 to 1024 threads, got ", asked));
    return asked > 0 ? asked : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
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
      config(bundle_.config()),
      bundle_json(bundle_.json()),
      mel(config.codec),
      codec_encoder(config, bundle_.codec().under("encoder")),
      rvq(config.codec, bundle_.codec().under("encoder").under("quantizer")),
      tokenizer(Tokenizer::parse(bundle_.tokenizer_json())),
      prompts(config, tokenizer),
      speech_embeddings(config.lm, bundle_.lm()),
      patch_encoder(config, bundle_.lm()),
      backbone(backbone_config(config.lm), bundle_.lm().under("model")),
      text_head(text_head_of(config.lm, bundle_.lm())),
      patch_decoder(config, bundle_.lm()),
      codec_decoder(config.codec, bundle_.codec().under("decoder")) {
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
    return rvq.encode(c, codec_encoder(c, frames));
}

std::vector<float> Model::decode(const Codes& codes, const Tap& tap) const {
    return codec_decoder(context(tap), rvq.decode(codes), codes.frames);
}

}  // namespace mimo
