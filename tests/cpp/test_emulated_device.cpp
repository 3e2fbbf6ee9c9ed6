// The host that plays a device: it finds what is wrong in a kernel, and a right one does not depend on how it is
// played.
#include "check.h"
#include "cuda/emulated/emulation.h"
#include "cuda/emulated/fibers.h"
#include "cuda/sequence.h"
#include "tiny_model.h"

using namespace mimo;

namespace {

// Every thread adds up what the others of its block wrote; `waits`: with the barrier that this needs.
std::vector<int> sums(uint32_t order, bool waits) {
    std::vector<int> out(128);
    gpu::fibers::launch(2, 64, 64 * sizeof(int), order, [&] {
        const auto& self = gpu::fibers::self();
        auto* shared = reinterpret_cast<int*>(self.shared);
        shared[self.thread] = self.thread;
        if (waits) gpu::fibers::sync_block();
        int sum = 0;
        for (int i = 0; i < self.threads; ++i) sum += shared[i];
        out[static_cast<size_t>(self.block * self.threads + self.thread)] = sum;
    });
    return out;
}

// A prompt of two positions, then a patch, on a device of this kind.
std::vector<int32_t> patch_on(const gpu::Emulation& kind) {
    static const tiny::Model model(tiny::config(), {.type = DType::i8});
    const Config& config = model.config();
    gpu::emulation() = kind;
    const Pool pool(1);
    const auto weights = std::make_shared<gpu::LmWeights>(config, gpu::Tensors(model.weights()), pool);
    gpu::CudaSequence sequence(config, weights, gpu::use_device(0), 70);
    const std::vector<int32_t> tokens = {5, config.tokens.empty};
    std::vector<int32_t> codes(static_cast<size_t>(2 * config.lm.group_size * config.lm.audio_channels), 1);
    sequence.append(0, tokens, codes, {});
    const auto patch = sequence.decode_patch({.sample = true, .top_p = 0.9f}, {.seed = 3, .position = 2});
    gpu::emulation() = {};
    return patch.value_or(Codes()).data;
}

}  // namespace

TEST(emulation_shows_a_missing_barrier) {
    CHECK(sums(0, true) == std::vector<int>(128, 63 * 32));
    CHECK(sums(7, true) == std::vector<int>(128, 63 * 32));
    CHECK(sums(7, false) != sums(7, true));
}

TEST(emulation_shows_threads_that_wait_for_ever) {
    CHECK_THROWS(gpu::fibers::launch(1, 32, 0, 0,
                                     [] {
                                         if (gpu::fibers::self().thread > 0) gpu::fibers::sync_block();
                                     }),
                 DeviceError, "wait for ever");
}

TEST(a_patch_does_not_depend_on_the_device) {
    const auto expected = patch_on({});
    CHECK_EQ(expected.size(), size_t{15});
    CHECK(patch_on({.blocks = 2, .threads = 32, .order = 5}) == expected);  // in a random order
    CHECK(patch_on({.blocks = 5, .threads = 96, .order = 6}) == expected);  // more blocks, warps that do not divide
    CHECK(patch_on({.blocks = 2, .cooperative = false}) == expected);       // a launch a job
    CHECK(patch_on({.blocks = 1, .shared_bytes = 10 << 10}) == expected);   // one position at a time
    CHECK_THROWS(patch_on({.shared_bytes = 1 << 10}), DeviceError, "shared memory");
    gpu::emulation() = {};
}
