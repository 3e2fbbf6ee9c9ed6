// A bundle's weights -> the slabs that the device reads (job.h), rows in any order, several matrices woven into one.
#pragma once

#include <span>
#include <vector>

#include "base/array.h"
#include "base/pool.h"
#include "cuda/job.h"

namespace mimo::gpu {

// Where a row of a slab matrix comes from.
struct SourceRow {
    int source = 0;
    int64_t row = -1;  // -1: zeros
};

// The matrix without its memory. sources: of one type, width, group and activation_bits. Throws DeviceError if they
// are not, or cannot be computed with on the device.
SlabMatrix slab_shape(std::span<const Matrix> sources, int64_t rows);

int64_t data_bytes(const SlabMatrix& w);
int64_t scale_bytes(const SlabMatrix& w);

// data, scales: data_bytes, scale_bytes of host memory. rows: from the first tile on, missing ones are zeros.
void pack_slabs(const Pool& pool, std::span<const Matrix> sources, std::span<const SourceRow> rows, const SlabMatrix& w,
                uint8_t* data, uint8_t* scales);

// Orders of rows.
std::vector<SourceRow> rows_in_order(int64_t rows, int source = 0);
std::vector<SourceRow> rows_of_gate_and_up(int64_t ffn);  // sources: gate, up
// One head after another, whole tiles each: of queries and keys 4 pairs (i, i + head_dim / 2) a tile.
std::vector<SourceRow> rows_of_rotated_heads(int64_t heads, int64_t head_dim, int source);
std::vector<SourceRow> rows_of_heads(int64_t heads, int64_t head_dim, int source);

// The same order for a vector; zeros where there is no row.
std::vector<float> in_order(std::span<const Vector> sources, std::span<const SourceRow> rows);

}  // namespace mimo::gpu
