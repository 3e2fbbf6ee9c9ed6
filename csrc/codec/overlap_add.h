// The last step of an inverse STFT, in parts: windowed frames are added where they overlap and divided by the summed
// squared window; (nfft - hop) / 2 samples are cut on both sides ("same" padding). Upstream: ISTFT.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mimo {

class OverlapAdd {
public:
    // window: [nfft].
    OverlapAdd(std::span<const float> window, int64_t hop);

    // frame: [nfft], already windowed. Appends to wav the samples that no later frame touches.
    void push(const float* frame, std::vector<float>& wav);

    // Appends the rest: F frames give F * hop samples in all.
    void finish(std::vector<float>& wav);

private:
    void emit(int64_t count, std::vector<float>& wav);

    std::span<const float> window_;
    int64_t hop_, cut_, skip_;           // skip_: samples still to be cut at the start
    std::vector<float> sum_, envelope_;  // [nfft]: what the next frame is added to
};

}  // namespace mimo
