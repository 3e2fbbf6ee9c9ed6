// softmax(q · K / sqrt(head_dim)) V over a cache of fixed capacity, for a few rows of queries.
//
// An item is one key head and a chunk of 64 keys; it serves all query heads that share the key head, of all rows.
// Scores: a lane is a key (keys are stored 32 side by side), so a warp reads 128 bytes a channel and sums in order.
// Values: a thread is a channel of a query. If there are several chunks, each leaves its sums, and the block that
// finishes a key head's last chunk puts them together, in the order of the chunks.
#pragma once

#include "cuda/linear.h"

namespace mimo::gpu {

// out <- the chunks of query `query` put together, channel d.
MIMO_DEVICE float combine_chunks(const float* parts, int64_t chunks, int64_t dim, int64_t d) {
    const int64_t stride = dim + 2;
    float best = -infinity();
    for (int64_t c = 0; c < chunks; ++c) best = Highest{}(best, parts[c * stride + dim]);
    float mix = 0, total = 0;
    for (int64_t c = 0; c < chunks; ++c) {
        const float* part = parts + c * stride;
        if (part[dim] == -infinity()) continue;  // all its keys lie after this row
        const float weight = exponential(part[dim] - best);
        mix += weight * part[d];
        total += weight * part[dim + 1];
    }
    return mix / total;
}

MIMO_DEVICE_CALL void run_attention(const AttentionJob& job, const Program& program, const Call& call) {
    const Heads& h = job.heads;
    const int dim = h.head_dim, shared_by = h.heads / h.kv_heads;
    const int rows = job.rows > 0 ? job.rows : program.request->rows, queries = rows * shared_by;
    const int first = static_cast<int>(position_of(job.clock, program, call, 0)), keys = first + rows;
    const int chunks = (keys + kKeyChunk - 1) / kKeyChunk;
    const float scale = static_cast<float>(1.0 / square_root(static_cast<double>(dim)));
    auto* q = reinterpret_cast<float*>(shared_memory() + kReservedBytes);  // [queries, dim]
    float* scores = q + queries * dim;                                     // [queries, kKeyChunk]
    float* best = scores + queries * kKeyChunk;                            // [queries]
    float* total = best + queries;                                         // [queries]
    auto* is_last = reinterpret_cast<int32_t*>(shared_memory());

    for (int item = block(); item < h.kv_heads * chunks; item += blocks()) {
        const int kv = item / chunks, chunk = item % chunks, begin = chunk * kKeyChunk;
        const int count = Lowest{}(kKeyChunk, keys - begin);
        const auto row_of = [&](int query) { return query / shared_by; };
        const auto head_of = [&](int query) { return kv * shared_by + query % shared_by; };
        sync();  // the last item's memory
        for (int i = thread(); i < queries * dim; i += threads()) {
            q[i] = job.q[(row_of(i / dim) * h.heads + head_of(i / dim)) * dim + i % dim];
        }
        sync();
        const float* key_blocks = job.cache.keys + (kv * job.cache.capacity + begin) * dim;
        constexpr int halves = kKeyChunk / kKeyLanes;
        for (int i = warp(); i < queries * halves; i += warps()) {
            const int query = i / halves, t = i % halves * kKeyLanes + lane();
            const int end = job.causal ? first + row_of(query) + 1 : keys;
            float score = -infinity();
            if (begin + t < end) {
                const float* key = key_blocks + i % halves * dim * kKeyLanes + lane();
                score = 0;
                for (int d = 0; d < dim; ++d) score = fused(q[query * dim + d], key[d * kKeyLanes], score);
                score *= scale;
            }
            scores[query * kKeyChunk + t] = score;
        }
        sync();
        for (int query = warp(); query < queries; query += warps()) {
            float* s = scores + query * kKeyChunk;
            float most = -infinity(), sum = 0;
            for (int t = lane(); t < kKeyChunk; t += kWarp) most = Highest{}(most, s[t]);
            most = reduce_warp(most, Highest{});
            for (int t = lane(); t < kKeyChunk; t += kWarp) {
                s[t] = most == -infinity() ? 0.0f : exponential(s[t] - most);
                sum += s[t];
            }
            sum = reduce_warp(sum, Sum{});
            if (lane() == 0) {
                best[query] = most;
                total[query] = sum;
            }
        }
        sync();
        const float* values = job.cache.values + (kv * job.cache.capacity + begin) * dim;
        for (int i = thread(); i < queries * dim; i += threads()) {
            const int query = i / dim, d = i % dim;
            const float* s = scores + query * kKeyChunk;
            float mix = 0;
            for (int t = 0; t < count; ++t) mix = fused(s[t], values[t * dim + d], mix);
            const int64_t at = row_of(query) * h.heads + head_of(query);
            if (chunks == 1) {
                job.out[at * dim + d] = mix / total[query];
            } else {
                float* part = job.parts + (at * chunks + chunk) * (dim + 2);
                part[d] = mix;
                if (d == 0) {
                    part[dim] = best[query];
                    part[dim + 1] = total[query];
                }
            }
        }
        if (chunks == 1) continue;
        fence();
        sync();
        if (thread() == 0) *is_last = arrive(job.done + kv) == static_cast<uint32_t>(chunks - 1);
        sync();
        if (*is_last == 0) continue;
        fence();
        for (int i = thread(); i < queries * dim; i += threads()) {
            const int64_t at = row_of(i / dim) * h.heads + head_of(i / dim);
            job.out[at * dim + i % dim] = combine_chunks(job.parts + at * chunks * (dim + 2), chunks, dim, i % dim);
        }
        if (thread() == 0) job.done[kv] = 0;
    }
}

}  // namespace mimo::gpu
