#include "cuda/pack.h"

#include <cstring>

#include "kernels/packed.h"

namespace mimo::gpu {
namespace {

WeightType weight_type(DType type) {
    switch (type) {
        case DType::f32:
            return WeightType::f32;
        case DType::bf16:
            return WeightType::bf16;
        case DType::f8_e4m3:
            return WeightType::fp8;
        case DType::i8:
            return WeightType::int8;
        case DType::i4:
            return WeightType::int4;
        case DType::f16:
            break;
    }
    throw DeviceError(message("cuda: expected F32, BF16, F8_E4M3, I8 or U8 weights, got ", name_of(type)));
}

bool has_channel_scales(WeightType type) {
    return type == WeightType::int8 || type == WeightType::fp8;
}

int64_t groups_of(const SlabMatrix& w) {
    return int64_t{w.slabs} * (kSlabCols / w.group);
}

// One row of a bundle's matrix -> its 128-column parts, each in its slab.
void pack_row(const Matrix& source, int64_t from, const SlabMatrix& w, int64_t to, uint8_t* data) {
    const int64_t part_bytes = slab_bytes(w.type) / kTileRows;
    const auto part = [&](int64_t slab) {
        return data + (to / kTileRows * w.slabs + slab) * slab_bytes(w.type) + to % kTileRows * part_bytes;
    };
    const auto* bytes = static_cast<const uint8_t*>(source.data);
    if (w.type == WeightType::f32 || w.type == WeightType::bf16) {
        const int64_t row_bytes = source.cols * bytes_of(source.type);
        for (int64_t slab = 0; slab < w.slabs; ++slab) {
            const int64_t first = slab * part_bytes;
            std::memcpy(part(slab), bytes + from * row_bytes + first,
                        static_cast<size_t>(std::min(part_bytes, row_bytes - first)));
        }
        return;
    }
    const int64_t per_chunk = w.type == WeightType::int4 ? 8 : 4, chunks = (source.cols + per_chunk - 1) / per_chunk;
    const uint8_t* row = bytes + (from / kBlockRows * chunks * kBlockRows + from % kBlockRows) * 4;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t col = chunk * per_chunk;
        std::memcpy(part(col / kSlabCols) + col % kSlabCols / per_chunk * 4, row + chunk * kBlockRows * 4, 4);
    }
}

void pack_scales(const Matrix& source, int64_t from, const SlabMatrix& w, int64_t to, uint8_t* scales) {
    const int64_t tile = to / kTileRows, lane = to % kTileRows;
    if (has_channel_scales(w.type)) {
        reinterpret_cast<float*>(scales)[to] = static_cast<const float*>(source.scales)[from];
    } else if (w.type == WeightType::int4) {
        const int64_t groups = (source.cols + source.group - 1) / source.group;
        const auto* values = static_cast<const uint16_t*>(source.scales);
        for (int64_t g = 0; g < groups; ++g) {
            reinterpret_cast<uint16_t*>(scales)[(tile * groups_of(w) + g) * kTileRows + lane] =
                values[(from / kBlockRows * groups + g) * kBlockRows + from % kBlockRows];
        }
    }
}

}  // namespace

SlabMatrix slab_shape(std::span<const Matrix> sources, int64_t rows) {
    const Matrix& first = sources[0];
    for (const Matrix& other : sources) {
        if (other.type != first.type || other.cols != first.cols || other.activation_bits != first.activation_bits ||
            (other.group != first.group && first.type == DType::i4)) {
            throw DeviceError(message("cuda: expected matrices that are computed together to be of one kind, got ",
                                      name_of(first.type), " and ", name_of(other.type),
                                      "; quantise gate_proj and up_proj of a layer alike"));
        }
    }
    const WeightType type = weight_type(first.type);
    const int64_t group = type == WeightType::int4 ? first.group : kSlabCols;
    if (group != 32 && group != 64 && group != 128) {
        throw DeviceError(message("cuda: expected groups of 32, 64 or 128 columns, got ", group));
    }
    const bool integers = type == WeightType::int8 || type == WeightType::int4;
    return {.data = nullptr,
            .scales = nullptr,
            .tiles = static_cast<int32_t>((rows + kTileRows - 1) / kTileRows),
            .slabs = static_cast<int32_t>((first.cols + kSlabCols - 1) / kSlabCols),
            .rows = static_cast<int32_t>(rows),
            .cols = static_cast<int32_t>(first.cols),
            .group = static_cast<int32_t>(group),
            .planes = integers ? first.activation_bits / 8 : 0,
            .type = type};
}

