// Operations on whole arrays: the kernels, cut across the threads of the pool. No state.
#pragma once

#include <cstdlib>
#include <memory>

#include "base/pool.h"
#include "base/tap.h"
#include "kernels/kernels.h"

namespace mimo {

// What every stage is handed: threads, kernels, and who listens.
struct Context {
    const Pool& pool;
    const Kernels& kernels;
    Tap tap = {};
};

struct Linear {
    Matrix weight;  // [out, in]
    Vector bias;    // [out] or empty
};

struct LayerNorm {
    Vector weight;
    Vector bias;
};

inline constexpr float kLayerNormEps = 1e-5f;  // torch.nn.LayerNorm and GroupNorm default

// x [n, in] -> [n, out].
Array linear(const Context& context, const Array& x, const Linear& layer);

// The same over rows that overlap in memory: row i starts at x + i * stride. -> [rows, out].
Array linear(const Context& context, const float* x, int64_t rows, int64_t stride, const Linear& layer);

// Several layers of the same input: it is rounded once for packed weights, and the threads cross all layers in one go.
std::vector<Array> linear(const Context& context, const Array& x, std::initializer_list<const Linear*> layers);

Array layer_norm(const Context& context, const Array& x, const LayerNorm& norm);
Array rms_norm(const Context& context, const Array& x, Vector weight, float eps);
void gelu(const Context& context, Array& x);
void silu_multiply(const Context& context, Array& gate, const Array& up);
void add(const Context& context, Array& x, const Array& y);  // x += y
void add_row(const Matrix& table, int64_t row, float* y);    // y[cols] += table[row]

// cos and sin of positions first, first + step, ...: [n, head_dim / 2] each. The two halves of a head share an angle.
struct Rope {
    Array cosine;
    Array sine;

    // inv_freq_i = theta^(-2i / head_dim), angles as float products, as upstream computes them.
    Rope(int64_t first, int64_t count, int64_t head_dim, double theta);
};

// Rotates every head of x [n, heads * head_dim] in place: (a, b) -> (a cos - b sin, b cos + a sin) over the halves of
// the head.
void rotate(const Context& context, Array& x, const Rope& rope);

// Keys and values of one attention layer in the layout the kernels read; memory appears as positions are written.
class KeyValues {
public:
    // type: f32; f16 for half the memory; i8 for a quarter, a scale for every head and position (and 2 bytes for it).
    KeyValues(int64_t heads, int64_t head_dim, int64_t capacity, DType type = DType::f32);

    int64_t heads() const { return heads_; }
    int64_t head_dim() const { return head_dim_; }
    int64_t capacity() const { return capacity_; }

    // k, v: [n, heads * head_dim], for positions first, first + 1, ...
    void write(const Context& context, int64_t first, const Array& k, const Array& v);

    // Drops the first `count` positions, a multiple of kLanes, of the `written` ones; the others move to the front, so
    // that sums over keys keep their order.
    void forget(int64_t count, int64_t written);

    // The first `written` positions as floats, and back to the same bits: saved_size(written) of them, whatever the
    // capacity.
    int64_t saved_size(int64_t written) const;
    void save(int64_t written, float* to) const;
    void load(int64_t written, const float* from);

    // What the kernels read of a head.
    AttentionHead head(int64_t index) const;

private:
    // Zero pages, on whole cache lines, that the system backs only when they are written; none where there is no room.
    class Zeros {
    public:
        Zeros() = default;
        explicit Zeros(size_t bytes) : block_(std::calloc(bytes / kLine + 2, kLine)) {}
        explicit operator bool() const { return block_ != nullptr; }
        template <typename T>
        T* as() const {
            return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(block_.get()) + kLine - 1) / kLine * kLine);
        }

    private:
        struct Free {
            void operator()(void* p) const { std::free(p); }
        };
        std::unique_ptr<void, Free> block_;
    };

    // A head's memory; the scales mean nothing but for i8.
    template <typename Element>
    struct Rows {
        Element *keys, *values;
        uint16_t *key_scales, *value_scales;
    };

    // Calls body(Rows) with the elements' type: float, uint16_t for halves or int8_t.
    template <typename Body>
    void visit(int64_t head, Body body) const;

    int64_t key_at(int64_t position) const { return position / kLanes * kLanes * head_dim_ + position % kLanes; }

    int64_t heads_, head_dim_, capacity_;
    DType type_;
    Zeros keys_;                       // [heads, capacity / kLanes, head_dim, kLanes]
    Zeros values_;                     // [heads, capacity, head_dim]
    Zeros key_scales_, value_scales_;  // bfloat16 [heads, capacity]
};

// q [n, heads * head_dim], query i over keys ranges[i]; heads is a multiple of the cache's (each serves consecutive
// query heads).
Array attention(const Context& context, const Array& q, const KeyValues& cache, const std::vector<KeyRange>& ranges);

}  // namespace mimo
