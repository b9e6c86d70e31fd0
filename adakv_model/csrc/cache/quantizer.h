// Row quantizer: the C++ twin of adakv_model/quantizer.py, operation for operation. Compile with
// -ffp-contract=off: a fused multiply-add would round differently and change packed bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace adakv {

// How a narrow row's levels are read back; see quantizer.py.
enum ScaleMode : int32_t { kRms = 0, kUnbiased = 1 };

constexpr int kMaxHeadDim = 256;
constexpr float kFp16Max = 65504.0f;
constexpr float kUnit16 = 0x1p-16f;  // what the scale of a 16-bit row is a multiple of

static inline float float_from_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

static inline uint32_t bits_of(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

// Finite fp16 to fp32: shift the fields into place, then rebias the exponent with an exact multiplication.
static inline float half_to_float(uint16_t h) {
  const float magnitude = float_from_bits(uint32_t(h & 0x7fffu) << 13) * 0x1p112f;
  return float_from_bits(bits_of(magnitude) | uint32_t(h & 0x8000u) << 16);
}

// fp32 of magnitude at most 65504 to fp16, round to nearest even.
static inline uint16_t float_to_half(float f) {
  const uint32_t sign = bits_of(f) & 0x80000000u;
  uint32_t x = bits_of(f) ^ sign;
  if (x < 0x38800000u) {  // subnormal half: let the adder do the rounding
    x = bits_of(float_from_bits(x) + 0.5f) - bits_of(0.5f);
  } else {
    x += 0xfffu + ((x >> 13) & 1u);
    x = (x - (112u << 23)) >> 13;
  }
  return uint16_t(x | (sign >> 16));
}

// Widths a row's channels are packed with: the whole row if uniform, else each band, in order (`runs` in quantizer.py).
struct Runs {
  int count, channels;  // channels of each run
  int width[4];
};

static inline int n_bands(int dim) { return dim >= 32 ? 4 : 2; }

// Whether `bits` is one width for all channels rather than a byte for each band.
static inline bool is_uniform(int bits) { return bits <= 16; }

// Whether rows of these widths have a one-byte scale.
static inline bool is_narrow(int bits) { return bits != 8 && bits != 16; }

static inline int scale_bytes(int bits) { return is_narrow(bits) ? 1 : 2; }

// Every band of a row, also of a uniform one.
static inline Runs bands_of(int bits, int dim) {
  Runs bands{n_bands(dim), dim / n_bands(dim), {}};
  for (int b = 0; b < bands.count; ++b) bands.width[b] = is_uniform(bits) ? bits : (bits >> (8 * b)) & 255;
  return bands;
}

static inline Runs runs_of(int bits, int dim) { return is_uniform(bits) ? Runs{1, dim, {bits}} : bands_of(bits, dim); }

static inline int row_bytes(int bits, int dim) {
  const Runs runs = runs_of(bits, dim);
  int bytes = 0;
  for (int b = 0; b < runs.count; ++b) bytes += runs.channels * runs.width[b] / 8;
  return bytes;
}

// Orthonormal fast Walsh-Hadamard transform, in place; dim is a power of two.
static inline void hadamard(float* x, int dim) {
  for (int h = 1; h < dim; h *= 2) {
    for (int i = 0; i < dim; i += 2 * h) {
      for (int j = i; j < i + h; ++j) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
    }
  }
  const float norm = float(1.0 / std::sqrt(double(dim)));
  for (int i = 0; i < dim; ++i) x[i] *= norm;
}

// Sum of products, folded in halves like fold_sum in quantizer.py.
static inline float fold_dot(const float* a, const float* b, int dim) {
  float s[kMaxHeadDim];
  for (int i = 0; i < dim; ++i) s[i] = a[i] * b[i];
  for (int half = dim / 2; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) s[i] = s[i] + s[i + half];
  }
  return s[0];
}

struct ScaleTables {
  float scales[256];  // of a narrow row by its code: 2^((code - 128) / 16), and 0 for code 0
  float bounds[255];  // the rms from which on each next code is used
};
extern const ScaleTables kScaleTables;

// What odd levels of a run are multiplied by, besides the row's scale as row_scale gives it.
float level_factor(int bits, int width, ScaleMode mode);

// A row's scale as stored: one byte (narrow rows) or fp16, at any address.
static inline float row_scale(int bits, const uint8_t* stored) {
  if (is_narrow(bits)) return kScaleTables.scales[*stored];
  uint16_t half;
  std::memcpy(&half, stored, 2);
  return half_to_float(half);
}

// Codes [dim] of one transformed row, and its scale as stored.
void quantize_row(const float* x, int bits, int dim, uint16_t* codes, uint8_t* scale);

// Inverse of quantize_row.
void dequantize_row(const uint16_t* codes, const uint8_t* scale, int bits, ScaleMode mode, int dim, float* out);

}  // namespace adakv