int64_t data_bytes(const SlabMatrix& w) {
    return int64_t{w.tiles} * w.slabs * slab_bytes(w.type);
}

int64_t scale_bytes(const SlabMatrix& w) {
    if (has_channel_scales(w.type)) return int64_t{w.tiles} * kTileRows * 4;
    return w.type == WeightType::int4 ? w.tiles * groups_of(w) * kTileRows * 2 : 0;
}

void pack_slabs(const Pool& pool, std::span<const Matrix> sources, std::span<const SourceRow> rows, const SlabMatrix& w,
                uint8_t* data, uint8_t* scales) {
    pool.run(w.tiles, 16, [&](int64_t begin, int64_t end) {
        const int64_t tile_bytes = w.slabs * slab_bytes(w.type), tile_scales = scale_bytes(w) / w.tiles;
        std::memset(data + begin * tile_bytes, w.type == WeightType::int4 ? 0x88 : 0,
                    static_cast<size_t>((end - begin) * tile_bytes));
        if (tile_scales > 0)
            std::memset(scales + begin * tile_scales, 0, static_cast<size_t>((end - begin) * tile_scales));
        for (int64_t to = begin * kTileRows; to < std::min<int64_t>(end * kTileRows, std::ssize(rows)); ++to) {
            const auto [source, from] = rows[static_cast<size_t>(to)];
            if (from < 0) continue;
            pack_row(sources[static_cast<size_t>(source)], from, w, to, data);
            pack_scales(sources[static_cast<size_t>(source)], from, w, to, scales);
        }
    });
}

std::vector<SourceRow> rows_in_order(int64_t rows, int source) {
    std::vector<SourceRow> order;
    for (int64_t i = 0; i < rows; ++i) order.push_back({source, i});
    return order;
}

std::vector<SourceRow> rows_of_gate_and_up(int64_t ffn) {
    std::vector<SourceRow> order;
    for (int64_t first = 0; first < ffn; first += kHalfTile) {
        for (const int source : {0, 1}) {
            for (int64_t i = first; i < first + kHalfTile; ++i) order.push_back({source, i < ffn ? i : -1});
        }
    }
    return order;
}

std::vector<SourceRow> rows_of_rotated_heads(int64_t heads, int64_t head_dim, int source) {
    const int64_t half = head_dim / 2;
    std::vector<SourceRow> order;
    for (int64_t head = 0; head < heads; ++head) {
        for (int64_t first = 0; first < half; first += kHalfTile) {
            for (const int64_t offset : {int64_t{0}, half}) {
                for (int64_t i = first; i < first + kHalfTile; ++i) {
                    order.push_back({source, i < half ? head * head_dim + offset + i : -1});
                }
            }
        }
    }
    return order;
}

std::vector<SourceRow> rows_of_heads(int64_t heads, int64_t head_dim, int source) {
    std::vector<SourceRow> order;
    for (int64_t head = 0; head < heads; ++head) {
        for (int64_t i = 0; i < (head_dim + kTileRows - 1) / kTileRows * kTileRows; ++i) {
            order.push_back({source, i < head_dim ? head * head_dim + i : -1});
        }
    }
    return order;
}

std::vector<float> in_order(std::span<const Vector> sources, std::span<const SourceRow> rows) {
    std::vector<float> out;
    for (const auto& [source, row] : rows) {
        out.push_back(row < 0 ? 0.0f : sources[static_cast<size_t>(source)][static_cast<size_t>(row)]);
    }
    out.resize((out.size() + kTileRows - 1) / kTileRows * kTileRows);
    return out;
}

}  // namespace mimo::gpu
