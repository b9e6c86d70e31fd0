// Compiled once per instruction set with -DADAKV_ISA=<namespace>. Plain loops over fixed lanes: the compiler
// vectorises them; nothing here depends on the instruction set, so this is also the scalar reference.
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fast_exp.h"
#include "quantizer.h"

namespace adakv {
namespace ADAKV_ISA {
namespace {

constexpr int kTile = 8;    // rows unpacked at a time: 2 KiB of floats at 64 channels stay in L1
constexpr int kLanes = 16;  // partial sums of a reduction, a multiple of every vector width in use

// Decoded value = (gain * code + offset) * scale, with code as unpack_floats gives it.
template <int kBits>
struct Affine {
  static constexpr float kGain = kBits == 16 ? 2.0f * kUnit16 : 2.0f;
  static constexpr float kOffset = kBits == 16 ? kUnit16 : -float((1 << kBits) - 1);
};

// a * b + c, fused exactly where the target can. Left to itself the compiler fuses one way in a loop's body and
// another in its remainder, so that a row's result would depend on how many rows are beside it.
static inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

static inline float lane_sum(const float* lanes) {
  float total = 0;
  for (int l = 0; l < kLanes; ++l) total += lanes[l];
  return total;
}

template <int kDim>
static inline float dot(const float* a, const float* b) {
  float sum[kLanes] = {};
  for (int j = 0; j < kDim; j += kLanes) {
    for (int l = 0; l < kLanes; ++l) sum[l] += a[j + l] * b[j + l];
  }
  return lane_sum(sum);
}

template <int kBits, int kDim>
int unpack_tile(const Rows& rows, int first, float (*tile)[kDim], float* scales) {
  const int n = std::min(kTile, rows.count - first);
  for (int r = 0; r < n; ++r) {
    unpack_floats<kBits>(rows.codes + int64_t(first + r) * (kDim * kBits / 8), tile[r], kDim);
    scales[r] = half_to_float(rows.scales[first + r]);
  }
  return n;
}

template <int kBits, int kDim>
void score(const Rows& rows, const float* queries, const float* sums, int n, float* scores, int64_t stride) {
  alignas(64) float tile[kTile][kDim];
  float scales[kTile];
  for (int first = 0; first < rows.count; first += kTile) {
    const int m = unpack_tile<kBits, kDim>(rows, first, tile, scales);
    for (int q = 0; q < n; ++q) {
      const float shift = Affine<kBits>::kOffset * sums[q];
      for (int r = 0; r < m; ++r) {
        const float d = dot<kDim>(queries + int64_t(q) * kDim, tile[r]);
        scores[q * stride + first + r] = multiply_add(Affine<kBits>::kGain, d, shift) * scales[r];
      }
    }
  }
}

template <int kBits, int kDim>
void accumulate(const Rows& rows, const float* weights, int64_t stride, int n, float* acc) {
  alignas(64) float tile[kTile][kDim];
  float scales[kTile];
  for (int first = 0; first < rows.count; first += kTile) {
    const int m = unpack_tile<kBits, kDim>(rows, first, tile, scales);
    for (int q = 0; q < n; ++q) {
      float w[kTile] = {}, total = 0;
      for (int r = 0; r < m; ++r) {
        w[r] = weights[q * stride + first + r] * scales[r];
        total += w[r];
      }
      const float shift = Affine<kBits>::kOffset * total;
      for (int j = 0; j < kDim; j += kLanes) {
        float sum[kLanes] = {};
        for (int r = 0; r < m; ++r) {
          for (int l = 0; l < kLanes; ++l) sum[l] = multiply_add(w[r], tile[r][j + l], sum[l]);
        }
        float* a = acc + int64_t(q) * kDim + j;
        for (int l = 0; l < kLanes; ++l) a[l] += multiply_add(Affine<kBits>::kGain, sum[l], shift);
      }
    }
  }
}

// Calls f.template operator()<bits, dim>() for the run-time widths.
template <int kDim, typename F>
void with_bits(int bits, F&& f) {
  switch (bits) {
    case 2: return f.template operator()<2, kDim>();
    case 3: return f.template operator()<3, kDim>();
    case 4: return f.template operator()<4, kDim>();
    case 8: return f.template operator()<8, kDim>();
    default: return f.template operator()<16, kDim>();
  }
}

template <typename F>
void with_shape(int bits, int dim, F&& f) {
  switch (dim) {
    case 16: return with_bits<16>(bits, f);
    case 32: return with_bits<32>(bits, f);
    case 64: return with_bits<64>(bits, f);
    case 128: return with_bits<128>(bits, f);
    default: return with_bits<256>(bits, f);
  }
}

struct Score {
  const Rows& rows;
  const float *queries, *sums;
  int n;
  float* scores;
  int64_t stride;
  template <int kBits, int kDim>
  void operator()() const {
    score<kBits, kDim>(rows, queries, sums, n, scores, stride);
  }
};

struct Accumulate {
  const Rows& rows;
  const float* weights;
  int64_t stride;
  int n;
  float* acc;
  template <int kBits, int kDim>
  void operator()() const {
    accumulate<kBits, kDim>(rows, weights, stride, n, acc);
  }
};

void score_any(const Rows& rows, const float* queries, const float* sums, int n, int dim, float* scores,
               int64_t stride) {
  with_shape(rows.bits, dim, Score{rows, queries, sums, n, scores, stride});
}

void accumulate_any(const Rows& rows, const float* weights, int64_t stride, int n, int dim, float* acc) {
  with_shape(rows.bits, dim, Accumulate{rows, weights, stride, n, acc});
}

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

float largest(const float* x, int64_t n) {
  float peak[kLanes];
  std::fill_n(peak, kLanes, kMinusInfinity);
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) peak[l] = x[i + l] > peak[l] ? x[i + l] : peak[l];
  }
  for (int64_t i = full; i < n; ++i) peak[0] = std::max(peak[0], x[i]);
  return *std::max_element(peak, peak + kLanes);
}

// Element i always goes to lane i % kLanes, through the same code: hidden elements after the visible ones then
// add exact zeros, and a query's sum does not depend on how many there are.
static inline void exp_lanes(float* x, float peak, float* sum) {
  for (int l = 0; l < kLanes; ++l) sum[l] += x[l] = fast_exp(x[l] - peak);
}

float softmax_part(float* x, int64_t n, float* peak) {
  *peak = largest(x, n);
  if (!(*peak > kMinusInfinity)) {
    std::fill_n(x, n, 0.0f);
    return 0.0f;
  }
  float sum[kLanes] = {};
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) exp_lanes(x + i, *peak, sum);
  if (full < n) {
    float tail[kLanes];
    std::fill_n(tail, kLanes, kMinusInfinity);
    std::copy_n(x + full, n - full, tail);
    exp_lanes(tail, *peak, sum);
    std::copy_n(tail, n - full, x + full);
  }
  return lane_sum(sum);
}

