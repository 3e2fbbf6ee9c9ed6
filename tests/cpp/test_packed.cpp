// Packed integer weights: the twin against exact arithmetic, every table against the twin bit for bit, and what a
// bundle may hold.
#include <cstring>
#include <random>

#include "check.h"
#include "kernels/ops.h"
#include "packing.h"

using namespace mimo;
using packing::Packed;

namespace {

struct Case {
    int64_t rows, in, out;
    DType type;
    int64_t group;
    int bits;
};

std::vector<float> noise(int64_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = normal(random);
    return values;
}

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const int64_t rows : {1, 2, 7, 13, 25}) {
        for (const int64_t in : {1, 4, 31, 128, 130, 256, 389}) {
            for (const int64_t out : {1, 16, 33, 80}) {
                for (const int bits : {8, 16}) {
                    all.push_back({rows, in, out, DType::i8, in, bits});
                    for (const int64_t group : {32, 128}) all.push_back({rows, in, out, DType::i4, group, bits});
                }
            }
        }
    }
    return all;
}

std::vector<const Kernels*> shipping_tables() {
    std::vector<const Kernels*> tables;
    for (const char* name : {"base", "avx2", "avxvnni", "avx512", "avx512vnni", "dotprod"}) {
        try {
            tables.push_back(&choose_kernels(name));
        } catch (const DeviceError&) {  // this processor or this build has no such instructions
        }
    }
    return tables;
}

Packed packed_noise(const Case& c) {
    return packing::pack(noise(c.out * c.in, 3), c.out, c.in, c.type, c.group, c.bits);
}

