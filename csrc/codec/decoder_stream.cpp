#include "codec/decoder_stream.h"

#include <algorithm>

namespace mimo {
namespace {

constexpr int64_t kPartFrames = 32;  // code frames computed at once; bounds the memory, not the result

const StreamOptions& checked(const StreamOptions& options, const LayersConfig& layers) {
    options.check();
    if (!layers.causal && layers.right != 0) {
        throw InputError("decoder stream: expected a causal codec decoder, got one that looks ahead; decode in one go");
    }
    return options;
}

}  // namespace

DecoderStream::DecoderStream(const CodecDecoder& decoder, const StreamOptions& options)
    : decoder_(decoder),
      options_(checked(options, decoder.layers_.config())),
      frame_rows_(decoder.config_.avg_pooler * decoder.config_.decoder_stride_size),
      ahead_rows_(frame_rows_ *
                  std::min(options.look_ahead_frames, decoder.exact_look_ahead().value_or(options.look_ahead_frames))),
      layers_(decoder.layers_memory(options.history_frames, kPartFrames)),
      vocoder_(decoder.vocoder_memory(options.history_frames, kBlockFrames * frame_rows_ + ahead_rows_)),
      waiting_(0, decoder.config_.vocoder_dim),
      join_(decoder.window_, decoder.config_.hop_length) {}

int64_t DecoderStream::waiting_frames() const {
    return waiting_.rows / frame_rows_;
}

std::vector<float> DecoderStream::push(const Context& context, const Array& hidden, bool last) {
    if (ended_) throw InputError("decoder stream: expected a running stream, got one that has ended; open another");
    ended_ = last;
    std::vector<float> wav;
    const int64_t block = kBlockFrames * frame_rows_;
    for (int64_t first = 0; first < hidden.rows; first += kPartFrames) {
        const Array part = hidden.part(first, std::min(kPartFrames, hidden.rows - first));
        const Array coarse = decoder_.coarse(context, part, options_.norm, tails_, layers_);
        waiting_.data.insert(waiting_.data.end(), coarse.data.begin(), coarse.data.end());
        waiting_.rows += coarse.rows;
        while (waiting_.rows >= block + ahead_rows_) vocode(context, block + ahead_rows_, block, wav);
    }
    if (last) {
        if (waiting_.rows > 0) vocode(context, waiting_.rows, waiting_.rows, wav);
        join_.finish(wav);
    }
    return wav;
}

void DecoderStream::vocode(const Context& context, int64_t seen, int64_t settled, std::vector<float>& wav) {
    Array x = waiting_.part(0, seen);
    decoder_.vocoder_.append(context, x, settled, vocoder_);
    waiting_.data.erase(waiting_.data.begin(), waiting_.data.begin() + settled * waiting_.cols);
    waiting_.rows -= settled;
    const Array frames = decoder_.wave_frames(context, decoder_.spectra(context, x.part(0, settled)));
    for (int64_t t = 0; t < frames.rows; ++t) join_.push(frames.row(t), wav);
}

}  // namespace mimo
