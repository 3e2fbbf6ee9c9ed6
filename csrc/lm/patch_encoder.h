// Positions -> backbone inputs. A text token is its embedding; a patch is the sum of its codes' embeddings per code
// frame, a small Qwen2 stack over the G frames of the patch, and one linear layer over their concatenation. Upstream:
// modeling_mimo_audio.py _prepare_input_embeds, apply_input_local_transformer.
#pragma once

#include "lm/patch.h"
#include "lm/qwen2.h"

namespace mimo {

// One table of rows a level, shared by the patch encoder and the patch decoder.
class SpeechEmbeddings {
public:
    SpeechEmbeddings(const LmConfig& lm, const Weights& weights);

    // y [input_local_dim] += the row of `code`. Throws InputError if the level has no such code.
    void add_code(int64_t level, int64_t code, float* y) const;

private:
    std::vector<Matrix> tables_;  // [speech_vocab_size, input_local_dim]
};

class PatchEncoder {
public:
    PatchEncoder(const Config& config, const Weights& weights);

    // -> [P, hidden_size]. An empty code adds nothing; codes under a text token are ignored; <|empty|> itself has no
    // embedding. positions: checked (patch.h).
    Array operator()(const Context& context, const Positions& positions, const SpeechEmbeddings& speech) const;

private:
    Array sum_codes(const Positions& positions, const std::vector<int64_t>& patches,
                    const SpeechEmbeddings& speech) const;

    LmConfig lm_;
    int32_t empty_token_;
    Matrix text_;  // [vocab_size, hidden_size]
    Qwen2 layers_;
    Linear down_;  // [hidden_size, G * input_local_dim]
};

}  // namespace mimo
