// The kernels of cpu/packed.cpp under the name of their instruction set, for the table in cpu/vector.cpp.
#pragma once

#include "kernels/kernels.h"

namespace mimo::MIMO_ISA {

void round_inputs(const float* x, int64_t cols, int64_t group, int planes, int8_t* values, float* scales, int32_t* sums,
                  int64_t step);
void linear_packed(const RoundedInputs& x, const Matrix& w, const float* bias, int64_t first, int64_t last, float* y,
                   int64_t y_stride);

}  // namespace mimo::MIMO_ISA
