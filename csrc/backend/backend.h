// The seam for hardware: whoever computes the networks. The native core does (engine/native.h), and ONNX Runtime or
// TensorRT may in its place. Prompts, RVQ, sampler, delay pattern and the loop stay the core's.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/array.h"
#include "base/rng.h"
#include "base/sampling.h"
#include "base/tap.h"

namespace mimo {

// The networks of one conversation with their caches. Not for two threads at once.
class Sequence {
public:
    virtual ~Sequence() = default;

    // Reads positions first, first + 1, ..., of which earlier ones are forgotten; `first` is at most what was read.
    // tokens [n], codes [n, G, K] (valid; those under text tokens do not count) -> hidden [1, hidden_size] of the last,
    // after the final norm. If it throws, what was read before `first` stays.
    virtual Array append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes,
                         const Tap& tap) = 0;

    // For hardware that reads several positions in the time of one: how many may be read on a guess behind one that is
    // certain, and `look`, by which the position `back` before the last becomes the last one read, as far as what
    // follows goes. back: below the count of the last append, and at most most_ahead().
    virtual int64_t most_ahead() const { return 0; }
    virtual Array look(int64_t back);  // -> its hidden [1, hidden_size]

    // Of the last position read.
    virtual std::vector<float> text_logits() = 0;  // [vocab_size]
    virtual Array local_hidden() = 0;              // [1, local_dim], the patch decoder's first input

    // One local step of the patch after the last position. made: [K] codes of the step before, -1 where a level made
    // none; step 0 starts a patch. -> scores of each level [speech_vocab_size]; of levels silent at this step anything.
    virtual std::vector<std::vector<float>> local_step(int64_t step, std::span<const int32_t> made, const Tap& tap) = 0;

    // All that was read, as floats from which load() of another sequence of the same backend goes on bit for bit.
    // length: positions read. Throws DeviceError where a backend cannot.
    virtual std::vector<float> save() const;
    virtual void load(std::span<const float> saved, int64_t length);

    // For hardware that can choose where the scores are, by the same rules and random numbers: the token after the last
    // position (removed: tokens that may not come out), and the patch [K, G]. Nothing: the core asks for scores
    // instead.
    virtual std::optional<int32_t> sample_token(const Sampling&, std::span<const int32_t>, const Draw&) { return {}; }
    virtual std::optional<Codes> decode_patch(const Sampling&, const Draw&) { return {}; }
};

class LayersDevice;  // codec/layers.h

// Shared by all conversations and threads.
class Backend {
public:
    virtual ~Backend() = default;

    // Where the core's own codec has its layers computed; null: on the CPU.
    virtual const LayersDevice* layers_device() const { return nullptr; }

    // capacity: positions at most.
    virtual std::shared_ptr<Sequence> sequence(int64_t capacity) const = 0;

    // One segment: mel [F, n_mels] -> hidden [T, D] before RVQ. longest: mel frames of the longest segment of its
    // batch, to whose length upstream pads this one.
    virtual Array encode(const Array& mel, int64_t longest, const Tap& tap) const = 0;

    // One piece: codes [n, T] -> wav [T * samples per code frame].
    virtual std::vector<float> decode(const Codes& codes, const Tap& tap) const = 0;
};

// Throws DeviceError if what a backend made has another shape than the model says.
void expect_made(const char* what, const std::vector<int64_t>& expected, const std::vector<int64_t>& got);

}  // namespace mimo
