// Every kernel of the device against its twin on the core, on fresh random inputs.
#include <cmath>

#include "check.h"
#include "kernels/ops.h"
#include "lm/sampler.h"
#include "on_device.h"
#include "packing.h"

using namespace mimo;
using on_device::Buffer;
using on_device::noise;
using on_device::Slabs;

namespace {

constexpr int64_t kSizes[] = {1, 31, 32, 33, 257};

bool close(std::span<const float> a, std::span<const float> b, float tolerance) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
        if (!(std::abs(a[i] - b[i]) <= tolerance * (1 + std::abs(b[i])))) return false;
    }
    return true;
}

int warps() {
    return gpu::block_threads() / gpu::kWarp;
}

gpu::Job linear_job(const gpu::SlabMatrix& w, const Buffer<float>& x, const Buffer<float>& y, int64_t rows) {
    gpu::Job job = {};
    job.op = gpu::Op::linear;
    job.linear.w = w;
    job.linear.x = x.data();
    job.linear.x_stride = w.cols;
    job.linear.rows = job.linear.at_once = static_cast<int32_t>(rows);
    job.linear.out = y.data();
    job.linear.out_stride = w.rows;
    return job;
}

// y = W x + bias on the device.
std::vector<float> device_linear(const Matrix& source, const std::vector<float>& x, int64_t rows,
                                 const std::vector<float>& bias) {
    const Slabs slabs(source);
    std::vector<float> padded = bias;
    padded.resize(static_cast<size_t>(slabs.w.tiles * gpu::kTileRows));
    const Buffer<float> in(x), biases(padded), out(rows * source.rows, NAN);
    gpu::Job job = linear_job(slabs.w, in, out, rows);
    job.linear.bias = biases.data();
    on_device::run(job, gpu::linear_bytes(slabs.w, rows, warps()));
    return out.read();
}

std::vector<float> core_linear(const Matrix& w, const std::vector<float>& x, int64_t rows,
                               const std::vector<float>& bias) {
    const Pool pool(1);
    return linear({pool, plain_kernels()}, Array(rows, w.cols, x), {w, bias}).values();
}

std::vector<uint8_t> e4m3_bytes(int64_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < n; ++i) {
        auto byte = static_cast<uint8_t>(random());
        if ((byte & 0x7F) == 0x7F) byte ^= 1;  // no NaN
        bytes.push_back(byte);
    }
    return bytes;
}

float e4m3_value(uint8_t byte) {
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                     : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    return byte & 0x80 ? -size : size;
}

}  // namespace

TEST(device_linear_of_floats_equals_its_twin) {
    for (const int64_t in : kSizes) {
        for (const int64_t rows : {int64_t{1}, int64_t{3}}) {
            const int64_t out = in == 33 ? 257 : 33;
            const auto x = noise(rows * in, 1), bias = noise(out, 2), w32 = noise(out * in, 3);
            std::vector<uint16_t> w16;
            for (const float v : w32) w16.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16));
            for (const Matrix& w : {Matrix{.data = w32.data(), .rows = out, .cols = in, .type = DType::f32},
                                    Matrix{.data = w16.data(), .rows = out, .cols = in, .type = DType::bf16}}) {
                CHECK(close(device_linear(w, x, rows, bias), core_linear(w, x, rows, bias), 2e-5f));
            }
        }
    }
}

TEST(device_linear_of_integers_has_the_bits_of_its_twin) {
    for (const int64_t in : kSizes) {
        const int64_t rows = in == 31 ? 5 : 1, out = in == 32 ? 257 : 33;
        const auto x = noise(rows * in, 1), bias = noise(out, 2), w32 = noise(out * in, 3);
        for (const int bits : {8, 16}) {
            const packing::Packed wide = packing::pack(w32, out, in, DType::i8, 0, bits);
            CHECK(device_linear(wide.view(), x, rows, bias) == core_linear(wide.view(), x, rows, bias));
            for (const int64_t group : {32, 64, 128}) {
                const packing::Packed narrow = packing::pack(w32, out, in, DType::i4, group, bits);
                CHECK(device_linear(narrow.view(), x, rows, bias) == core_linear(narrow.view(), x, rows, bias));
            }
        }
    }
}

