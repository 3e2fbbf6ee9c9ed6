// A backbone hidden state -> one patch of codes [K, G]. Level k of code frame t is made at local step t + delay[k], so
// a patch takes G + max(delay) steps of a small causal Qwen2 stack with a cache of its own; each step's input is the
// sum of the codes just made. Upstream: modeling_mimo_audio.py local_forward.
#pragma once

#include "backend/backend.h"
#include "lm/patch_encoder.h"
#include "lm/sampler.h"

namespace mimo {

class PatchDecoder {
public:
    PatchDecoder(const Config& config, const Weights& weights);

    KvCache make_cache() const { return KvCache(layers_.config(), lm_.local_steps()); }

    // hidden [1, hidden_size] (after the backbone's final norm) -> the input of local step 0, [1, local_dim].
    Array enter(const Context& context, const Array& hidden) const { return linear(context, hidden, down_); }

    // made: [K] codes of the step before, -1 where a level made none -> the input of this one, [1, local_dim].
    Array embed(const Context& context, std::span<const int32_t> made, const SpeechEmbeddings& speech) const;

    // input [1, local_dim] of local step 0, 1, ... -> scores of each level [speech_vocab_size], empty if it is silent.
    std::vector<std::vector<float>> step(const Context& context, int64_t step, Array input, KvCache& cache) const;

private:
    LmConfig lm_;
    Linear down_;  // [local_dim, hidden_size]
    Qwen2 layers_;
    std::vector<Linear> heads_;  // [speech_vocab_size, local_dim]
    bool widen_;
    Linear to_local_;  // [local_dim, input_local_dim], only if the widths differ
};

// All local steps of the patch after the last position that `sequence` read -> codes [K, G]. draw: seed, stream and
// position; step and level are filled in. The empty code is never made. forced: codes [K, G] to take instead of
// sampling, to see the scores along a given patch; or null.
Codes decode_patch(Sequence& sequence, const LmConfig& lm, const Sampling& sampling, Draw draw, const Codes* forced,
                   const Tap& tap);

}  // namespace mimo
