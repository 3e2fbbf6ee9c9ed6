// The networks computed by the core itself, on its kernels.
#pragma once

#include "backend/backend.h"
#include "engine/model.h"

namespace mimo {

class Native final : public Backend {
public:
    explicit Native(const Model& model) : model_(model) {}  // which outlives it

    std::shared_ptr<Sequence> sequence(int64_t capacity) const override;
    Array encode(const Array& mel, int64_t longest, const Tap& tap) const override;
    std::vector<float> decode(const Codes& codes, const Tap& tap) const override;

private:
    const Model& model_;
};

}  // namespace mimo