TEST(device_linear_does_not_depend_on_how_many_rows_are_computed_at_once) {
    const int64_t rows = 11, cols = 140;
    const std::vector<float> weights = noise(40 * cols, 3), x = noise(rows * cols, 4);
    for (const auto type : {DType::f32, DType::i8}) {
        const packing::Packed packed(packing::pack(weights, 40, cols, DType::i8, cols, 16));
        const Slabs slabs(type == DType::f32 ? Matrix{.data = weights.data(), .rows = 40, .cols = cols}
                                             : packed.view());
        const Buffer<float> in(x);
        std::vector<float> expected;
        for (const int at_once : {11, 4, 1}) {
            const Buffer<float> out(rows * 40, NAN);
            gpu::Job job = linear_job(slabs.w, in, out, rows);
            job.linear.at_once = at_once;
            on_device::run(job, gpu::linear_bytes(slabs.w, at_once, warps()));
            if (expected.empty()) expected = out.read();
            CHECK(out.read() == expected);
        }
    }
}

TEST(device_linear_of_long_rows_has_the_bits_of_its_twin) {  // more slabs than a round has, a ring that wraps
    const int64_t in = 3001, out = 70;
    const auto x = noise(in, 1), bias = noise(out, 2), w32 = noise(out * in, 3);
    const packing::Packed wide = packing::pack(w32, out, in, DType::i8, 0, 16);
    CHECK(device_linear(wide.view(), x, 1, bias) == core_linear(wide.view(), x, 1, bias));
    const packing::Packed narrow = packing::pack(w32, out, in, DType::i4, 64, 16);
    CHECK(device_linear(narrow.view(), x, 1, bias) == core_linear(narrow.view(), x, 1, bias));
}

TEST(device_linear_of_fp8_equals_plain_loops) {
    const int64_t in = 300, out = 41, blocks = (out + 15) / 16, chunks = (in + 3) / 4;
    const auto bytes = e4m3_bytes(blocks * chunks * 64, 7);
    const auto x = noise(in, 1);
    std::vector<float> scales = noise(blocks * 16, 3), expected;
    const Matrix w = {
        .data = bytes.data(), .rows = out, .cols = in, .type = DType::f8_e4m3, .scales = scales.data(), .group = in};
    for (int64_t n = 0; n < out; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < in; ++k) {
            const auto at = static_cast<size_t>(((n / 16 * chunks + k / 4) * 16 + n % 16) * 4 + k % 4);
            sum += double{x[static_cast<size_t>(k)]} * e4m3_value(bytes[at]);
        }
        expected.push_back(static_cast<float>(sum * scales[static_cast<size_t>(n)]));
    }
    std::vector<float> got = device_linear(w, x, 1, std::vector<float>(static_cast<size_t>(out)));
    for (size_t i = 0; i < got.size(); ++i) CHECK(std::abs(got[i] - expected[i]) <= 2e-3f);  // of about 1e3
}

TEST(device_linear_norms_and_adds) {
    const int64_t in = 96, out = 31, rows = 2;
    for (const int64_t norm_cols : {in, in / 3}) {
        const auto x = noise(rows * in, 1), norm = noise(norm_cols, 2), w32 = noise(out * in, 3),
                   y = noise(rows * out, 4);
        const packing::Packed w = packing::pack(w32, out, in, DType::i8, 0, 16);
        const Slabs slabs(w.view());
        const Buffer<float> xs(x), norms(norm), ys(y);
        gpu::Job job = linear_job(slabs.w, xs, ys, rows);
        job.linear.norm = norms.data();
        job.linear.norm_cols = static_cast<int32_t>(norm_cols);
        job.linear.eps = 1e-6f;
        job.linear.finish = gpu::Finish::accumulate;
        on_device::run(job, gpu::linear_bytes(slabs.w, rows, warps()));
        std::vector<float> normed(x.size()), expected = y;
        for (size_t i = 0; i < x.size(); i += static_cast<size_t>(norm_cols)) {
            plain_kernels().rms_norm(x.data() + i, norm, 1e-6f, normed.data() + i);
        }
        const auto sums = core_linear(w.view(), normed, rows, std::vector<float>(static_cast<size_t>(out)));
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += sums[i];
        CHECK(close(ys.read(), expected, 1e-6f));
    }
}

TEST(device_gate_equals_its_twin) {
    for (const int64_t ffn : kSizes) {
        const int64_t in = 33;
        const auto x = noise(in, 1), gate = noise(ffn * in, 2), up = noise(ffn * in, 3);
        const Matrix sources[] = {{.data = gate.data(), .rows = ffn, .cols = in},
                                  {.data = up.data(), .rows = ffn, .cols = in}};
        const Slabs slabs(sources, gpu::rows_of_gate_and_up(ffn), 2 * ffn);
        const Buffer<float> xs(x), ys(ffn, NAN);
        gpu::Job job = linear_job(slabs.w, xs, ys, 1);
        job.linear.finish = gpu::Finish::gate;
        on_device::run(job, gpu::linear_bytes(slabs.w, 1, warps()));
        const std::vector<float> none(static_cast<size_t>(ffn));
        std::vector<float> expected = core_linear(sources[0], x, 1, none);
        plain_kernels().silu_multiply(expected.data(), core_linear(sources[1], x, 1, none).data(), ffn);
        CHECK(close(ys.read(), expected, 2e-5f));
    }
}

