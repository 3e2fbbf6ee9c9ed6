// Every kernel against its plain twin, and the law that a result does not depend on what is computed beside it.
#include <cmath>
#include <random>

#include "base/error.h"
#include "check.h"
#include "codec/fft.h"
#include "codec/resample.h"
#include "kernels/ops.h"

using namespace mimo;

namespace {

constexpr int64_t kSizes[] = {0, 1, 31, 32, 33, 257};

std::vector<float> noise(int64_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = normal(random);
    return values;
}

std::vector<uint16_t> to_bf16(const std::vector<float>& values) {
    std::vector<uint16_t> out;
    for (const float v : values) out.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16));
    return out;
}

// The tables that this processor can run, the twin left out.
std::vector<const Kernels*> shipping_tables() {
    std::vector<const Kernels*> tables;
    for (const char* name : {"base", "avx2", "avxvnni", "avx512", "avx512vnni", "dotprod"}) {
        try {
            tables.push_back(&choose_kernels(name));
        } catch (const DeviceError&) {  // this processor has no such instructions
        }
    }
    return tables;
}

bool close(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
        if (!(std::abs(a[i] - b[i]) <= tolerance * (1 + std::abs(b[i])))) return false;
    }
    return true;
}

std::vector<float> run_linear(const Kernels& kernels, const std::vector<float>& x, int64_t rows, const Matrix& w,
                              const std::vector<float>& bias) {
    std::vector<float> y(static_cast<size_t>(rows * w.rows));
    kernels.linear(x.data(), rows, w.cols, w, bias.data(), 0, w.rows, y.data(), w.rows);
    return y;
}

// q [n, dim] against `keys` keys, causal with a window, in the layout of KeyValues.
std::vector<float> run_attention(const Kernels& kernels, int64_t n, int64_t dim, int64_t first_query = 0) {
    const Pool pool(1);
    const Context context = {pool, kernels};
    KeyValues cache(1, dim, n);
    cache.write(context, 0, Array(n, dim, noise(n * dim, 1)), Array(n, dim, noise(n * dim, 2)));
    const auto all = noise(n * dim, 3);
    const Array q(n - first_query, dim, std::span(all).subspan(static_cast<size_t>(first_query * dim)));
    std::vector<KeyRange> ranges;
    for (int64_t i = first_query; i < n; ++i) ranges.push_back({std::max<int64_t>(0, i - 40), i + 1});
    return attention(context, q, cache, ranges).values();
}

}  // namespace

TEST(linear_equals_its_twin) {
    for (const Kernels* kernels : shipping_tables()) {
        for (const int64_t rows : kSizes) {
            for (const int64_t in : kSizes) {
                for (const int64_t out : {int64_t{1}, int64_t{33}}) {
                    const auto x = noise(rows * in, 1), bias = noise(out, 2), w32 = noise(out * in, 3);
                    const auto w16 = to_bf16(w32);
                    for (const Matrix& w :
                         {Matrix{w32.data(), out, in, DType::f32}, Matrix{w16.data(), out, in, DType::bf16}}) {
                        CHECK(close(run_linear(*kernels, x, rows, w, bias),
                                    run_linear(plain_kernels(), x, rows, w, bias), 2e-5f));
                    }
                }
            }
        }
    }
}

TEST(linear_of_many_rows_equals_each_row_alone) {
    const int64_t rows = 29, in = 257, out = 33;
    const auto x = noise(rows * in, 1), bias = noise(out, 2), w = noise(out * in, 3);
    for (const Kernels* kernels : shipping_tables()) {
        const Matrix matrix = {w.data(), out, in, DType::f32};
        const auto together = run_linear(*kernels, x, rows, matrix, bias);
        std::vector<float> alone;
        for (int64_t i = 0; i < rows; ++i) {
            const auto row = run_linear(*kernels, {x.begin() + i * in, x.begin() + (i + 1) * in}, 1, matrix, bias);
            alone.insert(alone.end(), row.begin(), row.end());
        }
        CHECK(together == alone);
    }
}

TEST(linear_does_not_depend_on_threads) {
    const int64_t rows = 5, in = 1024, out = 301;
    const Array x(rows, in, noise(rows * in, 1));
    const auto w = noise(out * in, 3);
    const Linear layer = {{w.data(), out, in, DType::f32}, {}};
    const Pool one(1), three(3);
    CHECK(linear({one, choose_kernels()}, x, layer).data == linear({three, choose_kernels()}, x, layer).data);
}

TEST(attention_equals_its_twin) {
    for (const Kernels* kernels : shipping_tables()) {
        for (const int64_t n : {1, 31, 32, 33, 257}) {
            for (const int64_t dim : {2, 6, 12, 16, 64, 96, 128}) {
                CHECK(close(run_attention(*kernels, n, dim), run_attention(plain_kernels(), n, dim), 2e-5f));
            }
        }
    }
}

TEST(attention_of_one_query_equals_it_among_others) {
    for (const Kernels* kernels : shipping_tables()) {
        const auto all = run_attention(*kernels, 101, 64);
        for (const int64_t first : {1, 50, 99, 100}) {
            const auto later = run_attention(*kernels, 101, 64, first);
            CHECK(std::equal(later.begin(), later.end(), all.begin() + first * 64));
        }
    }
}

