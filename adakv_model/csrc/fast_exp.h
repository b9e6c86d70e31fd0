#pragma once

#include "cache/quantizer.h"

namespace adakv {

// exp(x) for x <= 88 to about 2 ulp, without branches so that loops over it vectorise; 0 below -87.
// Range reduction x = n ln 2 + r with a two-part ln 2 (Cody and Waite 1980), then the Taylor series of exp
// on |r| <= ln 2 / 2, whose first omitted term is below 6e-9.
static inline float fast_exp(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + 0x1.8p23f;  // rounds to an integer in the low mantissa bits
  const float n = shifted - 0x1.8p23f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float e = 1.0f / 5040.0f;
  e = e * r + 1.0f / 720.0f;
  e = e * r + 1.0f / 120.0f;
  e = e * r + 1.0f / 24.0f;
  e = e * r + 1.0f / 6.0f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const float power = float_from_bits((bits_of(shifted) - bits_of(0x1.8p23f) + 127u) << 23);
  return x < -87.0f ? 0.0f : e * power;
}

}  // namespace adakv