// The job that writes a cache and the one that reads it, against the core's.
TEST(device_attention_equals_its_twin) {
    struct Case {
        int64_t before, rows, heads, kv_heads, dim;
        bool causal;
    };
    for (const Case& c : {Case{0, 1, 1, 1, 2, true}, Case{0, 4, 2, 2, 18, false}, Case{31, 1, 4, 2, 12, true},
                          Case{32, 1, 4, 1, 32, true}, Case{60, 8, 2, 1, 16, true}, Case{257, 3, 4, 2, 16, true}}) {
        const int64_t hidden = 40, total = c.before + c.rows, capacity = (total + 63) / 64 * 64;
        const std::vector<float> x = noise(c.rows * hidden, 1);
        const Pool pool(1);
        const Context context = {pool, plain_kernels()};
        std::vector<std::vector<float>> weights, biases;
        std::vector<Matrix> sources;
        std::vector<Vector> bias_views;
        std::vector<gpu::SourceRow> order;
        for (int i = 0; i < 3; ++i) {
            const int64_t heads = i == 0 ? c.heads : c.kv_heads;
            weights.push_back(noise(heads * c.dim * hidden, 5 + static_cast<uint32_t>(i)));
            biases.push_back(noise(heads * c.dim, 8 + static_cast<uint32_t>(i)));
            const auto rows = i < 2 ? gpu::rows_of_rotated_heads(heads, c.dim, i) : gpu::rows_of_heads(heads, c.dim, i);
            order.insert(order.end(), rows.begin(), rows.end());
        }
        for (int i = 0; i < 3; ++i) {
            sources.push_back({.data = weights[static_cast<size_t>(i)].data(),
                               .rows = (i == 0 ? c.heads : c.kv_heads) * c.dim,
                               .cols = hidden});
            bias_views.push_back(biases[static_cast<size_t>(i)]);
        }
        // The core: earlier keys and values are noise.
        KeyValues cache(c.kv_heads, c.dim, capacity);
        const int64_t width = c.kv_heads * c.dim;
        const Array old_keys(c.before, width, noise(c.before * width, 11));
        const Array old_values(c.before, width, noise(c.before * width, 12));
        const Array input(c.rows, hidden, x);
        cache.write(context, 0, old_keys, old_values);
        const Rope rope(c.before, c.rows, c.dim, 10000), all(0, total, c.dim, 10000);
        Array q = linear(context, input, {sources[0], bias_views[0]}),
              k = linear(context, input, {sources[1], bias_views[1]});
        rotate(context, q, rope);
        rotate(context, k, rope);
        cache.write(context, c.before, k, linear(context, input, {sources[2], bias_views[2]}));
        std::vector<KeyRange> ranges;
        for (int64_t i = 0; i < c.rows; ++i) ranges.push_back({0, c.causal ? c.before + i + 1 : total});
        const Array expected = attention(context, q, cache, ranges);

        // The device, in its own layout of the cache.
        std::vector<float> keys(static_cast<size_t>(c.kv_heads * capacity * c.dim), NAN), values = keys;
        for (int64_t h = 0; h < c.kv_heads; ++h) {
            for (int64_t t = 0; t < c.before; ++t) {
                for (int64_t d = 0; d < c.dim; ++d) {
                    const int64_t block = h * (capacity / 32) + t / 32;
                    keys[static_cast<size_t>((block * c.dim + d) * 32 + t % 32)] = old_keys.row(t)[h * c.dim + d];
                    values[static_cast<size_t>((h * capacity + t) * c.dim + d)] = old_values.row(t)[h * c.dim + d];
                }
            }
        }
        const Slabs slabs(sources, order, std::ssize(order));
        const Buffer<float> device_keys(keys), device_values(values), xs(x), bias(gpu::in_order(bias_views, order));
        const Buffer<float> cosine(all.cosine.values()), sine(all.sine.values());
        const Buffer<float> queries(c.rows * c.heads * c.dim, NAN), out(c.rows * c.heads * c.dim, NAN);
        const Buffer<float> parts(c.rows * c.heads * (capacity / 64) * (c.dim + 2), NAN);
        const Buffer<uint32_t> done(c.kv_heads);
        gpu::Job job = linear_job(slabs.w, xs, queries, c.rows);
        job.linear.finish = gpu::Finish::attend;
        job.linear.bias = bias.data();
        job.linear.out_stride = c.heads * c.dim;
        job.linear.clock = gpu::Clock::request;
        job.linear.heads = {.heads = static_cast<int32_t>(c.heads),
                            .kv_heads = static_cast<int32_t>(c.kv_heads),
                            .head_dim = static_cast<int32_t>(c.dim),
                            .pair_tiles = static_cast<int32_t>((c.dim / 2 + 3) / 4),
                            .value_tiles = static_cast<int32_t>((c.dim + 7) / 8),
                            .cosine = cosine.data(),
                            .sine = sine.data(),
                            .call_angles = 0};
        job.linear.cache = {device_keys.data(), device_values.data(), capacity};
        gpu::Request request = {};
        request.length = static_cast<int32_t>(c.before);
        request.rows = static_cast<int32_t>(c.rows);
        on_device::run(job, gpu::linear_bytes(slabs.w, c.rows, warps()), request);
        CHECK(close(queries.read(), q.data, 2e-5f));

        gpu::Job attend = {};
        attend.op = gpu::Op::attention;
        attend.attention = {.heads = job.linear.heads,
                            .cache = job.linear.cache,
                            .q = queries.data(),
                            .out = out.data(),
                            .parts = parts.data(),
                            .done = done.data(),
                            .rows = static_cast<int32_t>(c.rows),
                            .clock = gpu::Clock::request,
                            .causal = c.causal ? 1 : 0,
                            .seen = nullptr,
                            .whole = 0};
        for (int again = 0; again < 3; ++again) {  // the counters are ready for the next job
            attend.attention.whole = again == 2 ? 1 : 0;
            on_device::run(attend, gpu::attention_bytes(job.linear.heads, c.rows), request);
            CHECK(close(out.read(), expected.data, 2e-5f));
        }
    }
}

