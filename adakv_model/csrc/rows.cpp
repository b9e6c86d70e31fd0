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

// Rows without their scales: levels times level_factor, and the scales beside them.
template <int kDim>
struct Tile {
  alignas(64) float rows[kTile][kDim];
  float scales[kTile];

  // Unpacks rows `first` .. of all, band by band; returns how many.
  int unpack(const Rows& all, const Runs& runs, int first) {
    const int n = std::min(kTile, all.count - first);
    const int stride = row_bytes(all.bits, kDim), scale_stride = scale_bytes(all.bits);
    const uint8_t* in = all.codes + int64_t(first) * stride;
    if (runs.count == 1) {
      band<kDim>(all, runs.width[0], in, stride, 0, n);
    } else {
      constexpr int kBand = kDim / (kDim >= 32 ? 4 : 2);
      for (int b = 0; b < runs.count; ++b) {
        band<kBand>(all, runs.width[b], in, stride, b * kBand, n);
        in += kBand * runs.width[b] / 8;
      }
    }
    for (int r = 0; r < n; ++r) scales[r] = row_scale(all.bits, all.scales + int64_t(first + r) * scale_stride);
    return n;
  }

 private:
  template <int kChannels>
  void band(const Rows& all, int width, const uint8_t* in, int stride, int at, int n) {
    const float factor = level_factor(all.bits, width, all.mode);
    with_width(width, [&](auto w) {
      for (int r = 0; r < n; ++r) unpack_levels<w()>(in + int64_t(r) * stride, factor, rows[r] + at, kChannels);
    });
  }
};

template <int kDim>
void score(const Rows& rows, const float* queries, int n, float* scores, int64_t stride) {
  Tile<kDim> tile;
  const Runs runs = runs_of(rows.bits, kDim);
  for (int first = 0; first < rows.count; first += kTile) {
    const int m = tile.unpack(rows, runs, first);
    for (int q = 0; q < n; ++q) {
      for (int r = 0; r < m; ++r) {
        scores[q * stride + first + r] = dot<kDim>(queries + int64_t(q) * kDim, tile.rows[r]) * tile.scales[r];
      }
    }
  }
}

template <int kDim>
void accumulate(const Rows& rows, const float* weights, int64_t stride, int n, float* acc) {
  Tile<kDim> tile;
  const Runs runs = runs_of(rows.bits, kDim);
  for (int first = 0; first < rows.count; first += kTile) {
    const int m = tile.unpack(rows, runs, first);
    for (int q = 0; q < n; ++q) {
      float w[kTile];
      for (int r = 0; r < m; ++r) w[r] = weights[q * stride + first + r] * tile.scales[r];
      for (int j = 0; j < kDim; j += kLanes) {
        float sum[kLanes] = {};
        for (int r = 0; r < m; ++r) {
          for (int l = 0; l < kLanes; ++l) sum[l] = multiply_add(w[r], tile.rows[r][j + l], sum[l]);
        }
        float* a = acc + int64_t(q) * kDim + j;
        for (int l = 0; l < kLanes; ++l) a[l] += sum[l];
      }
    }
  }
}

// Calls f with dim as a compile-time constant.
template <typename F>
void with_dim(int dim, F&& f) {
  switch (dim) {
    case 16: return f(std::integral_constant<int, 16>());
    case 32: return f(std::integral_constant<int, 32>());
    case 64: return f(std::integral_constant<int, 64>());
    case 128: return f(std::integral_constant<int, 128>());
    default: return f(std::integral_constant<int, 256>());
  }
}

void score_any(const Rows& rows, const float* queries, int n, int dim, float* scores, int64_t stride) {
  with_dim(dim, [&](auto d) { score<d()>(rows, queries, n, scores, stride); });
}

void accumulate_any(const Rows& rows, const float* weights, int64_t stride, int n, int dim, float* acc) {
  with_dim(dim, [&](auto d) { accumulate<d()>(rows, weights, stride, n, acc); });
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
