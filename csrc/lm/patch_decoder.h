// A backbone hidden state -> one patch of codes [K, G]. Level k of code frame t is made at local step t + delay[k], so
// a patch takes G + max(delay) steps of a small causal Qwen2 stack with a cache of its own; each step's input is the
// sum of the codes just made. Upstream: modeling_mimo_audio.py local_forward.
#pragma once

#include "lm/patch_encoder.h"
#include "lm/sampler.h"

namespace mimo {

class PatchDecoder {
public:
    PatchDecoder(const Config& config, const Weights& weights);

    KvCache make_cache() const { return KvCache(layers_.config(), lm_.local_steps()); }

    // hidden [1, hidden_size] (after the backbone's final norm) -> the input of local step 0, [1, local_dim].
    Array enter(const Context& context, const Array& hidden) const { return linear(context, hidden, down_); }

    // input: enter(hidden). draw: seed, stream and position; step and level are filled in. The empty code is never
    // made. forced: codes [K, G] to take instead of sampling, to see the logits along a given patch; or null.
    Codes operator()(const Context& context, Array input, const SpeechEmbeddings& speech, const Sampling& sampling,
                     Draw draw, const Codes* forced, KvCache& cache) const;

private:
    LmConfig lm_;
    Linear down_;  // [local_dim, hidden_size]
    Qwen2 layers_;
    std::vector<Linear> heads_;  // [speech_vocab_size, local_dim]
    bool widen_;
    Linear to_local_;  // [local_dim, input_local_dim], only if the widths differ
};

}  // namespace mimo
