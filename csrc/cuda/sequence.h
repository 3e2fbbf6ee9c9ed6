// The language model of one conversation on a device: its caches, its lists of jobs, its stream.
//
// Calls from the host: one copy in (Request), one launch a list, one copy out. Nothing is waited for but an answer that
// the host needs: the token, the codes of a patch.
#pragma once

#include "backend/backend.h"
#include "cuda/codec_layers.h"

namespace mimo::gpu {

class CudaSequence final : public Sequence {
public:
    CudaSequence(const Config& config, std::shared_ptr<const LmWeights> weights, const Device& device,
                 int64_t capacity);

    Array append(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes,
                 const Tap& tap) override;
    int64_t most_ahead() const override { return kMaxRows - 1; }
    Array look(int64_t back) override;
    std::vector<float> text_logits() override;
    Array local_hidden() override;
    std::vector<std::vector<float>> local_step(int64_t step, std::span<const int32_t> made, const Tap& tap) override;
    std::vector<float> save() const override;
    void load(std::span<const float> saved, int64_t length) override;
    std::optional<int32_t> sample_token(const Sampling& sampling, std::span<const int32_t> removed,
                                        const Draw& draw) override;
    std::optional<Codes> decode_patch(const Sampling& sampling, const Draw& draw) override;

    // For benchmarks: milliseconds of device time for one backbone position, its token, one patch.
    struct Times {
        float append, token, patch;
    };
    Times time(int64_t length, int repeats);

private:
    void lay_out(int64_t capacity);
    Program put(std::vector<Job>& jobs, int32_t before, int32_t steps);
    void send();
    void read_rows(int64_t first, std::span<const int32_t> tokens, std::span<const int32_t> codes);
    template <typename Visit>
    void visit_saved(int64_t length, Visit visit) const;
    Array hidden_of(int32_t row, int32_t rows);
    void check_answer();

    const Config& config_;
    std::shared_ptr<const LmWeights> weights_;
    int64_t width_;  // codes of a patch, G * K
    Device device_;
    Arena arena_;
    mutable Stream stream_;
    Grid grid_;
    int64_t shared_bytes_ = 0;

    // in device memory
    char* asked_ = nullptr;  // Request, then the codes of its patches
    Answer* answer_ = nullptr;
    int32_t* codes_ = nullptr;
    uint32_t* arrived_ = nullptr;
    float* x_ = nullptr;  // [kMaxRows, hidden_size]
    StackBuffers backbone_;
    float* logits_ = nullptr;  // text
    float* local_ = nullptr;   // [1, local_dim]
    float* scores_ = nullptr;  // of all levels
    Program encode_, append_, head_, token_, enter_, patch_;
    int32_t scores_ready_ = 0;  // jobs of a local step up to its scores

    HostMemory request_, reply_;
    int32_t read_ = 0;  // rows of the last launch, guesses included; request_ holds those that count
};

class CudaBackend final : public Backend {
public:
    // rest: the core, whose codec has its layers computed here (layers_device). config, pool: outlive this.
    CudaBackend(const Config& config, const Weights& weights, const Pool& pool, std::shared_ptr<const Backend> rest,
                int device);

    std::shared_ptr<Sequence> sequence(int64_t capacity) const override;
    const LayersDevice* layers_device() const override { return &layers_; }
    Array encode(const Array& mel, int64_t longest, const Tap& tap) const override;
    std::vector<float> decode(const Codes& codes, const Tap& tap) const override;

private:
    const Config& config_;
    int index_;
    Device device_;
    std::shared_ptr<const LmWeights> weights_;
    CodecLayers layers_;
    std::shared_ptr<const Backend> rest_;
};

}  // namespace mimo::gpu