TEST(pointwise_kernels_equal_their_twins) {
    for (const Kernels* kernels : shipping_tables()) {
        for (const int64_t n : kSizes) {
            auto x = noise(n, 1);
            for (float& v : x) v *= 5;  // reaches both tails
            const auto up = noise(n, 2), weight = noise(n, 3), bias = noise(n, 4);
            auto got = x, want = x;
            kernels->gelu(got.data(), n);
            plain_kernels().gelu(want.data(), n);
            CHECK(close(got, want, 1e-6f));

            got = want = x;
            kernels->silu_multiply(got.data(), up.data(), n);
            plain_kernels().silu_multiply(want.data(), up.data(), n);
            CHECK(close(got, want, 1e-6f));

            if (n == 0) continue;
            kernels->layer_norm(x.data(), weight, bias, 1e-5f, got.data());
            plain_kernels().layer_norm(x.data(), weight, bias, 1e-5f, want.data());
            CHECK(close(got, want, 1e-5f));
            kernels->rms_norm(x.data(), weight, 1e-6f, got.data());
            plain_kernels().rms_norm(x.data(), weight, 1e-6f, want.data());
            CHECK(close(got, want, 1e-6f));
        }
    }
}

TEST(pointwise_kernels_keep_their_tails) {
    for (const Kernels* kernels : shipping_tables()) {
        std::vector<float> x = {-1e30f, -100.0f, -20.0f, 0.0f, 20.0f, 100.0f, 1e30f};
        auto gated = x;
        const std::vector<float> ones(x.size(), 1.0f);
        kernels->gelu(x.data(), 7);
        kernels->silu_multiply(gated.data(), ones.data(), 7);
        for (const auto& y : {x, gated}) {
            CHECK(std::abs(y[0]) < 1e-6f && std::abs(y[1]) < 1e-6f && std::abs(y[2]) < 1e-6f && y[3] == 0.0f);
            CHECK(std::abs(y[4] - 20.0f) < 1e-5f && y[5] == 100.0f && y[6] == 1e30f);
        }
    }
}

TEST(unknown_kernels_are_refused) {
    CHECK_THROWS(choose_kernels("mmx"), DeviceError, "got 'mmx'");
}

TEST(pool_covers_every_index_once) {
    for (const int threads : {1, 2, 5}) {
        const Pool pool(threads);
        for (const int64_t count : kSizes) {
            for (const int64_t grain : {1, 16, 1000}) {
                std::vector<int> seen(static_cast<size_t>(count));
                pool.run(count, grain, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
                });
                CHECK(seen == std::vector<int>(static_cast<size_t>(count), 1));
            }
        }
    }
}

TEST(pool_serves_many_callers) {
    const Pool pool(2);
    std::vector<int64_t> sums(4);
    std::vector<std::thread> callers;
    for (size_t caller = 0; caller < sums.size(); ++caller) {
        callers.emplace_back([&, caller] {
            for (int round = 0; round < 200; ++round) {
                std::atomic<int64_t> sum = 0;
                pool.run(100, 1, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) sum += i;
                });
                sums[caller] += sum;
            }
        });
    }
    for (auto& caller : callers) caller.join();
    CHECK(sums == std::vector<int64_t>(4, 200 * 4950));
}

TEST(pool_hands_on_what_a_part_throws) {
    const Pool pool(3);
    for (int64_t bad = 0; bad < 6; ++bad) {  // few enough that each part is one
        std::atomic<int64_t> seen = 0;
        const auto run = [&] {
            pool.run(6, 1, [&](int64_t begin, int64_t end) {
                std::this_thread::sleep_for(std::chrono::microseconds(200));
                if (begin <= bad && bad < end) throw InputError("a part failed");
                seen += end - begin;
            });
        };
        CHECK_THROWS(run(), InputError, "a part failed");
        CHECK_EQ(seen.load(), 5);  // all others are done when it throws
    }
    int64_t calls = 0;
    pool.run(1, 1, [&](int64_t, int64_t) { ++calls; });
    CHECK_EQ(calls, 1);
}

TEST(a_cache_of_absurd_size_is_refused) {
    CHECK_THROWS(KeyValues(16, 64, int64_t{1} << 56), DeviceError, "attention cache");
    CHECK_THROWS(KeyValues(16, 64, -int64_t{1} << 40), DeviceError, "attention cache");
}

TEST(fft_equals_the_sum_that_defines_it) {
    for (const int64_t n : {1, 2, 12, 31, 60, 97, 960}) {
        const auto re = noise(n, 1), im = noise(n, 2);
        std::vector<std::complex<double>> in, got(static_cast<size_t>(n));
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) in.emplace_back(re[i], im[i]);
        Fft(n).forward(in, got);
        for (int64_t k = 0; k < n; k += 1 + n / 13) {
            std::complex<double> sum = 0;
            for (int64_t i = 0; i < n; ++i) {
                sum += in[static_cast<size_t>(i)] *
                       std::polar(1.0, -2 * M_PI * static_cast<double>(i * k % n) / static_cast<double>(n));
            }
            CHECK(std::abs(got[static_cast<size_t>(k)] - sum) < 1e-10);
        }
    }
}

TEST(resample_keeps_a_tone) {
    const int64_t from = 16000, to = 24000;
    std::vector<float> wav;
    for (int i = 0; i < from; ++i)
        wav.push_back(static_cast<float>(std::sin(2 * M_PI * 440 * i / static_cast<double>(from))));
    const auto out = resample(wav, from, to);
    CHECK_EQ(out.size(), size_t{24000});
    for (size_t i = 1000; i < 23000; ++i) {
        CHECK(std::abs(out[i] - std::sin(2 * M_PI * 440 * static_cast<double>(i) / static_cast<double>(to))) < 2e-3);
    }
    CHECK(resample(wav, 24000, 24000) == wav);
    CHECK_THROWS(resample(wav, 0, 24000), InputError, "got 0 and 24000");
}
