// Exponentials: the softmax of a part, statistics of a prediction. Included by attend_loops.h.
#pragma once

#include <cmath>
#include <limits>

#include "cache/lanes.h"

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The last n - full of x, filled up with minus infinity.
inline Lanes load_tail(const float* x, int64_t n) {
  Lanes tail = set1(kMinusInfinity);
  std::memcpy(&tail, x, size_t(n) * sizeof(float));
  return tail;
}

inline float largest(const float* x, int64_t n) {
  Lanes peak = set1(kMinusInfinity);
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) peak = largest(load(x + i), peak);
  if (full < n) peak = largest(load_tail(x + full, n - full), peak);
  return lane_max(peak);
}

// Element i always goes to lane i % 16.
float softmax_part(float* x, int64_t n, float* peak) {
  *peak = largest(x, n);
  if (!(*peak > kMinusInfinity)) {
    std::memset(x, 0, size_t(n) * sizeof(float));
    return 0.0f;
  }
  const Lanes shift = set1(*peak);
  Lanes sum = set1(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes e = exp_lanes(load(x + i) - shift);
    sum = sum + e;
    store(x + i, e);
  }
  if (i < n) {
    const Lanes e = exp_lanes(load_tail(x + i, n - i) - shift);
    sum = sum + e;
    std::memcpy(x + i, &e, size_t(n - i) * sizeof(float));
  }
  return lane_sum(sum);
}

void prediction_stats(const float* logits, int64_t vocab, int64_t token, float out[3]) {
  constexpr int64_t kBlock = 4096;  // float sums within a block, double across
  const float peak = largest(logits, vocab);
  double total = 0, weighted = 0;  // of e^x and x e^x, x relative to the peak
  for (int64_t start = 0; start < vocab; start += kBlock) {
    const int64_t end = start + kBlock < vocab ? start + kBlock : vocab;
    Lanes sum = set1(0.0f), sum_x = set1(0.0f);
    for (int64_t i = start; i < end; i += kLanes) {
      const Lanes x = (end - i >= kLanes ? load(logits + i) : load_tail(logits + i, end - i)) - set1(peak);
      const Lanes e = exp_lanes(x);
      sum = sum + e;
      sum_x = sum_x + e * largest(x, set1(-1e30f));  // 0 * -1e30 where nothing is
    }
    total += lane_sum(sum);
    weighted += lane_sum(sum_x);
  }
  const double log_total = std::log(total);
  out[0] = float(1.0 / total);
  out[1] = float(log_total - weighted / total);
  out[2] = float(log_total - double(logits[token] - peak));
}

}  // namespace
