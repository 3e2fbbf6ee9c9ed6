#include "engine/native.h"

#include <algorithm>

namespace mimo {
namespace {

constexpr int64_t kPrefillRows = 120;  // positions computed at once, tiles of 12: more take memory anew in each layer
constexpr int64_t kMostAhead = 11;     // with the position before them one tile: memory is waited for once

class NativeSequence final : public Sequence {
public:
    NativeSequence(const Model& model, int64_t capacity)
        : model_(model),
          cache_(model.backbone.config(), capacity, model.config.cache()),
          patch_cache_(model.patch_decoder.make_cache()) {}

    Array append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes,
                 const Tap& tap) override {
        const Context context = model_.context(tap);
        const Positions positions = {{tokens.begin(), tokens.end()}, {codes.begin(), codes.end()}};
        const Array embeds = model_.patch_encoder(context, positions, model_.speech_embeddings);
        cache_.length = first;
        Array all(embeds.rows, embeds.cols);
        for (int64_t begin = 0; begin < embeds.rows; begin += kPrefillRows) {
            const int64_t count = std::min(kPrefillRows, embeds.rows - begin);
            const Array hidden = model_.backbone.append(context, embeds.part(begin, count), cache_);
            std::copy(hidden.data.begin(), hidden.data.end(), all.row(begin));
        }
        tap("backbone.hidden", all);
        const int64_t kept = std::min(all.rows, kMostAhead + 1);
        last_ = all.part(all.rows - kept, kept);
        logits_ = {};
        return look(0);
    }

    int64_t most_ahead() const override { return kMostAhead; }

    Array look(int64_t back) override {
        back_ = back;
        return hidden();
    }

    std::vector<float> text_logits() override {
        if (logits_.rows <= back_) {  // of the guesses that follow too: the head's weights are read once
            Array made = linear(model_.context(), last_.part(last_.rows - 1 - back_, back_ + 1), model_.text_head);
            if (back_ == 0) return made.values();
            logits_ = std::move(made);
        }
        return logits_.part(logits_.rows - 1 - back_, 1).values();
    }

    Array local_hidden() override { return model_.patch_decoder.enter(model_.context(), hidden()); }

    std::vector<std::vector<float>> local_step(int64_t step, std::span<const int32_t> made, const Tap& tap) override {
        if (step == 0) patch_cache_.length = 0;
        const Context context = model_.context(tap);
        Array input = step == 0 ? local_hidden() : model_.patch_decoder.embed(context, made, model_.speech_embeddings);
        return model_.patch_decoder.step(context, step, std::move(input), patch_cache_);
    }

    std::vector<float> save() const override {
        std::vector<float> saved = hidden().values();
        const int64_t length = cache_.length - back_;
        for (const KeyValues& layer : cache_.layers) {
            const size_t at = saved.size();
            saved.resize(at + static_cast<size_t>(layer.saved_size(length)));
            layer.save(length, saved.data() + at);
        }
        return saved;
    }

    void load(std::span<const float> saved, int64_t length) override {
        const int64_t width = model_.config.lm.hidden_size;
        int64_t expected = width;
        for (const KeyValues& layer : cache_.layers) expected += layer.saved_size(length);
        expect_made("saved floats", {expected}, {static_cast<int64_t>(saved.size())});
        last_ = Array(1, width, saved.first(static_cast<size_t>(width)));
        logits_ = {};
        back_ = 0;
        const float* from = saved.data() + width;
        for (KeyValues& layer : cache_.layers) {
            layer.load(length, from);
            from += layer.saved_size(length);
        }
        cache_.length = length;
    }

private:
    Array hidden() const { return last_.part(last_.rows - 1 - back_, 1); }

    const Model& model_;
    KvCache cache_, patch_cache_;
    Array last_;        // hidden states of the last positions of the last append
    Array logits_;      // of the last of them
    int64_t back_ = 0;  // how many of them are guesses
};

}  // namespace

std::shared_ptr<Sequence> Native::sequence(int64_t capacity) const {
    return std::make_shared<NativeSequence>(model_, capacity);
}

Array Native::encode(const Array& mel, int64_t longest, const Tap& tap) const {
    return model_.codec_encoder(model_.context(tap), mel, longest);
}

std::vector<float> Native::decode(const Codes& codes, const Tap& tap) const {
    return model_.codec_decoder(model_.context(tap), model_.rvq.decode(codes), codes.frames);
}

}  // namespace mimo
