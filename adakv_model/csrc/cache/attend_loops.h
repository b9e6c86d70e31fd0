// The kernels of attend_kernels.h over what an instruction set does with one tile (attend_products.h). Included once by
// each attend_<isa>.cpp, after its definitions.
#pragma once

#include <algorithm>
#include <cmath>

#include "cache/attend_kernels.h"
#include "cache/attend_products.h"
#include "cache/attend_score.h"
#include "cache/attend_softmax.h"
#include "cache/attend_values.h"

namespace {

// 16 kBlocks results at a time, so that additions need not wait for each other.
template <int kBlocks>
inline void transform_block(const float* x, const float* columns, int dim, float* out) {
  Lanes sum[kBlocks];
  for (int b = 0; b < kBlocks; ++b) sum[b] = set1(x[0]) * load(columns + kLanes * b);
  for (int j = 1; j < dim; ++j) {
    const Lanes y = set1(x[j]);
    for (int b = 0; b < kBlocks; ++b) sum[b] = sum[b] + y * load(columns + int64_t(j) * dim + kLanes * b);
  }
  for (int b = 0; b < kBlocks; ++b) store(out + kLanes * b, sum[b]);
}

void transform(const float* x, const float* columns, int dim, float* out) {
  int i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes) transform_block<4>(x, columns + i, dim, out + i);
  for (; i < dim; i += kLanes) transform_block<1>(x, columns + i, dim, out + i);
}

constexpr AttendKernels table_named(const char* name) {
  return {name, transform, quantize_query, score, softmax_part, accumulate, join, prediction_stats};
}

}  // namespace