void prediction_stats(const float* logits, int64_t vocab, int64_t token, float out[3]) {
  constexpr int64_t kBlock = 4096;  // float sums within a block, double across
  const float peak = largest(logits, vocab);
  double total = 0, weighted = 0;  // of e^x and x e^x, x relative to the peak
  for (int64_t start = 0; start < vocab; start += kBlock) {
    const int64_t end = std::min(vocab, start + kBlock), full = start + (end - start) / kLanes * kLanes;
    float sum[kLanes] = {}, sum_x[kLanes] = {};
    for (int64_t i = start; i < full; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        const float x = logits[i + l] - peak, e = fast_exp(x);
        sum[l] += e;
        sum_x[l] += e * x;
      }
    }
    for (int64_t i = full; i < end; ++i) {
      const float x = logits[i] - peak, e = fast_exp(x);
      sum[0] += e;
      sum_x[0] += e * x;
    }
    total += lane_sum(sum);
    weighted += lane_sum(sum_x);
  }
  const double log_total = std::log(total);
  out[0] = float(1.0 / total);
  out[1] = float(log_total - weighted / total);
  out[2] = float(log_total - double(logits[token] - peak));
}

#define ADAKV_STRING(x) #x
#define ADAKV_NAME(x) ADAKV_STRING(x)

}  // namespace

extern const RowKernels kKernels;
const RowKernels kKernels = {ADAKV_NAME(ADAKV_ISA), score_any, accumulate_any, softmax_part, prediction_stats};

}  // namespace ADAKV_ISA
}  // namespace adakv
