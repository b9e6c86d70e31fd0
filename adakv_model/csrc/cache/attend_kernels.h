// What attention does with packed rows, in exact integers: one table of functions per instruction set.
//
// All sets give equal bits. K scores and V sums are integer products of int8 with codes, which have no rounding; what
// is done in float is done in a fixed order and never fused. adakv_model/attention.py defines it.
#pragma once

#include <cstdint>

#include "cache/quantizer.h"
#include "cache/tile.h"

namespace adakv {

constexpr int kPartRows = 512;   // rows of a segment whose softmax is summed together, before it joins the others
constexpr int kGroupRows = 32;   // rows whose V weights share a scale: exactly what 16-bit sums of 4-bit codes hold
constexpr int kMaxQueries = 32;  // of one kv head that a kernel takes at a time
constexpr int kMaxBands = 4;

// Consecutive packed rows of one unit, from the start of a block on.
struct Rows {
  int bits;
  ScaleMode mode;
  int dim;
  const uint8_t *codes, *scales;
  int count;
};

// Queries of one kv head, transformed: exact, and as int8 with a scale for each band.
struct Queries {
  const float* values;  // [n, dim]
  const int8_t* codes;  // [n, dim]
  const float* scales;  // [n, kMaxBands]
  const int32_t* sums;  // [n, kMaxBands], of the codes
  int n;                // at most kMaxQueries
};

struct AttendKernels {
  const char* name;

  // matrix * x, summed over columns in order; rows of `columns` are the matrix's columns. out is not x.
  void (*transform)(const float* x, const float* columns, int dim, float* out);

  // int8 codes of one query, a scale and a sum for each band.
  void (*quantize_query)(const float* x, int dim, int8_t* codes, float* scales, int32_t* sums);

  // scores[q * stride + r] = <query q, row r>. Room for whole blocks: entries past the last row are undefined.
  void (*score)(const Rows& keys, const Queries& queries, float* scores, int64_t stride);

  // x[i] = exp(x[i] - peak), with peak the largest x, -inf if there is none finite. Returns the sum.
  float (*softmax_part)(float* x, int64_t n, float* peak);

  // acc[q, :] = sum over r of weights[q * stride + r] * row r. weights: not negative. acc: [n, dim].
  void (*accumulate)(const Rows& values, const float* weights, int64_t stride, int n, float* acc);

  // Joins the softmax sums of other rows: acc = acc * keep + other * take. [dim]
  void (*join)(float* acc, float keep, const float* other, float take, int dim);

  // Confidence, entropy and surprisal (nats) of a prediction over `vocab` logits, given the token that came.
  void (*prediction_stats)(const float* logits, int64_t vocab, int64_t token, float out[3]);
};

// The fastest set this CPU can run, or, for tests, the one called `name` (nullptr if it cannot).
const AttendKernels& attend_kernels();
const AttendKernels* find_attend_kernels(const char* name);

}  // namespace adakv
