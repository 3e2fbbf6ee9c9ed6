#include "engine/listener.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace mimo {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

void add_rows(Array& x, const Array& more) {
    x.cols = more.cols;
    x.rows += more.rows;
    x.data.insert(x.data.end(), more.data.begin(), more.data.end());
}

}  // namespace

Listener::Listener(std::shared_ptr<State> state, Positions before, double most_s)
    : state_(std::move(state)), before_(std::move(before)), settled_(before_), mel_(0, 0), hidden_(0, 0) {
    const Config& config = state_->model().config;
    const int64_t patch = config.codec.samples_per_code_frame() * config.lm.group_size;
    most_samples_ = std::max<int64_t>(0, state_->capacity() - before_.count()) * patch;
    if (!(most_s >= 0))
        throw InputError(message("listener: expected a longest sound of 0 or more seconds, got ", most_s));
    if (most_s > 0) {
        const double samples = most_s * static_cast<double>(config.codec.sampling_rate);
        most_samples_ = static_cast<int64_t>(std::min(samples, static_cast<double>(most_samples_)));
    }
    state_->become(before_);
}

double Listener::heard_s() const {
    return static_cast<double>(wav_.size()) / static_cast<double>(state_->model().config.codec.sampling_rate);
}

bool Listener::is_long_enough() const {
    return static_cast<int64_t>(wav_.size()) >= state_->model().mel.least_samples();
}

int64_t Listener::feed(std::span<const float> wav, int64_t rate_hz) {
    const Model& model = state_->model();
    if (!resampler_ || rate_hz != rate_hz_) {
        Resampler next(rate_hz, model.config.codec.sampling_rate);  // throws before anything has changed
        if (resampler_) resampler_->tail(wav_);
        resampler_ = std::move(next);
        rate_hz_ = rate_hz;
    }
    const auto room = static_cast<double>(most_samples_ - static_cast<int64_t>(wav_.size()));
    const double room_in = room * static_cast<double>(rate_hz) / static_cast<double>(model.config.codec.sampling_rate);
    const auto taken = std::clamp<int64_t>(static_cast<int64_t>(room_in), 0, static_cast<int64_t>(wav.size()));
    std::vector<float> clean(wav.begin(), wav.begin() + taken);
    for (float& v : clean) {
        if (std::isfinite(v)) continue;
        v = 0;
        ++broken_;
    }
    resampler_->push(clean, wav_);
    dirty_ = dirty_ || taken > 0;
    const int64_t settled = model.mel.frames_settled(static_cast<int64_t>(wav_.size()));
    if (settled > mel_.rows) add_rows(mel_, model.mel.frames(model.context(), wav_, mel_.rows, settled));
    return taken;
}

Listener::Report Listener::settle() {
    const Model& model = state_->model();
    const auto started = Clock::now();
    const bool encodes = dirty_;
    if (encodes) codes_ = encode();
    dirty_ = false;
    Positions now = before_;
    append(now, model.prompts.audio(codes_, false));
    Report report = {.positions = now.count(),
                     .heard_s = heard_s(),
                     .broken_samples = broken_,
                     .encode_s = encodes ? seconds_since(started) : 0};
    const auto encoded = Clock::now();
    const int64_t read = std::min(state_->length(), now.count());
    report.kept = state_->become(now);
    report.redone = std::max<int64_t>(0, read - report.kept - (read == now.count() ? 1 : 0));
    report.prefill_s = seconds_since(encoded);
    settled_ = std::move(now);
    return report;
}

// As Model::encode of the sound as if it ended here. Segments that no later sound changes are encoded once.
Codes Listener::encode() {
    const Model& model = state_->model();
    std::vector<float> wav = wav_;
    if (resampler_) resampler_->tail(wav);
    const auto samples = static_cast<int64_t>(wav.size());
    if (samples < model.mel.least_samples()) {
        throw InputError(
            message("listener: expected at least ", model.mel.least_samples(), " samples of sound, got ", samples));
    }
    Array mel = mel_;
    add_rows(mel, model.mel.frames(model.context(), wav, mel_.rows, model.mel.frames_of(samples)));
    Array hidden = hidden_;
    const auto segments = model.codec_encoder.segments(mel.rows);
    for (auto segment = segments.begin() + segments_; segment != segments.end(); ++segment) {
        const Array made = model.encode_segment(mel, *segment);
        add_rows(hidden, made);
        const bool whole = segment->frames == model.config.segment_frames();
        if (whole && segment->first + segment->frames <= mel_.rows) {
            add_rows(hidden_, made);
            ++segments_;
        }
    }
    return model.rvq.encode(model.context(), hidden);
}

}  // namespace mimo