TEST(device_sampler_equals_the_core) {
    const std::vector<int32_t> removed = {2, 30};
    uint32_t seed = 1;
    for (const int32_t n : {31, 33, 257, 1025}) {
        for (const Sampling& sampling :
             {Sampling{}, Sampling{.temperature = 0.3f, .top_k = 5}, Sampling{.sample = true},
              Sampling{.sample = true, .temperature = 0.9f, .top_p = 0.95f},
              Sampling{.sample = true, .temperature = 0.6f, .top_k = 20, .top_p = 0.5f},
              Sampling{.sample = true, .top_p = 1.0f}, Sampling{.sample = true, .temperature = 3.0f, .top_p = 0.05f}}) {
            for (const bool ties : {false, true}) {
                std::vector<float> logits = noise(n, ++seed);
                if (ties) {
                    for (float& v : logits) v = std::nearbyint(v);
                }
                const Buffer<float> scores(logits), mass(n);
                gpu::Job job = {};
                job.op = gpu::Op::sample;
                job.sample = {.levels = {}, .text = 1, .vocabulary = n, .logits = scores.data(), .mass = mass.data()};
                gpu::Request request = {};
                request.text = sampling;
                request.seed = seed;
                request.position = 7;
                request.removed_count = 2;
                std::copy(removed.begin(), removed.end(), request.removed);
                const gpu::Answer answer = on_device::run(job, gpu::sample_bytes(gpu::block_threads()), request);
                CHECK_EQ(answer.trouble, 0);
                CHECK_EQ(answer.token, sample(logits, sampling, removed, {.seed = seed, .position = 7}));
            }
        }
    }
}

TEST(device_sampler_says_what_is_wrong) {
    const std::vector<float> broken = {0, NAN, 1}, few = {0, 1};
    gpu::Request request = {};
    request.text.sample = true;
    request.removed_count = 2;
    request.removed[0] = 0;
    request.removed[1] = 1;
    for (const auto& [logits, trouble] : {std::pair{broken, gpu::kBroken}, {few, gpu::kNoCandidate}}) {
        const Buffer<float> scores(logits), mass(3);
        gpu::Job job = {};
        job.op = gpu::Op::sample;
        job.sample = {.levels = {},
                      .text = 1,
                      .vocabulary = static_cast<int32_t>(logits.size()),
                      .logits = scores.data(),
                      .mass = mass.data()};
        CHECK_EQ(on_device::run(job, gpu::sample_bytes(gpu::block_threads()), request).trouble, int32_t{trouble});
    }
    const Buffer<float> scores(few), mass(2);  // the filter keeps only what is removed
    gpu::Job job = {};
    job.op = gpu::Op::sample;
    job.sample = {.levels = {}, .text = 1, .vocabulary = 2, .logits = scores.data(), .mass = mass.data()};
    request.text.top_p = 0.1f;
    request.removed_count = 1;
    request.removed[0] = 1;
    CHECK_EQ(on_device::run(job, gpu::sample_bytes(gpu::block_threads()), request).token, 0);
}

