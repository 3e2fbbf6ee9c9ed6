// The codec's layers on a device against the core's: whole sequences, and sequences that come in parts.
#include <cmath>

#include "check.h"
#include "cuda/codec_layers.h"
#include "on_device.h"
#include "tiny_model.h"

using namespace mimo;

namespace {

double distance(const Array& a, const Array& b) {
    if (a.rows != b.rows || a.cols != b.cols) return NAN;
    double difference = 0, size = 0;
    for (size_t i = 0; i < a.data.size(); ++i) {
        difference += (double{a.data[i]} - b.data[i]) * (double{a.data[i]} - b.data[i]);
        size += double{b.data[i]} * b.data[i];
    }
    return size > 0 ? std::sqrt(difference / size) : difference;
}

struct Both {
    tiny::Model model;
    Pool pool{1};
    gpu::CodecLayers device{0, pool};
    Layers here, there;
    Context context{pool, plain_kernels()};

    Both(const LayersConfig& config, tiny::Format format)
        : model(config, format), here(config, model.weights()), there(config, model.weights(), &device) {}
};

LayersConfig config(int64_t count, bool causal, int64_t left, int64_t right) {
    return {.count = count,
            .dim = 20,
            .heads = 2,
            .ffn_dim = 33,
            .causal = causal,
            .left = left,
            .right = right,
            .rope_theta = 10000};
}

Array input(int64_t rows) {
    return {rows, 20, on_device::noise(rows * 20, 9)};
}

void compare(const LayersConfig& c, tiny::Format format, double tolerance) {
    const Both both(c, format);
    for (const int64_t rows : {1, 33, 70}) {
        Array expected = input(rows), got = input(rows);
        const auto kept = both.here.run(both.context, expected, "", 1);
        const auto also = both.there.run(both.context, got, "", 1);
        CHECK(distance(got, expected) <= tolerance);
        CHECK(kept && also && distance(*also, *kept) <= tolerance);
    }
}

}  // namespace

TEST(device_codec_layers_equal_the_core) {
    compare(config(2, false, -1, -1), {}, 2e-5);
    compare(config(1, true, -1, -1), {.type = DType::i8, .bits = 16}, 1e-3);
    compare(config(1, false, 20, 6), {}, 2e-5);
}

TEST(device_codec_layers_do_not_depend_on_parts) {
    const int64_t total = 100, ahead = 6;
    const Both both(config(1, false, 20, ahead), {});
    const Array all = input(total);
    Array whole = all;
    both.there.run(both.context, whole, "");
    for (const int64_t part : {5, 38}) {  // the memory is a ring of 64 positions
        LayersMemory memory = both.there.memory(20, part + ahead);
        Array made(0, all.cols);
        for (int64_t first = 0; first < total; first += part) {
            const int64_t settled = std::min(part, total - first), seen = std::min(settled + ahead, total - first);
            Array x = all.part(first, seen);
            both.there.append(both.context, x, settled, memory);
            made.data.insert(made.data.end(), x.data.begin(), x.data.begin() + settled * x.cols);
            made.rows += settled;
        }
        CHECK(made.data == whole.data);
    }
}

TEST(device_codec_sequences_of_different_sizes_live_side_by_side) {  // a small one must not take shared memory from a
                                                                     // large
    const LayersConfig wide = {.count = 1,
                               .dim = 128,
                               .heads = 2,
                               .ffn_dim = 512,
                               .causal = true,
                               .left = 20,
                               .right = 0,
                               .rope_theta = 10000};
    const Both both(wide, {});
    Array large(30, wide.dim, on_device::noise(30 * wide.dim, 9));
    Array expected = large, small = large.part(0, 2);
    both.here.run(both.context, expected, "");
    LayersMemory of_large = both.there.memory(20, 30), of_small = both.there.memory(20, 2);
    both.there.append(both.context, small, 2, of_small);
    both.there.append(both.context, large, 30, of_large);
    CHECK(distance(large, expected) <= 2e-5);
    CHECK(distance(small, expected.part(0, 2)) <= 2e-5);
}
