// y = W x for a few rows of inputs, with what comes before (RMSNorm, rounding) and after (bias, RoPE and cache, SiLU
// gate, residual sum).
//
// A tile is 8 weight rows, and belongs to one block: tile t to block t mod blocks. A tile's slabs (8 x 128 weights) are
// dealt to the warps; each lane has eight 16-byte loads in flight, the first of them before the grid's barrier, so that
// the memory never waits for a barrier. A warp turns a slab into 8 sums (of each input row and group of columns), which
// wait in shared memory (`sums`, a ring) until the tile's last slab is done. Then one thread for each pair of rows adds
// them up, group after group: the order of kernels/packed.h, so that integer weights give the same bits as on the CPU.
#pragma once

#include "cuda/inputs.h"

namespace mimo::gpu {

// Tiles [first, end) of a job: all, or for heads the levels of this step.
struct Tiles {
    int32_t first, end;
};

MIMO_DEVICE bool is_made(const Levels& levels, int level, int step) {
    const int frame = step - levels.delay[level];
    return frame >= 0 && frame < levels.group;
}

MIMO_DEVICE Tiles tiles_of(const LinearJob& job, int step) {
    if (job.levels.levels == 0) return {0, job.w.tiles};
    Tiles tiles = {job.w.tiles, 0};
    for (int level = 0; level < job.levels.levels; ++level) {
        if (!is_made(job.levels, level, step)) continue;
        const int32_t first = job.levels.first[level] / kTileRows;
        tiles = {Lowest{}(tiles.first, first), Highest{}(tiles.end, job.levels.tile_end[level])};
    }
    return tiles;
}

MIMO_DEVICE float silu(float x) {
    return x / (1.0f + exponential(-x));
}

MIMO_DEVICE float gelu(float x) {
    return x / 2 * (1.0f + error_function(x * 0.70710678118654752f));  // 1 / sqrt 2
}

// What a tile of queries, keys and values holds: of part 0, 1 or 2 the tile `at` of a head.
struct HeadTile {
    int part, head, at;
};

MIMO_DEVICE HeadTile head_tile(const LinearJob& job, int tile) {
    const Heads& h = job.heads;
    if (job.unit_tiles > 0) {
        const int unit = tile / job.unit_tiles, at = tile % job.unit_tiles, shared_by = h.heads / h.kv_heads;
        const int keys = shared_by * h.pair_tiles, values = keys + h.pair_tiles;
        if (at < keys) return {0, unit * shared_by + at / h.pair_tiles, at % h.pair_tiles};
        return at < values ? HeadTile{1, unit, at - keys} : HeadTile{2, unit, at - values};
    }
    tile += job.first_tile;
    const int head = tile / h.pair_tiles, values = (h.heads + h.kv_heads) * h.pair_tiles;
    if (tile >= values) return {2, (tile - values) / h.value_tiles, (tile - values) % h.value_tiles};
    return head < h.heads ? HeadTile{0, head, tile % h.pair_tiles} : HeadTile{1, head - h.heads, tile % h.pair_tiles};
}

// Rows `pair` and `pair + 4` of a tile are a and b, of input row r at position t.
MIMO_DEVICE void finish_heads(const LinearJob& job, int tile, int pair, int r, int64_t t, float a, float b) {
    const auto [part, head, at] = head_tile(job, tile);
    const int64_t dim = job.heads.head_dim, half = dim / 2, angle = (job.heads.call_angles ? r : t) * half;
    t %= job.cache.capacity;
    if (part == 2) {
        const int64_t d = at * kTileRows + pair;
        float* values = job.cache.values + (head * job.cache.capacity + t) * dim;
        if (d < dim) values[d] = a;
        if (d + kHalfTile < dim) values[d + kHalfTile] = b;
        return;
    }
    const int64_t d = at * kHalfTile + pair;
    if (d >= half) return;
    const float cosine = job.heads.cosine[angle + d], sine = job.heads.sine[angle + d];
    const float low = a * cosine - b * sine, high = b * cosine + a * sine;
    if (part == 0) {
        float* q = job.out + r * job.out_stride + head * dim;
        q[d] = low;
        q[d + half] = high;
    } else {
        const int64_t block = head * (job.cache.capacity / kKeyLanes) + t / kKeyLanes;
        float* keys = job.cache.keys + block * dim * kKeyLanes + t % kKeyLanes;
        keys[d * kKeyLanes] = low;
        keys[(d + half) * kKeyLanes] = high;
    }
}

MIMO_DEVICE int64_t position_of(Clock clock, const Program& program, const Call& call, int row) {
    return clock == Clock::request ? program.request->length + row : clock == Clock::step ? call.step : row;
}

MIMO_DEVICE void finish_pair(const LinearJob& job, const Program& program, const Call& call, int32_t tile, int pair,
                             int r, float a, float b) {
    if (job.bias) {
        a += job.bias[int64_t{tile} * kTileRows + pair];
        b += job.bias[int64_t{tile} * kTileRows + pair + kHalfTile];
    }
    float* out = job.out + call.row * job.out_call + r * job.out_stride;
    const int64_t n = int64_t{tile} * kTileRows + pair;
    switch (job.finish) {
        case Finish::attend:
            return finish_heads(job, tile, pair, r, position_of(job.clock, program, call, r), a, b);
        case Finish::gate:
            if (int64_t{tile} * kHalfTile + pair < job.w.rows / 2) out[int64_t{tile} * kHalfTile + pair] = silu(a) * b;
            return;
        case Finish::gelu:
            if (n < job.w.rows) out[n] = gelu(a);
            if (n + kHalfTile < job.w.rows) out[n + kHalfTile] = gelu(b);
            return;
        case Finish::accumulate:
            if (n < job.w.rows) out[n] += a;
            if (n + kHalfTile < job.w.rows) out[n + kHalfTile] += b;
            return;
        case Finish::store:
            if (n < job.w.rows) out[n] = a;
            if (n + kHalfTile < job.w.rows) out[n + kHalfTile] = b;
    }
}

// The scale of the row of weights whose sum this lane will hold, as stored: it is loaded with the weights.
template <WeightType type>
MIMO_DEVICE uint32_t load_scale(const SlabMatrix& w, int64_t tile, int slab) {
    if constexpr (type == WeightType::int4) {
        const int64_t group = (tile * w.slabs + slab) * groups_of_slab(w) + first_col<type>() / w.group;
        return static_cast<const uint16_t*>(w.scales)[group * kTileRows + sum_row<1>()];
    } else if constexpr (type == WeightType::int8 || type == WeightType::fp8) {
        return as_bits(static_cast<const float*>(w.scales)[tile * kTileRows + sum_row<loads_of(type)>()]);
    } else {
        return 0;
    }
}

// One slab against all rows of inputs; sums: [rows][ring] of [groups][8], at this slab's place.
template <WeightType type, int planes>
MIMO_DEVICE void multiply(const SlabMatrix& w, const Quad (&weights)[loads_of(type)], uint32_t scale_bits,
                          const Inputs& in, int rows, int slab, float* sums, int row_stride) {
    constexpr int loads = loads_of(type);
    const int col = slab * kSlabCols + first_col<type>();
    const float scale = type == WeightType::int4 ? from_half(scale_bits) : as_float(scale_bits);
    const int group = first_col<type>() / w.group;  // in the slab; 0 unless int4 groups are narrow
    const int span = type == WeightType::int4 ? w.group / (kSlabCols / 4) : 4;
    const bool writes = type == WeightType::int4 ? first_col<type>() % w.group == 0 : lane() % 4 == 0;
    for (int r = 0; r < rows; ++r) {
        float sum;
        if constexpr (planes == 0) {
            float v[loads];
            dot_floats<type>(weights, in, r, col, v);
            sum = sum_lanes<loads>(v, span);
            if (type == WeightType::fp8) sum *= scale;
        } else {
            int32_t v[loads];
            dot_integers<type, planes>(weights, in, r, col, v);
            const int g = r * in.groups + slab * groups_of_slab(w) + group;
            const int32_t dot = sum_lanes<loads>(v, span) - (type == WeightType::int4 ? 8 * in.sums[g] : 0);
            sum = static_cast<float>(dot) * (in.scales[g] * scale);
        }
        if (writes) {
            const int at = type == WeightType::int4 ? group * kTileRows : 0;
            sums[r * row_stride + at + sum_row<loads>()] = sum;
        }
    }
}

// Input rows [first_row, first_row + rows). wait: called when the first weights are on their way; what it waits for are
// the inputs and the memory they go to.
template <WeightType type, int planes, typename Wait>
MIMO_DEVICE_CALL void run_rows(const LinearJob& job, const Program& program, const Call& call, int first_row, int rows,
                               Wait wait) {
    constexpr int loads = loads_of(type), slabs_in_flight = kLoadQuads / loads;
    const SlabMatrix w = job.w;
    const Tiles all = tiles_of(job, call.step);
    const int unit = Highest{}(1, job.unit_tiles);  // tiles that stay together
    const int units = (all.end - all.first) / unit;
    const int mine = Highest{}(0, (units - block() + blocks() - 1) / blocks()) * unit;
    const auto tile_at = [&](int index) {
        return all.first + (block() + index / unit * blocks()) * unit + index % unit;
    };
    const int count = mine * w.slabs, round = round_of(type, warps());

    Quad weights[slabs_in_flight][loads];
    uint32_t scales[slabs_in_flight];
    const auto load = [&](int u, int item) {
        const int64_t tile = tile_at(item / w.slabs);
        const int slab = item % w.slabs;
        const uint8_t* from = w.data + (tile * w.slabs + slab) * slab_bytes(type) + lane() * 16;
#pragma unroll
        for (int i = 0; i < loads; ++i) weights[u][i] = load_weights(from + i * kWarp * 16);
        scales[u] = load_scale<type>(w, tile, slab);
    };
#pragma unroll
    for (int u = 0; u < slabs_in_flight; ++u) {
        const int item = u * warps() + warp();
        if (item < count) load(u, item);
    }

    wait();
    if (count == 0 || rows == 0) return;
    char* memory = shared_memory() + kReservedBytes;
    const Inputs in = read_inputs<planes>(job, job.last ? program.request->rows - 1 : first_row, rows, memory);
    auto* sums = reinterpret_cast<float*>(memory + input_bytes(w, rows));
    const int ring = ring_of(w, warps()), slab_floats = groups_of_slab(w) * kTileRows, row_stride = ring * slab_floats;
    sync();

    for (int first = 0; first < count; first += round) {
#pragma unroll
        for (int u = 0; u < slabs_in_flight; ++u) {
            const int item = first + u * warps() + warp();
            if (item >= count) continue;
            multiply<type, planes>(w, weights[u], scales[u], in, rows, item % w.slabs, sums + item % ring * slab_floats,
                                   row_stride);
            if (item + round < count) load(u, item + round);
        }
        sync();
        const int done = first / w.slabs, end = Lowest{}(first + round, count) / w.slabs;
        for (int i = thread(); i < (end - done) * rows * kHalfTile; i += threads()) {
            const int pair = i % kHalfTile, r = i / kHalfTile % rows, index = done + i / kHalfTile / rows;
            float a = 0, b = 0;
            for (int item = index * w.slabs; item < (index + 1) * w.slabs; ++item) {
                const float* part = sums + r * row_stride + item % ring * slab_floats + pair;
                for (int g = 0; g < slab_floats; g += kTileRows) {
                    a += part[g];
                    b += part[g + kHalfTile];
                }
            }
            finish_pair(job, program, call, tile_at(index), pair, first_row + r, a, b);
        }
    }
}

template <typename Wait>
MIMO_DEVICE void run_rows(const LinearJob& job, const Program& program, const Call& call, int first_row, int rows,
                          Wait wait) {
    switch (job.w.type) {
        case WeightType::f32:
            return run_rows<WeightType::f32, 0>(job, program, call, first_row, rows, wait);
        case WeightType::bf16:
            return run_rows<WeightType::bf16, 0>(job, program, call, first_row, rows, wait);
        case WeightType::fp8:
            return run_rows<WeightType::fp8, 0>(job, program, call, first_row, rows, wait);
        case WeightType::int8:
            if (job.w.planes == 1) return run_rows<WeightType::int8, 1>(job, program, call, first_row, rows, wait);
            return run_rows<WeightType::int8, 2>(job, program, call, first_row, rows, wait);
        case WeightType::int4:
            if (job.w.planes == 1) return run_rows<WeightType::int4, 1>(job, program, call, first_row, rows, wait);
            return run_rows<WeightType::int4, 2>(job, program, call, first_row, rows, wait);
    }
}

// All rows, as many at once as the host found room for.
template <typename Wait>
MIMO_DEVICE void run_linear(const LinearJob& job, const Program& program, const Call& call, Wait wait) {
    const int all = job.rows > 0 ? job.rows : program.request->rows;
    int first = 0;
    do {
        run_rows(job, program, call, first, Lowest{}(job.at_once, all - first), wait);
        first += job.at_once;
    } while (first < all);
}

}  // namespace mimo::gpu
