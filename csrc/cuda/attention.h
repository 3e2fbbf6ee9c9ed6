// softmax(q · K / sqrt(head_dim)) V over a cache of fixed capacity, for a few rows of queries.
//
// An item is one key head, up to 8 rows and either a chunk of 64 keys, or all chunks in turn (`whole`: many rows, which
// are work enough for all blocks); it serves all query heads that share the key head. Scores: a lane is a key (keys are
// stored 32 side by side), so a warp reads 128 bytes a channel and sums in order. Values: a thread is a channel of a
// query. Chunks spread over blocks leave their sums, and the block that finishes the last puts them together, in the
// order of the chunks. Chunks begin at multiples of 64 positions, so that a row's bits do not depend on its neighbours.
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
    const int all_rows = job.rows > 0 ? job.rows : program.request->rows;
    const int first = static_cast<int>(position_of(job.clock, program, call, 0)), keys = first + all_rows;
    const int row_blocks = (all_rows + kMaxRows - 1) / kMaxRows;
    const int parts = job.whole ? 1 : (keys + kKeyChunk - 1) / kKeyChunk;
    const float scale = static_cast<float>(1.0 / square_root(static_cast<double>(dim)));
    const auto seen_by = [&](int row) {
        return job.seen ? job.seen[row] : KeySpan{0, job.causal ? first + row + 1 : keys};
    };

    for (int item = block(); item < h.kv_heads * row_blocks * parts; item += blocks()) {
        const int part = item % parts, head_rows = item / parts, kv = head_rows / row_blocks;
        const int first_row = head_rows % row_blocks * kMaxRows;
        const int queries = Lowest{}(kMaxRows, all_rows - first_row) * shared_by;
        auto* q = reinterpret_cast<float*>(shared_memory() + kReservedBytes);  // [queries, dim]
        float* mix = q + queries * dim;                                        // [queries, dim]
        float* scores = mix + queries * dim;                                   // [queries, kKeyChunk]
        float* best = scores + queries * kKeyChunk;                            // [queries]
        float* total = best + queries;                                         // [queries]
        float* shrink = total + queries;                                       // [queries]
        const auto row_of = [&](int query) { return first_row + query / shared_by; };
        const auto at_of = [&](int query) {
            return int64_t{row_of(query)} * h.heads + kv * shared_by + query % shared_by;
        };
        sync();  // the last item's memory
        KeySpan all = seen_by(first_row);
        for (int row = first_row; row <= row_of(queries - 1); ++row) {
            all = {Lowest{}(all.begin, seen_by(row).begin), Highest{}(all.end, seen_by(row).end)};
        }
        for (int i = thread(); i < queries * dim; i += threads()) {
            q[i] = job.q[at_of(i / dim) * dim + i % dim];
            mix[i] = 0;
        }
        for (int i = thread(); i < queries; i += threads()) {
            best[i] = -infinity();
            total[i] = 0;
        }
        const int first_chunk = job.whole ? all.begin / kKeyChunk : part;
        const int end_chunk = job.whole ? (all.end + kKeyChunk - 1) / kKeyChunk : part + 1;
        for (int chunk = first_chunk; chunk < end_chunk; ++chunk) {
            const int begin = chunk * kKeyChunk, count = Lowest{}(kKeyChunk, all.end - begin);
            const int64_t ring = kv * job.cache.capacity + begin % job.cache.capacity;
            const float* key_blocks = job.cache.keys + ring * dim;
            const float* values = job.cache.values + ring * dim;
            constexpr int halves = kKeyChunk / kKeyLanes;
            sync();
            for (int i = warp(); i < queries * halves; i += warps()) {
                const int query = i / halves, t = i % halves * kKeyLanes + lane();
                const KeySpan seen = seen_by(row_of(query));
                float score = -infinity();
                if (begin + t >= seen.begin && begin + t < seen.end) {
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
                float most = best[query], sum = 0;
                for (int t = lane(); t < kKeyChunk; t += kWarp) most = Highest{}(most, s[t]);
                most = reduce_warp(most, Highest{});
                for (int t = lane(); t < kKeyChunk; t += kWarp) {
                    s[t] = most == -infinity() ? 0.0f : exponential(s[t] - most);
                    sum += s[t];
                }
                sum = reduce_warp(sum, Sum{});
                if (lane() == 0) {
                    shrink[query] = most == -infinity() ? 1.0f : exponential(best[query] - most);
                    best[query] = most;
                    total[query] = total[query] * shrink[query] + sum;
                }
            }
            sync();
            for (int i = thread(); i < queries * dim; i += threads()) {
                const float* s = scores + i / dim * kKeyChunk;
                float m = mix[i] * shrink[i / dim];
                for (int t = 0; t < count; ++t) {
                    if (s[t] != 0)
                        m = fused(s[t], values[t * dim + i % dim], m);  // a key that no one may see is not read
                }
                mix[i] = m;
            }
        }
        for (int i = thread(); i < queries * dim; i += threads()) {
            const int query = i / dim, d = i % dim;
            if (parts == 1) {
                job.out[at_of(query) * dim + d] = mix[i] / total[query];
                continue;
            }
            float* sums = job.parts + (at_of(query) * parts + part) * (dim + 2);
            sums[d] = mix[i];
            if (d == 0) {
                sums[dim] = best[query];
                sums[dim + 1] = total[query];
            }
        }
        if (parts == 1) continue;
        auto* is_last = reinterpret_cast<int32_t*>(shared_memory());
        fence();
        sync();
        if (thread() == 0) *is_last = arrive(job.done + head_rows) == static_cast<uint32_t>(parts - 1);
        sync();
        if (*is_last == 0) continue;
        fence();
        for (int i = thread(); i < queries * dim; i += threads()) {
            job.out[at_of(i / dim) * dim + i % dim] =
                combine_chunks(job.parts + at_of(i / dim) * parts * (dim + 2), parts, dim, i % dim);
        }
        if (thread() == 0) job.done[head_rows] = 0;
    }
}

}  // namespace mimo::gpu
