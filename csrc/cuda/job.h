// What a device is told to do: a list of jobs, each spread over all blocks, with a barrier of the whole grid after
// each. One cooperative launch runs a whole list (one patch, one backbone step); where the device cannot, one launch a
// job.
//
// Everything here is plain data that the host writes once, when a model or a conversation is opened; what changes from
// call to call lies in a Request.
#pragma once

#include <cstdint>

#include "base/sampling.h"

namespace mimo::gpu {

inline constexpr int kWarp = 32;       // threads of a warp
inline constexpr int kTileRows = 8;    // weight rows that one block computes together
inline constexpr int kSlabCols = 128;  // columns of a tile that one warp reads at once
inline constexpr int kHalfTile = kTileRows / 2;
inline constexpr int kLoadQuads = 8;  // 16-byte loads a lane has in flight
inline constexpr int kMaxRows = 8;    // positions of one append, and of one item of attention
inline constexpr int kMaxRemoved = 32;
inline constexpr int kKeyLanes = 32;  // keys side by side in a cache, one a lane
inline constexpr int kKeyChunk = 64;  // keys of one item of attention

inline constexpr int kMaxSegments = 64;  // norms in one row of inputs: a patch's frames

enum class WeightType : int32_t { f32, bf16, fp8, int8, int4 };

// 16-byte loads that a lane makes of a slab.
constexpr int loads_of(WeightType type) {
    return type == WeightType::f32 ? 8 : type == WeightType::bf16 ? 4 : type == WeightType::int4 ? 1 : 2;
}

constexpr int64_t slab_bytes(WeightType type) {
    return loads_of(type) * kWarp * 16;
}

// Weights [rows, cols] in slabs: [ceil(rows / 8), ceil(cols / 128)] of [8, 128] elements, row-major, filled with zeros
// (pack.h). Two rows of int4 share nothing: 64 bytes a row, in the byte order of kernels/packed.h.
// scales: int8, fp8: float [tiles, 8]; int4: half precision [tiles, slabs * 128 / group, 8]; others: none.
struct SlabMatrix {
    const uint8_t* data;
    const void* scales;
    int32_t tiles, slabs, rows, cols;
    int32_t group;   // columns that share an input scale: of int4 its own, else 128
    int32_t planes;  // int8 planes of an input: 1 or 2; 0: inputs stay floats
    WeightType type;
};

// Which position of its sequence a row of inputs is.
enum class Clock : int32_t {
    request,  // Request::length + row
    zero,     // row
    step,     // the step of the list
};

enum class Finish : int32_t {
    store,       // out[row][n] = y
    accumulate,  // out[row][n] += y
    gate,        // tiles hold 4 gate rows and their 4 up rows: out[row][n] = silu(gate) * up
    gelu,        // out[row][n] = gelu(y), the exact one
    attend,      // tiles of queries, keys, values: RoPE, then out (queries) and the cache
};

// Keys and values of one layer. keys [kv_heads, capacity / 32, head_dim, 32], values [kv_heads, capacity, head_dim];
// capacity is a multiple of kKeyChunk. A ring: position t is at t % capacity.
struct Cache {
    float* keys;
    float* values;
    int64_t capacity;
};

struct Heads {
    int32_t heads, kv_heads, head_dim;
    int32_t
        pair_tiles;  // tiles of a query or key head: ceil(head_dim / 2 / 4), a tile holds 4 pairs (i, i + head_dim / 2)
    int32_t value_tiles;  // tiles of a value head: ceil(head_dim / 8)
    const float* cosine;  // [positions, head_dim / 2]
    const float* sine;
    int32_t call_angles;  // 1: of the call's rows, not of positions 0, 1, ...
};

// What the levels of a code frame look like.
struct Levels {
    int32_t levels, group;         // K, G
    const int32_t* delay;          // [K]
    const int32_t* empty;          // [K], the empty code
    const int32_t* first;          // [K], first row of level k's head, a multiple of 8
    const int32_t* count;          // [K], codes
    const int32_t* tile_end;       // [K], first tile after level k's head
    const SlabMatrix* embeddings;  // [K]
};

struct LinearJob {
    SlabMatrix w;
    const float* x;  // [rows, x_stride]
    int64_t x_stride;
    int32_t last;            // 1: of x, the request's last row alone
    const float* norm;       // RMSNorm weights [norm_cols], applied to each norm_cols columns of x; null: none
    const float* norm_bias;  // [norm_cols]: it is LayerNorm; null: RMSNorm
    int32_t norm_cols;
    float eps;
    int32_t rows;       // of x; 0: Request::rows
    int32_t at_once;    // rows whose inputs lie in shared memory together
    Levels levels;      // if any: rows of w are their heads, and only those made at the step are computed
    const float* bias;  // [tiles, 8] or null
    float* out;
    int64_t out_stride;
    int64_t out_call;  // of `out` for each row of the call (Call::row)
    Finish finish;
    Clock clock;         // attend: of the rows' positions
    Heads heads;         // attend
    Cache cache;         // attend
    int32_t first_tile;  // attend: of w among the tiles of queries, keys and values
    // attend: tiles of one key head and all that goes with it, which then stay with one block: it attends to them in
    // the same job. For caches of at most kKeyChunk positions. 0: heads in order, any block.
    int32_t unit_tiles;
};

// Positions [begin, end).
struct KeySpan {
    int32_t begin, end;
};

struct AttentionJob {
    Heads heads;
    Cache cache;
    const float* q;  // [rows, heads * head_dim]
    float* out;      // likewise
    float* parts;    // [rows * heads, chunks, head_dim + 2]: sums of a chunk, its highest score, its total
    uint32_t* done;  // [kv_heads * ceil(rows / kMaxRows)], zeros between jobs; whole: none
    int32_t rows;
    Clock clock;
    int32_t causal;       // row i sees keys up to its own; else all keys of the call
    const KeySpan* seen;  // [rows], what each row sees instead; null: as `causal` says
    int32_t whole;        // 1: a block goes through all of a row's keys; 0: chunks are spread over blocks
};

struct TextJob {  // x[row] = the row of its token, unless it is <|empty|>
    SlabMatrix table;
    float* x;
    int32_t empty_token;
};

struct CodesJob {  // out = sums of embeddings: [G, cols] of a patch's codes, or [1, cols] of those made at this step
    Levels levels;
    float* out;
    int32_t cols;
    int32_t made;
};

struct SampleJob {
    Levels levels;        // of speech: one block a level
    int32_t text;         // 1: the token
    int32_t vocabulary;   // text: candidates
    const float* logits;  // speech: level k from levels.first[k]
    float* mass;          // scratch, as long
};

enum class Op : int32_t { linear, attention, text, codes, sample };

struct Job {
    Op op;
    union {
        LinearJob linear;
        TextJob text;
        CodesJob codes;
        SampleJob sample;
    };
    AttentionJob attention;  // of Op::attention, and of a linear job whose blocks attend to their own heads
};

// What one call asks for, in device memory, and what it answers.
struct Request {
    int32_t rows;    // positions to append
    int32_t length;  // positions in the cache
    Sampling text, speech;
    uint64_t seed;
    uint32_t stream, position;
    int32_t removed_count;
    int32_t removed[kMaxRemoved];
    int32_t tokens[kMaxRows];
};

enum Trouble : int32_t { kBroken = 1, kNoCandidate = 2 };

struct Answer {
    int32_t token;
    int32_t trouble;  // bits of Trouble
};

// A list: `before` jobs once, then `each` jobs for every step.
struct Program {
    const Job* jobs;
    int32_t before, each, steps;
    const Request* request;
    const int32_t* patches;  // [kMaxRows, G, K], codes under the request's tokens
    Answer* answer;
    int32_t* codes;     // [K, G], made
    uint32_t* arrived;  // the grid's barrier, zero at the start

    constexpr int32_t count() const { return before + each * steps; }
};

// Where one job of a list stands.
struct Call {
    int32_t job;  // in the list
    int32_t step;
    int32_t row;  // of the request: the patch that is encoded
};

}  // namespace mimo::gpu
