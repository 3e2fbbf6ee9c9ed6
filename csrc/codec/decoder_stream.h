// Codes in, sound out, at a constant cost a second: the codec decoder with everything it has to remember.
//
//   hidden [T, D] -> coarse (norms, causal layers: their past) -> vocoder (its past; its future waits) -> overlap-add
//
// The vocoder works in blocks of kBlockFrames code frames, counted from the stream's start, and computes the look-ahead
// behind a block anew each time; a layer's keys and values stay as the block's own turn left them. Nothing depends on
// how the codes were cut into pushes. With exact_look_ahead() the sound is that of CodecDecoder under the same options.
#pragma once

#include "codec/decoder.h"
#include "codec/overlap_add.h"

namespace mimo {

class DecoderStream {
public:
    static constexpr int64_t kBlockFrames = 4;  // 160 ms: one patch of the released models

    // decoder outlives the stream. Throws InputError on negative options or if the decoder's layers look ahead.
    DecoderStream(const CodecDecoder& decoder, const StreamOptions& options);

    // hidden [T >= 0, D]: more code frames. -> the samples that have become certain. last: all that is left comes out,
    // and nothing may follow.
    std::vector<float> push(const Context& context, const Array& hidden, bool last);

    // Code frames whose sound has not come out yet.
    int64_t waiting_frames() const;

private:
    // Vocodes the first `seen` waiting rows and gives out the first `settled`.
    void vocode(const Context& context, int64_t seen, int64_t settled, std::vector<float>& wav);

    const CodecDecoder& decoder_;
    StreamOptions options_;
    int64_t frame_rows_, ahead_rows_;  // vocoder rows of a code frame, of the look-ahead
    std::array<CodecDecoder::Tail, 2> tails_;
    LayersMemory layers_, vocoder_;
    Array waiting_;  // [n, vocoder_dim]: input of the vocoder that has not settled
    OverlapAdd join_;
    bool ended_ = false;
};

}  // namespace mimo
