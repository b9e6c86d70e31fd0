#include "quantizer.h"

#include <algorithm>

namespace adakv {

namespace {

// MSE-optimal uniform step for N(0, 1), halved: GAUSSIAN_STEP in quantizer.py.
float gaussian_half_step(int bits) {
  switch (bits) {
    case 2: return float(0.996 / 2);
    case 3: return float(0.586 / 2);
    default: return float(0.335 / 2);
  }
}

float peak_of(const float* x, int dim) {
  float peak = 0.0f;
  for (int i = 0; i < dim; ++i) peak = std::max(peak, std::fabs(x[i]));
  return peak;
}

float half_step_of(const float* x, int bits, int dim) {
  if (bits == 8) return peak_of(x, dim) * float(1.0 / 255.0);
  const float rms = std::sqrt(fold_dot(x, x, dim) * float(1.0 / dim));
  return rms * gaussian_half_step(bits);
}

// The smallest fp16 at or above a finite x >= 0, saturating at the largest.
uint16_t half_not_below(float x) {
  const uint16_t half = float_to_half(std::min(x, kFp16Max));
  const float value = half_to_float(half);
  return value < x && value < kFp16Max ? uint16_t(half + 1) : half;
}

// 16-bit codes are computed for the scale as stored: its rounding would otherwise be the largest error.
void quantize_row_16(const float* x, int dim, uint8_t* packed, uint16_t* scale) {
  *scale = half_not_below(std::min(peak_of(x, dim), kFp16Max) * float(65536.0 / 65535.0));
  const float half_step = half_to_float(*scale) * kUnit16;
  const float inverse = half_step > 0 ? 0.5f / half_step : 0.0f;
  for (int i = 0; i < dim; ++i) {  // 0.0f first: it replaces a NaN
    const auto code = uint32_t(std::min(std::max(0.0f, std::floor(x[i] * inverse + 32768.0f)), 65535.0f));
    packed[2 * i] = uint8_t(code);
    packed[2 * i + 1] = uint8_t(code >> 8);
  }
}

}  // namespace

void quantize_row(const float* x, int bits, ScaleMode mode, int dim, uint8_t* packed, uint16_t* scale) {
  if (bits == 16) return quantize_row_16(x, dim, packed, scale);
  const float half_step = half_step_of(x, bits, dim);
  const float inverse = half_step > 0 ? 0.5f / half_step : 0.0f;
  const float middle = float(1 << (bits - 1)), top = float((1 << bits) - 1);
  uint8_t codes[kMaxHeadDim];
  for (int i = 0; i < dim; ++i) {  // 0.0f first: it replaces the NaN of a zero in a row of denormals
    codes[i] = uint8_t(std::min(std::max(0.0f, std::floor(x[i] * inverse + middle)), top));
  }
  float s = half_step;
  if (mode == kUnbiased && bits < 8) {
    float odd[kMaxHeadDim];
    for (int i = 0; i < dim; ++i) odd[i] = float(codes[i]) * 2.0f - top;
    const float xq = fold_dot(x, odd, dim);
    if (xq > 0) s = fold_dot(x, x, dim) / xq;
  }
  *scale = float_to_half(std::min(s, kFp16Max));
  pack(codes, bits, packed, dim);
}

void dequantize_row(const uint8_t* packed, const uint16_t* scale, int bits, int dim, float* out) {
  switch (bits) {
    case 2: unpack_floats<2>(packed, out, dim); break;
    case 3: unpack_floats<3>(packed, out, dim); break;
    case 4: unpack_floats<4>(packed, out, dim); break;
    case 8: unpack_floats<8>(packed, out, dim); break;
    default: {
      unpack_floats<16>(packed, out, dim);
      const float s = half_to_float(*scale) * kUnit16;
      for (int i = 0; i < dim; ++i) out[i] = (out[i] * 2.0f + 1.0f) * s;
      return;
    }
  }
  const float s = half_to_float(*scale), top = float((1 << bits) - 1);
  for (int i = 0; i < dim; ++i) out[i] = (out[i] * 2.0f - top) * s;
}

}  // namespace adakv
