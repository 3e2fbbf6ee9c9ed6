// Embeddings: rows of text tokens, and sums of the rows of a code frame's levels.
#pragma once

#include "cuda/linear.h"

namespace mimo::gpu {

MIMO_DEVICE_CALL void run_text(const TextJob& job, const Program& program) {
    const int64_t cols = job.table.cols, count = program.request->rows * cols;
    for (int64_t i = int64_t{block()} * threads() + thread(); i < count; i += int64_t{blocks()} * threads()) {
        const int32_t token = program.request->tokens[i / cols];
        if (token != job.empty_token) job.x[i] = weight_at(job.table, token, i % cols);
    }
}

// Levels are added in order, as on the CPU.
MIMO_DEVICE_CALL void run_codes(const CodesJob& job, const Program& program, const Call& call) {
    const Levels& l = job.levels;
    const int64_t rows = job.made ? 1 : l.group;
    const int32_t* patch = program.patches + int64_t{call.row} * l.group * l.levels;
    for (int64_t i = int64_t{block()} * threads() + thread(); i < rows * job.cols; i += int64_t{blocks()} * threads()) {
        const int64_t frame = i / job.cols, col = i % job.cols;
        float sum = 0;
        for (int level = 0; level < l.levels; ++level) {
            int32_t code = 0;
            if (job.made) {
                if (!is_made(l, level, call.step)) continue;
                code = program.codes[level * l.group + call.step - l.delay[level]];
            } else {
                code = patch[frame * l.levels + level];
                if (code == l.empty[level]) continue;
            }
            sum += weight_at(l.embeddings[level], code, col);
        }
        job.out[i] = sum;
    }
}

}  // namespace mimo::gpu
