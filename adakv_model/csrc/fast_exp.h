#pragma once

#include "cache/quantizer.h"

namespace adakv {

// exp(x) for x <= 88 to about 2 ulp, without branches so that loops over it vectorise; 0 below -87.
// Range reduction x = n ln 2 + r with a two-part ln 2 (Cody and Waite 1980), then the Taylor series of exp
// on |r| <= ln 2 / 2, whose first omitted term is below 6e-9.
constexpr int kExpTerms = 8;
constexpr float kExpSeries[kExpTerms] = {1.0f / 5040.0f, 1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f,
                                         1.0f / 6.0f,    0.5f,          1.0f,          1.0f};

// r, and 2^n in power, or 0 where exp is 0. Float: float, or a vector of them with Bits to match.
template <typename Float, typename Bits>
static inline Float exp_reduced(Float x, Float* power) {
  const Float floor = Float{} - 87.0f;
  const Float clamped = floor > x ? floor : x;
  const Float shifted = clamped * 1.44269504f + 0x1.8p23f;  // rounds to an integer in the low mantissa bits
  const Float n = shifted - 0x1.8p23f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - (0x4b400000 - 127)) << 23;
  std::memcpy(power, &bits, sizeof(bits));
  *power = floor > x ? Float{} : *power;
  return (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
}

static inline float fast_exp(float x) {
  float power;
  const float r = exp_reduced<float, uint32_t>(x, &power);
  float e = kExpSeries[0];
  for (int k = 1; k < kExpTerms; ++k) e = e * r + kExpSeries[k];
  return e * power;
}

}  // namespace adakv
