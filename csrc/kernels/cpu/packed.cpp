// Linear layers on packed integer weights (kernels/packed.h), written once on vectors of 32-bit lanes and compiled for
// each instruction set; MIMO_DOT names the header with its dot products. Compiled without contraction of a * b + c.
//
// A lane owns one output: 64 bytes of weights are 16 outputs x 4 bytes, met by 4 bytes of one input spread over all
// lanes. A tile of weight vectors x inputs shares the loads; its size changes nothing in an output's own arithmetic.
// Before they are multiplied weights are opened, nibbles parted and bytes given their offset: on the way for few
// inputs, once for many.
#include "kernels/packed.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>

#include "kernels/cpu/packed_table.h"
#include "kernels/cpu/vector_types.h"

#include MIMO_DOT

namespace mimo {
namespace {

constexpr int64_t kBlockBytes = 64;                       // one chunk of one block of rows
constexpr int kPieces = kBlockBytes / MIMO_VECTOR_BYTES;  // vectors in it

// Tiles whose sums fit the registers: 32 of 64 bytes, or 16.
constexpr bool kWide = MIMO_VECTOR_BYTES == 64;
constexpr int kSingleBlocks = kWide ? 4 : 1;  // for one input: enough sums to hide latency
constexpr int kTileBlocks = kWide ? 2 : 1;
constexpr int kTileInputs = kWide ? 12 : MIMO_VECTOR_BYTES == 32 ? 6 : 4;
constexpr int64_t kAhead = 128;  // chunks of weights asked for early, into the second-level cache

inline Int spread(const int8_t* four_bytes) {
    int32_t word;
    std::memcpy(&word, four_bytes, sizeof(word));
    return Int{} + word;
}

template <DType type>
constexpr int kParts = type == DType::i4 ? 2 : 1;  // vectors that one of packed weights opens into

template <DType type, int V>
using Parts = Int[V][kParts<type>];

// B blocks of weights as the bundle has them.
template <DType type, int B>
struct PackedBlocks {
    int64_t chunks;
    const uint8_t* bytes;

    PackedBlocks(const Matrix& w, int64_t block)
        : chunks(chunks_of(w)), bytes(static_cast<const uint8_t*>(w.data) + block * chunks * kBlockBytes) {}

    void begin(int64_t) {}  // a tile, the n-th of those that read these blocks

    // Chunk k, opened; asks for the one `ahead` of it.
    void read(int64_t k, int64_t ahead, Parts<type, B * kPieces>& parts) const {
        for (int v = 0; v < B * kPieces; ++v) {
            const uint8_t* at = bytes + (v / kPieces * chunks + k) * kBlockBytes + v % kPieces * MIMO_VECTOR_BYTES;
            const Int packed = load<Int>(at);
            __builtin_prefetch(at + ahead * kBlockBytes, 0, 2);
            if constexpr (type == DType::i4) {
                parts[v][0] = packed & 0x0F0F0F0F;
                parts[v][1] = packed >> 4 & 0x0F0F0F0F;
            } else {
                parts[v][0] = packed ^ kByteOffset * 0x01010101u;
            }
        }
    }
};

// The same blocks, opened: a chunk of all of them after the other. Each of the first B tiles asks for one of the blocks
// that will be opened next.
template <DType type, int B>
struct OpenBlocks {
    const Parts<type, B * kPieces>* chunks;
    PackedBlocks<type, B> next;

    void begin(int64_t tile) { next.bytes += std::min<int64_t>(tile, B - 1) * next.chunks * kBlockBytes; }

