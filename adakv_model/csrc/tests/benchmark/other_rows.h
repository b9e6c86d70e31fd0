// Rows of other caches, for comparison: loops of our own, as plain as ours. arm64 with dot products only.
#pragma once

#include <cstdint>

namespace adakv {

// Sums of int8 products, the loop shape of XNNPACK's 3x16c4 dot product kernels: three rows of x against 16 columns.
// out[q, n] = scale[n] * sum over k of x[q, k] * w[n, k]. w: [n / 16][k / 4][16][4]. K scores with n slots and k
// channels, V sums with n channels and k slots.
void int8_products_3x16c4(const int8_t* x, int k, const int8_t* w, int n, const float* scale, float* out);

// fp16 rows, float arithmetic, three query heads. scores: rows [slots / 16][dim][16]; sums: rows [slots][dim].
void fp16_scores(const float* queries, int dim, const uint16_t* rows, int slots, float* scores);
void fp16_sums(const float* weights, int slots, const uint16_t* rows, int dim, float* acc);

}  // namespace adakv