TEST(device_rvq_equals_plain_loops) {
    const int64_t levels = 3, dim = 33;
    const std::vector<int32_t> bins = {257, 32, 31};
    std::vector<std::vector<float>> books, norms;
    std::vector<Buffer<float>> device_books, device_norms;
    std::vector<const float*> book_pointers, norm_pointers;
    for (int64_t level = 0; level < levels; ++level) {
        const int64_t rows = bins[static_cast<size_t>(level)];
        books.push_back(noise(rows * dim, 20 + static_cast<uint32_t>(level)));
        if (level == 1) std::copy_n(books[1].begin() + 5 * dim, dim, books[1].begin() + 9 * dim);  // a tie: 5 wins
        std::vector<float> norm;
        for (int64_t r = 0; r < rows; ++r) {
            double sum = 0;
            for (int64_t d = 0; d < dim; ++d) {
                const double v = books.back()[static_cast<size_t>(r * dim + d)];
                sum += v * v;
            }
            norm.push_back(static_cast<float>(sum));
        }
        norms.push_back(norm);
    }
    for (const auto& book : books) book_pointers.push_back(device_books.emplace_back(book).data());
    for (const auto& norm : norms) norm_pointers.push_back(device_norms.emplace_back(norm).data());
    const Buffer<const float*> codebooks(book_pointers), norm_table(norm_pointers);
    const Buffer<int32_t> bin_table(bins);
    for (const int64_t frames : {0, 1, 31, 33}) {
        std::vector<float> hidden = noise(frames * dim, 3);
        for (int64_t d = 0; d < dim && frames > 2; ++d) {  // one frame is exactly two rows, the second of them the tie
            hidden[static_cast<size_t>(2 * dim + d)] =
                books[0][static_cast<size_t>(7 * dim + d)] + books[1][static_cast<size_t>(9 * dim + d)];
        }
        std::vector<int32_t> expected(static_cast<size_t>(levels * frames));
        std::vector<float> sums(hidden.size());
        for (int64_t t = 0; t < frames; ++t) {
            std::vector<float> rest(hidden.begin() + t * dim, hidden.begin() + (t + 1) * dim);
            for (int64_t level = 0; level < levels; ++level) {
                const auto& book = books[static_cast<size_t>(level)];
                double best = INFINITY;
                int64_t code = 0;
                for (int64_t r = 0; r < bins[static_cast<size_t>(level)]; ++r) {
                    double distance = 0;
                    for (int64_t d = 0; d < dim; ++d) {
                        const double v = rest[static_cast<size_t>(d)] - book[static_cast<size_t>(r * dim + d)];
                        distance += v * v;
                    }
                    if (distance < best) {
                        best = distance;
                        code = r;
                    }
                }
                expected[static_cast<size_t>(level * frames + t)] = static_cast<int32_t>(code);
                for (int64_t d = 0; d < dim; ++d) {
                    rest[static_cast<size_t>(d)] -= book[static_cast<size_t>(code * dim + d)];
                    sums[static_cast<size_t>(t * dim + d)] += book[static_cast<size_t>(code * dim + d)];
                }
            }
        }
        const Buffer<float> in(hidden), out(frames * dim, NAN);
        const Buffer<int32_t> codes(levels * frames, -1);
        gpu::RvqJob job = {.codebooks = codebooks.data(),
                           .norms = norm_table.data(),
                           .bins = bin_table.data(),
                           .levels = static_cast<int32_t>(levels),
                           .dim = static_cast<int32_t>(dim),
                           .frames = frames,
                           .hidden = in.data(),
                           .codes = codes.data()};
        gpu::Stream stream;
        stream.rvq_encode(job, 2);
        stream.wait();
        CHECK(codes.read() == expected);
        job.hidden = out.data();
        stream.rvq_decode(job, 2);
        stream.wait();
        CHECK(out.read() == sums);
    }
}
