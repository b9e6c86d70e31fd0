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

float half_step_of(const float* x, int bits, int dim) {
  if (bits == 8) {
    float peak = 0.0f;
    for (int i = 0; i < dim; ++i) peak = std::max(peak, std::fabs(x[i]));
    return peak * float(1.0 / 255.0);
  }
  const float rms = std::sqrt(fold_dot(x, x, dim) * float(1.0 / dim));
  return rms * gaussian_half_step(bits);
}

void store_fp16(const float* x, int dim, uint8_t* packed) {
  for (int i = 0; i < dim; ++i) {
    const uint16_t h = float_to_half(std::min(std::max(x[i], -kFp16Max), kFp16Max));
    std::memcpy(packed + 2 * i, &h, 2);
  }
}

}  // namespace

void quantize_row(const float* x, int bits, ScaleMode mode, int dim, uint8_t* packed, uint16_t* scale) {
  if (bits == 16) return store_fp16(x, dim, packed);
  const float half_step = half_step_of(x, bits, dim);
  const float inverse = half_step > 0 ? 0.5f / half_step : 0.0f;
  const float middle = float(1 << (bits - 1)), top = float((1 << bits) - 1);
  uint8_t codes[kMaxHeadDim];
  for (int i = 0; i < dim; ++i) {
    codes[i] = uint8_t(std::min(std::max(std::floor(x[i] * inverse + middle), 0.0f), top));
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
    default: return unpack_floats<16>(packed, out, dim);
  }
  const float s = half_to_float(*scale), top = float((1 << bits) - 1);
  for (int i = 0; i < dim; ++i) out[i] = (out[i] * 2.0f - top) * s;
}

}  // namespace adakv
