#include "cache/quantizer.h"

#include <algorithm>

namespace adakv {

namespace {

constexpr double kFractions[32] = {
    // 2^(k / 32)
    0x1.0000000000000p+0, 0x1.059b0d3158574p+0, 0x1.0b5586cf9890fp+0, 0x1.11301d0125b51p+0, 0x1.172b83c7d517bp+0,
    0x1.1d4873168b9aap+0, 0x1.2387a6e756238p+0, 0x1.29e9df51fdee1p+0, 0x1.306fe0a31b715p+0, 0x1.371a7373aa9cbp+0,
    0x1.3dea64c123422p+0, 0x1.44e086061892dp+0, 0x1.4bfdad5362a27p+0, 0x1.5342b569d4f82p+0, 0x1.5ab07dd485429p+0,
    0x1.6247eb03a5585p+0, 0x1.6a09e667f3bcdp+0, 0x1.71f75e8ec5f74p+0, 0x1.7a11473eb0187p+0, 0x1.82589994cce13p+0,
    0x1.8ace5422aa0dbp+0, 0x1.93737b0cdc5e5p+0, 0x1.9c49182a3f090p+0, 0x1.a5503b23e255dp+0, 0x1.ae89f995ad3adp+0,
    0x1.b7f76f2fb5e47p+0, 0x1.c199bdd85529cp+0, 0x1.cb720dcef9069p+0, 0x1.d5818dcfba487p+0, 0x1.dfc97337b9b5fp+0,
    0x1.ea4afa2a490dap+0, 0x1.f50765b6e4540p+0};

// 2^(n / 32) for n >= -256, rounded once from the table in double precision.
constexpr float power(int n) {
  double value = kFractions[(n + 256) % 32];
  for (int octave = (n + 256) / 32; octave > 8; --octave) value *= 2;
  for (int octave = (n + 256) / 32; octave < 8; ++octave) value /= 2;
  return float(value);
}

constexpr ScaleTables make_tables() {
  constexpr int kZero = 128;  // the code of scale 1
  ScaleTables tables{};
  for (int code = 1; code < 256; ++code) {
    tables.scales[code] = power(2 * (code - kZero));
    tables.bounds[code - 1] = power(2 * (code - kZero) - 1);
  }
  return tables;
}

// STEP and GAUSSIAN_MSE of quantizer.py.
constexpr double step_of(int width) { return width == 2 ? 0.996 : width == 3 ? 0.586 : width == 4 ? 0.335 : 0.05; }
constexpr double mse_of(int width) { return width == 2 ? 0.1188 : width == 3 ? 0.0374 : width == 4 ? 0.0115 : 2.1e-4; }

float peak_of(const float* x, int dim) {
  float peak = 0.0f;
  for (int i = 0; i < dim; ++i) peak = std::max(peak, std::fabs(x[i]));
  return peak;
}

// The smallest fp16 at or above a finite x >= 0, saturating at the largest.
uint16_t half_not_below(float x) {
  const uint16_t half = float_to_half(std::min(x, kFp16Max));
  const float value = half_to_float(half);
  return value < x && value < kFp16Max ? uint16_t(half + 1) : half;
}

// floor(x / step + levels / 2), clamped to the levels there are; 0.0f first: it replaces a NaN.
inline float code_of(float x, float inverse, float middle, float top) {
  return std::min(std::max(0.0f, std::floor(x * inverse + middle)), top);
}

// 16-bit codes are computed for the scale as stored: its rounding would otherwise be the largest error.
void quantize_row_16(const float* x, int dim, uint16_t* codes, uint8_t* scale) {
  const uint16_t stored = half_not_below(std::min(peak_of(x, dim), kFp16Max) * float(65536.0 / 65535.0));
  std::memcpy(scale, &stored, 2);
  const float half_step = half_to_float(stored) * kUnit16;
  const float inverse = half_step > 0 ? 0.5f / half_step : 0.0f;
  for (int i = 0; i < dim; ++i) {
    codes[i] = uint16_t(code_of(x[i], inverse, 32768.0f, 65535.0f));
  }
}

void quantize_row_8(const float* x, int dim, uint16_t* codes, uint8_t* scale) {
  const float half_step = peak_of(x, dim) * float(1.0 / 255.0);
  const uint16_t stored = float_to_half(std::min(half_step, kFp16Max));
  std::memcpy(scale, &stored, 2);
  const float inverse = half_step > 0 ? 0.5f / half_step : 0.0f;
  for (int i = 0; i < dim; ++i) codes[i] = uint16_t(code_of(x[i], inverse, 128.0f, 255.0f));
}

void quantize_row_narrow(const float* x, int bits, int dim, uint16_t* codes, uint8_t* scale) {
  const float rms = std::sqrt(fold_dot(x, x, dim) * float(1.0 / dim));
  const float *bounds = kScaleTables.bounds, *end = bounds + 255;
  *scale = uint8_t(std::upper_bound(bounds, end, rms) - bounds);
  const Runs runs = runs_of(bits, dim);
  for (int b = 0; b < runs.count; ++b) {
    const int width = runs.width[b];
    const float pace = row_scale(bits, scale) * float(step_of(width));
    const float inverse = pace > 0 ? 1.0f / pace : 0.0f;
    const float middle = float(1 << (width - 1)), top = float((1 << width) - 1);
    for (int i = 0; i < runs.channels; ++i) codes[i] = uint16_t(code_of(x[i], inverse, middle, top));
    x += runs.channels;
    codes += runs.channels;
  }
}

}  // namespace

constexpr ScaleTables kConstantTables = make_tables();
const ScaleTables kScaleTables = kConstantTables;

float level_factor(int bits, int width, ScaleMode mode) {
  if (!is_narrow(bits)) return bits == 16 ? kUnit16 : 1.0f;
  const double half = step_of(width) / 2;
  return float(mode == kUnbiased ? half / (1 - mse_of(width)) : half);
}

void quantize_row(const float* x, int bits, int dim, uint16_t* codes, uint8_t* scale) {
  switch (bits) {
    case 8: return quantize_row_8(x, dim, codes, scale);
    case 16: return quantize_row_16(x, dim, codes, scale);
    default: return quantize_row_narrow(x, bits, dim, codes, scale);
  }
}

void dequantize_row(const uint16_t* codes, const uint8_t* scale, int bits, ScaleMode mode, int dim, float* out) {
  const Runs runs = runs_of(bits, dim);
  const float s = row_scale(bits, scale);
  for (int b = 0; b < runs.count; ++b) {
    const float factor = s * level_factor(bits, runs.width[b], mode);
    const int top = (1 << runs.width[b]) - 1;
    for (int i = 0; i < runs.channels; ++i) *out++ = float(2 * int(*codes++) - top) * factor;
  }
}

}  // namespace adakv