    void read(int64_t k, int64_t, Parts<type, B * kPieces>& parts) const {
        __builtin_prefetch(next.bytes + k * kBlockBytes, 0, 2);
        for (int v = 0; v < B * kPieces; ++v) {
            for (int part = 0; part < kParts<type>; ++part) parts[v][part] = chunks[k][v][part];
        }
    }
};

// One tile: B blocks of rows, the first of them `block`, against C rows of x, the first of them `row`.
template <DType type, int planes, int B, int C, typename Blocks>
void tile(const RoundedInputs& x, int64_t row, const Matrix& w, int64_t block, Blocks blocks, const float* bias,
          float* y, int64_t y_stride) {
    constexpr bool nibbles = type == DType::i4;
    constexpr int64_t chunk = nibbles ? 8 : 4;
    constexpr int32_t offset = nibbles ? 8 : kByteOffset;
    constexpr int V = B * kPieces;
    const int64_t chunks = chunks_of(w), groups_of_scales = scale_groups(w);
    const int8_t* inputs = x.row(row);
    blocks.begin(row / C);
    Float total[V][C];
#pragma GCC unroll 32
    for (int v = 0; v < V; ++v) {  // `= {}` becomes a slow string instruction
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) total[v][c] = Float{};
    }
    for (int c = 0; c < C; ++c) {  // the lines of y come while the sums are made
        for (int b = 0; b < B; ++b) __builtin_prefetch(y + (row + c) * y_stride + (block + b) * kBlockRows, 1);
    }
    for (int64_t g = 0; g < x.groups; ++g) {
        const int64_t begin = g * x.group / chunk, end = std::min(chunks, (g + 1) * x.group / chunk);
        const int64_t ahead = end + kAhead <= chunks ? kAhead : kAhead + (B - 1) * chunks;  // or in the next tile
        const float* input_scales = x.scales + g * x.rows + row;
        const int32_t* sums = x.sums + g * x.rows + row;
        Int dot[V][C][planes];
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
            const Int removed = Int{} - offset * sums[c];  // what the offset will add
#pragma GCC unroll 32
            for (int v = 0; v < V; ++v) {
                dot[v][c][0] = Int{};
                dot[v][c][planes - 1] = removed;
            }
        }
        for (int64_t k = begin; k < end; ++k) {
            Parts<type, V> weights;
            blocks.read(k, ahead, weights);
            for (int c = 0; c < C; ++c) {
                for (int p = 0; p < planes; ++p) {
                    const int8_t* in = inputs + c * x.stride + p * x.cols + k * chunk;
                    for (int v = 0; v < V; ++v) {
                        if constexpr (nibbles) {
                            dot[v][c][p] = dot_i4(dot[v][c][p], weights[v], spread(in), spread(in + 4));
                        } else {
                            dot[v][c][p] = dot_i8(dot[v][c][p], weights[v][0], spread(in));
                        }
                    }
                }
            }
        }
        const int64_t scale_group = nibbles ? g : 0;
#pragma GCC unroll 32
        for (int v = 0; v < V; ++v) {
            const int64_t at =
                ((block + v / kPieces) * groups_of_scales + scale_group) * kBlockRows + v % kPieces * kWidth;
            const Float scale = nibbles ? load_halves(static_cast<const uint16_t*>(w.scales) + at)
                                        : load<Float>(static_cast<const float*>(w.scales) + at);
#pragma GCC unroll 32
            for (int c = 0; c < C; ++c) {
                const Int exact = planes == 1 ? dot[v][c][0] : (dot[v][c][0] << 7) + dot[v][c][planes - 1];
                total[v][c] += __builtin_convertvector(exact, Float) * (input_scales[c] * scale);
            }
        }
    }
    for (int v = 0; v < V; ++v) {
        const int64_t n = (block + v / kPieces) * kBlockRows + v % kPieces * kWidth;
        const int64_t count = std::min(kWidth, w.rows - n);
        if (count <= 0) continue;
        if (bias) {
            const Float shift = load_part<Float>(bias + n, count);
            for (int c = 0; c < C; ++c) total[v][c] += shift;
        }
        for (int c = 0; c < C; ++c) {
            float* out = y + (row + c) * y_stride + n;
            if (count == kWidth) {
                store(out, total[v][c]);
            } else {
                std::memcpy(out, &total[v][c], static_cast<size_t>(count) * sizeof(float));
            }
        }
    }
}

// All rows of x against B blocks, C rows at a time, what is left in one tile too: weights are read as seldom as can be.
template <DType type, int planes, int B, int C, typename Blocks>
void rows_of_tiles(const RoundedInputs& x, int64_t row, const Matrix& w, int64_t block, Blocks blocks,
                   const float* bias, float* y, int64_t y_stride) {
    for (; row + C <= x.rows; row += C) tile<type, planes, B, C>(x, row, w, block, blocks, bias, y, y_stride);
    if constexpr (C > 1) {
        if (row < x.rows) rows_of_tiles<type, planes, B, C - 1>(x, row, w, block, blocks, bias, y, y_stride);
    }
}

