// mel -> hidden at 25 Hz: conv, conv stride 2, bidirectional transformer with a skip connection, pooling conv stride 2.
// Upstream: modeling_audio_tokenizer.py AudioEncoder; segmenting: mimo_audio.py preprocess_input, encode_batch.
#pragma once

#include "codec/layers.h"

namespace mimo {

// Upstream encodes segments of one file in padded batches of at most this many mel frames.
inline constexpr int64_t kBatchMelFrames = 256000;

// Neighbouring segments that upstream puts into one batch: lengths -> groups of lengths whose sum stays within `most`.
std::vector<std::vector<int64_t>> group_segments(const std::vector<int64_t>& lengths, int64_t most);

class CodecEncoder {
public:
    CodecEncoder(const Config& config, const Weights& weights, const LayersDevice* device = nullptr);

    // Encoder frames (50 Hz) and code frames (25 Hz) of one segment of mel frames.
    int64_t frames_of(int64_t mel_frames) const;
    int64_t code_frames_of(int64_t mel_frames) const;

    // Where a file of mel frames is cut. longest: frames of the longest segment of the batch that upstream puts each
    // in.
    struct Segment {
        int64_t first, frames, longest;
    };
    std::vector<Segment> segments(int64_t mel_frames) const;

    // mel [F, n_mels] of one segment -> hidden [T, D]. Upstream pads it to `longest` frames.
    Array operator()(const Context& context, const Array& mel, int64_t longest) const;

private:
    Array pool(const Context& context, const Array& x, int64_t longest) const;

    CodecConfig config_;
    int64_t segment_frames_;
    Linear conv1_, conv2_;  // [D, kernel, in]
    Layers layers_;
    LayerNorm norm_;
    Linear pool_;  // [D, pooler, D], only if avg_pooler > 1
    LayerNorm pool_norm_;
};

}  // namespace mimo
