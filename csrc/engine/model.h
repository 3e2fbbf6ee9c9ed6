// The whole model, opened from a bundle: immutable, its weights mapped and shared by every conversation and thread.
#pragma once

#include <filesystem>
#include <memory>

#include "backend/backend.h"
#include "codec/decoder.h"
#include "codec/encoder.h"
#include "codec/mel.h"
#include "codec/rvq.h"
#include "io/tokenizer.h"
#include "lm/patch_decoder.h"
#include "lm/prompt.h"

namespace mimo {

struct OpenOptions {
    int threads = 0;                                   // 0: one for each processor
    bool check = false;                                // hash every file of the bundle
    const char* kernels = nullptr;                     // an instruction set by name (kernels.h); null: the fastest
    std::shared_ptr<const Backend> backend = nullptr;  // who computes the networks; null: the core itself
    std::string device = "cpu";                        // where the core does: cpu, cuda, cuda:1, ...
};

class Model {
public:
    // Throws BundleError if the folder is not a complete bundle of this revision.
    static std::shared_ptr<const Model> open(const std::filesystem::path& folder, const OpenOptions& options = {});

    // Ears: wav float32 [samples] at the codec's rate -> codes [num_quantizers, T].
    Codes encode(std::span<const float> wav, const Tap& tap = {}) const;

    // The second half of it: mel [F, n_mels] of a whole file -> hidden [T, D], of which rvq makes codes. Long input is
    // cut into segments that do not see each other.
    Array encode_mel(const Array& frames, const Tap& tap = {}) const;
    Array encode_segment(const Array& frames, const CodecEncoder::Segment& segment, const Tap& tap = {}) const;

    // Voice: codes [n, T] -> wav [T * samples per code frame], decoded in one piece.
    std::vector<float> decode(const Codes& codes, const Tap& tap = {}) const;

    // Of the weights and of what computes them: a saved conversation goes on only where it is the same.
    std::string identity() const;

    const Backend& backend() const { return *backend_; }
    Context context(const Tap& tap = {}) const { return {pool_, kernels_, tap}; }

private:
    Bundle bundle_;
    Pool pool_;
    const Kernels& kernels_;
    std::shared_ptr<const Backend> backend_;

    Model(const std::filesystem::path& folder, const OpenOptions& options);

public:  // the stages, in the order the audio flows
    const Config& config;
    const std::string& bundle_json;
    const Mel mel;
    const CodecEncoder codec_encoder;
    const Rvq rvq;
    const Tokenizer tokenizer;
    const Prompts prompts;
    const SpeechEmbeddings speech_embeddings;
    const PatchEncoder patch_encoder;
    const Qwen2 backbone;
    const Linear text_head;  // [vocab_size, hidden_size]
    const PatchDecoder patch_decoder;
    const CodecDecoder codec_decoder;
};

}  // namespace mimo
