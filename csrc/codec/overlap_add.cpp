#include "codec/overlap_add.h"

#include <algorithm>

namespace mimo {

OverlapAdd::OverlapAdd(std::span<const float> window, int64_t hop)
    : window_(window),
      hop_(hop),
      cut_((static_cast<int64_t>(window.size()) - hop) / 2),
      skip_(cut_),
      sum_(window.size()),
      envelope_(window.size()) {}

void OverlapAdd::push(const float* frame, std::vector<float>& wav) {
    for (size_t n = 0; n < sum_.size(); ++n) {
        sum_[n] += frame[n];
        envelope_[n] += window_[n] * window_[n];
    }
    emit(hop_, wav);
    for (auto* line : {&sum_, &envelope_}) {
        std::copy(line->begin() + hop_, line->end(), line->begin());
        std::fill(line->end() - hop_, line->end(), 0.0f);
    }
}

void OverlapAdd::finish(std::vector<float>& wav) {
    emit(cut_, wav);
}

void OverlapAdd::emit(int64_t count, std::vector<float>& wav) {
    const int64_t skipped = std::min(skip_, count);
    skip_ -= skipped;
    for (auto n = static_cast<size_t>(skipped); n < static_cast<size_t>(count); ++n)
        wav.push_back(sum_[n] / envelope_[n]);
}

}  // namespace mimo