template <DType type, int planes>
void linear_typed(const RoundedInputs& x, const Matrix& w, const float* bias, int64_t first, int64_t last, float* y,
                  int64_t y_stride) {
    constexpr int C = kTileInputs / planes;
    int64_t block = first / kBlockRows;
    const int64_t end = (last + kBlockRows - 1) / kBlockRows;
    if (x.rows == 1) {
        for (; block + kSingleBlocks <= end; block += kSingleBlocks) {
            const PackedBlocks<type, kSingleBlocks> packed(w, block);
            tile<type, planes, kSingleBlocks, 1>(x, 0, w, block, packed, bias, y, y_stride);
        }
    } else if (x.rows < 2 * C) {
        for (; block + kTileBlocks <= end; block += kTileBlocks) {
            const PackedBlocks<type, kTileBlocks> packed(w, block);
            rows_of_tiles<type, planes, kTileBlocks, C>(x, 0, w, block, packed, bias, y, y_stride);
        }
    } else {
        const int64_t chunks = chunks_of(w);
        const auto room = std::make_unique_for_overwrite<Parts<type, kTileBlocks * kPieces>[]>(chunks);
        for (; block + kTileBlocks <= end; block += kTileBlocks) {
            const PackedBlocks<type, kTileBlocks> packed(w, block);
            for (int64_t k = 0; k < chunks; ++k) packed.read(k, kAhead, room[k]);
            const int64_t after = std::min(block + kTileBlocks, end - kTileBlocks);
            const OpenBlocks<type, kTileBlocks> open{room.get(), {w, after}};
            rows_of_tiles<type, planes, kTileBlocks, C>(x, 0, w, block, open, bias, y, y_stride);
        }
    }
    for (; block < end; ++block) {
        const PackedBlocks<type, 1> packed(w, block);
        rows_of_tiles<type, planes, 1, C>(x, 0, w, block, packed, bias, y, y_stride);
    }
}

// One group of n inputs, zeros up to `filled`; `low` is written if there are two planes. fixed: n, if it is known.
template <int planes, int64_t fixed = 0>
void round_group(const float* in, int64_t n, int64_t filled, int8_t* high, int8_t* low, float& scale, int32_t& sum) {
    using Byte = int8_t __attribute__((vector_size(kWidth)));
    if constexpr (fixed) n = filled = fixed;
    const auto at = [&](int64_t k) { return k + kWidth <= n ? load<Float>(in + k) : load_part<Float>(in + k, n - k); };
    const auto put = [&](const Byte& bytes, int8_t* to, int64_t k) {
        if (k + kWidth <= filled) {
            std::memcpy(to + k, &bytes, sizeof(bytes));
        } else {
            std::memcpy(to + k, &bytes, static_cast<size_t>(filled - k));
        }
    };
    constexpr float steps = planes == 1 ? 127.0f : 16256.0f;
    const Float magic = Float{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest even integer
    Int most_bits = {};                         // of |x|; NaN is above infinity is above every number
    for (int64_t k = 0; k < n; k += kWidth) {
        const Int bits = std::bit_cast<Int>(at(k)) & 0x7FFFFFFF;
        most_bits = bits > most_bits ? bits : most_bits;
    }
    const float most = std::bit_cast<float>(fold<int32_t>(most_bits, [](auto a, auto b) { return a > b ? a : b; }));
    scale = std::isfinite(most) ? (most < kSmallestInput ? 0.0f : most / steps) : NAN;
    const float inverse = scale > 0 ? steps / most : 0.0f;
    Int total = {};
    for (int64_t k = 0; k < filled; k += kWidth) {
        const Float input = inverse > 0 && k < n ? at(k) : Float{};
        const Int q = std::bit_cast<Int>(input * inverse + magic) - std::bit_cast<Int>(magic);
        const Int upper = planes == 1 ? q : (q + 64) >> 7;
        put(__builtin_convertvector(upper, Byte), high, k);
        if (planes == 2) put(__builtin_convertvector(q - (upper << 7), Byte), low, k);
        total += q;
    }
    sum = fold<int32_t>(total, [](auto a, auto b) { return a + b; });
}

}  // namespace

namespace MIMO_ISA {

void linear_packed(const RoundedInputs& x, const Matrix& w, const float* bias, int64_t first, int64_t last, float* y,
                   int64_t y_stride) {
    const auto run = [&]<DType type>() {
        if (x.planes == 1) {
            linear_typed<type, 1>(x, w, bias, first, last, y, y_stride);
        } else {
            linear_typed<type, 2>(x, w, bias, first, last, y, y_stride);
        }
    };
    if (w.type == DType::i4) {
        run.template operator()<DType::i4>();
    } else {
        run.template operator()<DType::i8>();
    }
}

void round_inputs(const float* x, int64_t cols, int64_t group, int planes, int8_t* values, float* scales, int32_t* sums,
                  int64_t step) {
    const int64_t padded = (cols + kInputPadding - 1) / kInputPadding * kInputPadding;
    const auto round = planes == 1 ? round_group<1> : round_group<2>;
    const auto round_usual = planes == 1 ? round_group<1, kInputGroup> : round_group<2, kInputGroup>;
    for (int64_t first = 0, g = 0; first < cols; first += group, g += step) {
        const int64_t n = std::min(cols - first, group), filled = std::min(padded - first, group);
        const auto of = n == kInputGroup && filled == n ? round_usual : round;
        of(x + first, n, filled, values + first, values + padded + first, scales[g], sums[g]);
    }
}

}  // namespace MIMO_ISA
}  // namespace mimo
