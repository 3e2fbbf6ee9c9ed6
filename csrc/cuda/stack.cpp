#include "cuda/stack.h"

#include <algorithm>

namespace mimo::gpu {
namespace {

constexpr int64_t kMostAtOnce =
    32;  // rows; more read the weights less often, but leave the block's sums in fewer threads

}  // namespace

StackBuffers::StackBuffers(Arena& arena, const StackWeights& stack, int64_t rows, int64_t capacity, bool keeps) {
    const Heads& h = stack.heads;
    const int64_t dim = h.head_dim, chunks = (capacity + kKeyChunk - 1) / kKeyChunk;
    x = arena.take<float>(rows * stack.hidden);
    q = arena.take<float>(rows * h.heads * dim);
    mixed = arena.take<float>(rows * h.heads * dim);
    inner = arena.take<float>(rows * stack.ffn);
    parts = arena.take<float>(rows <= kMaxRows ? rows * h.heads * chunks * (dim + 2) : 0);
    done = arena.take<uint32_t>(h.kv_heads);
    for (size_t i = 0; i < stack.layers.size(); ++i) {
        const int64_t floats = h.kv_heads * chunks * kKeyChunk * dim;
        caches.push_back(i > 0 && !keeps
                             ? caches[0]
                             : Cache{arena.take<float>(floats), arena.take<float>(floats), chunks * kKeyChunk});
    }
}

Job linear_job(const SlabMatrix& w, const float* x, int64_t x_stride, float* out, int64_t out_stride, Finish finish,
               int32_t rows) {
    Job job = {};
    job.op = Op::linear;
    job.linear.w = w;
    job.linear.x = x;
    job.linear.x_stride = x_stride;
    job.linear.out = out;
    job.linear.out_stride = out_stride;
    job.linear.finish = finish;
    job.linear.rows = rows;
    return job;
}

Job with_norm(Job job, const float* norm, int64_t cols, float eps, const float* bias) {
    job.linear.norm = norm;
    job.linear.norm_bias = bias;
    job.linear.norm_cols = static_cast<int32_t>(cols);
    job.linear.eps = eps;
    return job;
}

void add_stack(std::vector<Job>& jobs, const StackWeights& stack, const StackBuffers& b, int32_t rows, Clock clock,
               bool causal, const KeySpan* seen) {
    const int64_t heads = int64_t{stack.heads.heads} * stack.heads.head_dim, hidden = stack.hidden;
    const auto with_bias = [](Job job, const float* bias) {
        job.linear.bias = bias;
        return job;
    };
    for (size_t i = 0; i < stack.layers.size(); ++i) {
        const LayerWeights& layer = stack.layers[i];
        Job attention = {};
        attention.op = Op::attention;
        attention.attention = {.heads = stack.heads,
                               .cache = b.caches[i],
                               .q = b.q,
                               .out = b.mixed,
                               .parts = b.parts,
                               .done = b.done,
                               .rows = rows,
                               .clock = clock,
                               .causal = causal ? 1 : 0,
                               .seen = seen,
                               .whole = seen ? 1 : 0};
        for (const QkvPart& part : layer.qkv) {
            Job job = with_norm(linear_job(part.w, b.x, hidden, b.q, heads, Finish::attend, rows), layer.attention_norm,
                                hidden, stack.eps, layer.attention_norm_bias);
            job.linear.bias = part.bias;
            job.linear.clock = clock;
            job.linear.heads = stack.heads;
            job.linear.cache = b.caches[i];
            job.linear.first_tile = part.first_tile;
            job.linear.unit_tiles = part.unit_tiles;
            job.attention = attention.attention;
            jobs.push_back(job);
        }
        if (layer.qkv[0].unit_tiles == 0) jobs.push_back(attention);
        jobs.push_back(
            with_bias(linear_job(layer.o, b.mixed, heads, b.x, hidden, Finish::accumulate, rows), layer.o_bias));
        jobs.push_back(with_bias(with_norm(linear_job(layer.up, b.x, hidden, b.inner, stack.ffn, stack.up, rows),
                                           layer.ffn_norm, hidden, stack.eps, layer.ffn_norm_bias),
                                 layer.up_bias));
        jobs.push_back(with_bias(linear_job(layer.down, b.inner, stack.ffn, b.x, hidden, Finish::accumulate, rows),
                                 layer.down_bias));
    }
}

int64_t fit(Job& job, int64_t rows, const Device& device) {
    const int warps = block_threads() / kWarp;
    const int64_t queries = job.attention.rows > 0 ? job.attention.rows : rows;
    if (job.op == Op::attention) return attention_bytes(job.attention.heads, queries);
    if (job.op != Op::linear) return sample_bytes(block_threads());
    int64_t at_once = std::min(job.linear.rows > 0 ? job.linear.rows : rows, kMostAtOnce);
    while (at_once > 1 && linear_bytes(job.linear.w, at_once, warps) > device.shared_bytes) --at_once;
    job.linear.at_once = static_cast<int32_t>(at_once);
    const int64_t linear = linear_bytes(job.linear.w, at_once, warps);
    return job.linear.unit_tiles > 0 ? std::max(linear, attention_bytes(job.linear.heads, queries)) : linear;
}

}  // namespace mimo::gpu