std::vector<float> run(const Kernels& kernels, const Case& c, const Packed& w, const std::vector<float>& x,
                       int threads = 1) {
    const Pool pool(threads);
    const std::vector<float> bias = noise(c.out, 5);
    return linear({pool, kernels}, x.data(), c.rows, c.in, Linear{w.view(), bias}).values();
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST(half_precision_is_read_exactly) {
    CHECK_EQ(half_to_float(0x3C00), 1.0f);
    CHECK_EQ(half_to_float(0xC000), -2.0f);
    CHECK_EQ(half_to_float(0x7BFF), 65504.0f);
    CHECK_EQ(half_to_float(0x0001), 0x1p-24f);
    CHECK_EQ(half_to_float(0x83FF), -1023 * 0x1p-24f);
    CHECK(std::isinf(half_to_float(0x7C00)) && std::isnan(half_to_float(0x7E00)));
}

TEST(halves_are_the_nearest) {
    for (uint32_t half = 0; half < 0x7C00; ++half) {
        const float here = half_to_float(static_cast<uint16_t>(half));
        CHECK_EQ(float_to_half(here), static_cast<uint16_t>(half));
        CHECK_EQ(float_to_half(-here), static_cast<uint16_t>(half | 0x8000));
        if (half == 0x7BFF) continue;
        const float next = half_to_float(static_cast<uint16_t>(half + 1)), middle = (here + next) / 2;
        CHECK_EQ(float_to_half(middle), static_cast<uint16_t>(half + half % 2));  // a tie goes to the even one
        CHECK_EQ(float_to_half(std::nextafter(middle, here)), static_cast<uint16_t>(half));
        CHECK_EQ(float_to_half(std::nextafter(middle, next)), static_cast<uint16_t>(half + 1));
    }
    CHECK_EQ(float_to_half(1e9f), uint16_t{0x7BFF});
    CHECK(std::isnan(half_to_float(float_to_half(NAN))));
}

// What a cache of the type keeps of x [n, heads * dim].
Array kept(Array x, DType type, int64_t dim) {
    for (int64_t at = 0; at < x.rows * x.cols; at += dim) {
        const std::span<float> head(x.data.data() + at, static_cast<size_t>(dim));
        float largest = 0.0f;
        for (const float value : head) largest = std::max(largest, std::abs(value));
        const float unit = bfloat_to_float(float_to_bfloat(largest / 127.0f));
        for (float& value : head) {
            value = type == DType::f16 ? half_to_float(float_to_half(value))
                                       : unit * std::nearbyint(unit > 0.0f ? value / unit : 0.0f);
        }
    }
    return x;
}

TEST(attention_on_a_smaller_cache_is_that_on_rounded_keys_and_values) {
    const int64_t n = 53, heads = 4, shared = 2, dim = 24;
    Array k(n, shared * dim, noise(n * shared * dim, 1)), v(n, shared * dim, noise(n * shared * dim, 2));
    const Array q(n, heads * dim, noise(n * heads * dim, 3));
    const Array last(1, q.cols, {q.row(n - 1), static_cast<size_t>(q.cols)});
    std::fill_n(k.row(5), shared * dim, 0.0f);
    for (int64_t i = 0; i < v.cols; ++i) v.row(7)[i] *= 1e6f, v.row(9)[i] *= 1e-6f;  // as far as halves reach
    std::vector<KeyRange> ranges;
    for (int64_t i = 0; i < n; ++i) ranges.push_back({0, i + 1});
    for (const DType type : {DType::f16, DType::i8}) {
        const Array rounded_k = kept(k, type, dim), rounded_v = kept(v, type, dim);
        for (const Kernels* kernels : shipping_tables()) {
            const Pool pool(2);
            const Context context = {pool, *kernels};
            KeyValues small(shared, dim, n, type), floats(shared, dim, n);
            small.write(context, 0, k, v);
            floats.write(context, 0, rounded_k, rounded_v);
            const Array all = attention(context, q, small, ranges);
            CHECK(same_bits(all.data, attention(context, q, floats, ranges).data));
            const Array twin = attention({pool, plain_kernels()}, q, small, ranges);
            for (size_t i = 0; i < twin.data.size(); ++i) {
                CHECK(std::abs(twin.data[i] - all.data[i]) <= 2e-5f * (1 + std::abs(twin.data[i])));
            }
            const Array alone = attention(context, last, small, {ranges.back()});
            CHECK(std::equal(alone.data.begin(), alone.data.end(), all.row(n - 1)));

            KeyValues copy(shared, dim, n, type);
            std::vector<float> saved(static_cast<size_t>(small.saved_size(n)));
            small.save(n, saved.data());
            copy.load(n, saved.data());
            CHECK(same_bits(attention(context, q, copy, ranges).data, all.data));

            small.forget(kLanes, n);
            floats.forget(kLanes, n);
            const std::vector<KeyRange> left = {{0, n - kLanes}};
            CHECK(same_bits(attention(context, last, small, left).data, attention(context, last, floats, left).data));
        }
    }
}

TEST(packing_keeps_every_weight) {
    for (const Case& c : cases()) {
        if (c.rows != 1) continue;
        const std::vector<float> w = noise(c.out * c.in, 3);
        const Packed p = packed_noise(c);
        float worst = 0;  // in steps
        for (int64_t n = 0; n < c.out; ++n) {
            std::vector<float> row(static_cast<size_t>(c.in));
            add_row(p.view(), n, row.data());
            for (int64_t k = 0; k < c.in; ++k) {
                const float step = packed_scale(p.view(), n, k);
                worst = std::max(worst,
                                 std::abs(row[static_cast<size_t>(k)] - w[static_cast<size_t>(n * c.in + k)]) / step);
            }
        }
        CHECK(worst <= 0.5001f);
    }
}

// The dequantised product in double precision; the difference is the rounding of the inputs, at most half a step each.
TEST(packed_linear_is_close_to_exact_arithmetic) {
    for (const Case& c : cases()) {
        const Packed p = packed_noise(c);
        const auto x = noise(c.rows * c.in, 1), bias = noise(c.out, 5);
        const auto y = run(plain_kernels(), c, p, x);
        const int64_t group = input_group(p.view());
        for (int64_t i = 0; i < c.rows; ++i) {
            for (int64_t n = 0; n < c.out; ++n) {
                double sum = bias[static_cast<size_t>(n)], bound = 1e-6;
                for (int64_t first = 0; first < c.in; first += group) {
                    double most = 0, weights = 0;
                    for (int64_t k = first; k < std::min(c.in, first + group); ++k) {
                        const double w = double{packed_scale(p.view(), n, k)} * packed_integer(p.view(), n, k);
                        const double value = x[static_cast<size_t>(i * c.in + k)];
                        sum += value * w;
                        weights += std::abs(w);
                        most = std::max(most, std::abs(value));
                    }
                    bound += weights * most * (0.5 / (c.bits == 8 ? 127 : 16256) + 1e-6);
                }
                CHECK(std::abs(y[static_cast<size_t>(i * c.out + n)] - sum) <= bound);
            }
        }
    }
}

TEST(packed_kernels_give_the_bits_of_their_twin) {
    for (const Kernels* kernels : shipping_tables()) {
        for (const Case& c : cases()) {
            const Packed p = packed_noise(c);
            auto x = noise(c.rows * c.in, 1);
            for (size_t i = 0; i < x.size(); i += 3) x[i] *= 1e-3f * static_cast<float>(i);
            CHECK(same_bits(run(*kernels, c, p, x), run(plain_kernels(), c, p, x)));
        }
    }
}

TEST(packed_linear_does_not_depend_on_rows_or_threads) {
    for (const Kernels* kernels : shipping_tables()) {
        for (const DType type : {DType::i8, DType::i4}) {
            const Case many = {37, 389, 301, type, type == DType::i8 ? 389 : 64, 8};
            const Packed p = packed_noise(many);
            const auto x = noise(many.rows * many.in, 1);
            const auto together = run(*kernels, many, p, x);
            CHECK(same_bits(together, run(*kernels, many, p, x, 3)));
            Case one = many;
            one.rows = 1;
            for (int64_t i = 0; i < many.rows; ++i) {
                const auto alone = run(*kernels, one, p, {x.begin() + i * many.in, x.begin() + (i + 1) * many.in});
                CHECK(std::memcmp(alone.data(), together.data() + i * many.out, alone.size() * sizeof(float)) == 0);
            }
        }
    }
}

TEST(rounded_inputs_at_their_limits) {
    std::vector<const Kernels*> tables = shipping_tables();
    tables.push_back(&plain_kernels());
    for (const Kernels* kernels : tables) {
        for (const int planes : {1, 2}) {
            std::vector<float> x(200, 1e-31f);  // too small to divide by
            x[130] = -3, x[131] = 3, x[132] = 1.5f;
            std::vector<int8_t> values(static_cast<size_t>(planes) * 200);
            const int64_t step = planes;  // from group to group
            std::vector<float> scales(4);
            std::vector<int32_t> sums(4);
            kernels->round_inputs(x.data(), 200, 128, planes, values.data(), scales.data(), sums.data(), step);
            CHECK(scales[0] == 0 && sums[0] == 0 && values[5] == 0);
            CHECK(values[130] == -127 && values[131] == 127 && values[132] == 64);
            CHECK_EQ(scales[step], 3.0f / (planes == 1 ? 127 : 16256));
            CHECK_EQ(sums[step], planes == 1 ? 64 : 8128);
            for (const float bad : {NAN, INFINITY}) {
                x[7] = bad;
                kernels->round_inputs(x.data(), 200, 128, planes, values.data(), scales.data(), sums.data(), step);
                CHECK(std::isnan(scales[0]) && values[5] == 0 && scales[step] > 0);
            }
        }
    }
}
