// The codec's transformer layers on a device: 98 % of the encoder's products and more of the decoder's. Convolutions,
// norms between stages, RVQ and the inverse STFT stay with codec/, on the CPU.
#pragma once

#include "codec/layers.h"
#include "cuda/stack.h"

namespace mimo::gpu {

class CodecLayers final : public LayersDevice {
public:
    CodecLayers(int device, const Pool& pool) : device_(device), pool_(pool) {}  // pool: outlives this

    Open load(const Layers& layers) const override;

private:
    int device_;
    const Pool& pool_;
};

}  // namespace mimo::gpu
