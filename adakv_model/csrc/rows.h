// Hot loops over packed rows, built once for every instruction set; rows.cpp is their only source.
#pragma once

#include <cstdint>

#include "quantizer.h"

namespace adakv {

// Consecutive packed rows of the same widths.
struct Rows {
  int bits;
  ScaleMode mode;
  const uint8_t *codes, *scales;
  int count;
};

struct RowKernels {
  const char* name;

  // scores[q * stride + r] = <query q, row r>. queries: [n, dim].
  void (*score)(const Rows& rows, const float* queries, int n, int dim, float* scores, int64_t stride);

  // acc[q, :] += sum over r of weights[q * stride + r] * row r. acc: [n, dim].
  void (*accumulate)(const Rows& rows, const float* weights, int64_t stride, int n, int dim, float* acc);

  // x[i] = exp(x[i] - peak), with peak the largest x, -inf if there is none finite. Returns the sum.
  float (*softmax_part)(float* x, int64_t n, float* peak);

  // Confidence, entropy and surprisal (nats) of a prediction over `vocab` logits, given the token that came.
  void (*prediction_stats)(const float* logits, int64_t vocab, int64_t token, float out[3]);
};

namespace baseline {
extern const RowKernels kKernels;
}
namespace avx2 {
extern const RowKernels kKernels;
}

// The fastest set this CPU can run, or, for tests, the one called `name` (nullptr if it cannot).
const RowKernels& row_kernels();
const RowKernels* find_row_kernels(const char* name);

}  // namespace adakv
