// Row quantizer: the C++ twin of adakv_model/quantizer.py, operation for operation. Compile with
// -ffp-contract=off: a fused multiply-add would round differently and change packed bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace adakv {

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

static inline int row_bytes(int bits, int dim) { return dim * bits / 8; }

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

// Pack b-bit codes: byte j holds channels j, j + n, j + 2 n, ... for n = dim * b / 8.
template <int kBits>
static inline void pack_plane(const uint8_t* codes, uint8_t* out, int dim) {
  const int n = dim * kBits / 8;
  for (int j = 0; j < n; ++j) {
    uint32_t byte = 0;
    for (int f = 0; f < 8 / kBits; ++f) byte |= uint32_t(codes[f * n + j]) << (kBits * f);
    out[j] = uint8_t(byte);
  }
}

template <int kBits>
static inline void unpack_plane(const uint8_t* in, uint8_t* codes, int dim) {
  const int n = dim * kBits / 8;
  for (int f = 0; f < 8 / kBits; ++f) {
    for (int j = 0; j < n; ++j) codes[f * n + j] = (in[j] >> (kBits * f)) & ((1 << kBits) - 1);
  }
}

static inline void pack(const uint8_t* codes, int bits, uint8_t* out, int dim) {
  uint8_t low[kMaxHeadDim], high[kMaxHeadDim];
  switch (bits) {
    case 2: pack_plane<2>(codes, out, dim); break;
    case 3:  // a plane of the two low bits, then a plane of the high bit
      for (int i = 0; i < dim; ++i) low[i] = codes[i] & 3, high[i] = codes[i] >> 2;
      pack_plane<2>(low, out, dim);
      pack_plane<1>(high, out + dim / 4, dim);
      break;
    case 4: pack_plane<4>(codes, out, dim); break;
    default: std::memcpy(out, codes, size_t(dim));
  }
}

// Codes of one packed row, for 2, 3, 4 or 8 bits.
template <int kBits>
static inline void unpack_codes(const uint8_t* in, uint8_t* codes, int dim) {
  if constexpr (kBits == 3) {
    const uint8_t* high = in + dim / 4;
    unpack_plane<2>(in, codes, dim);
    for (int f = 0; f < 8; ++f) {
      for (int j = 0; j < dim / 8; ++j) codes[f * (dim / 8) + j] |= uint8_t(((high[j] >> f) & 1) << 2);
    }
  } else if constexpr (kBits == 8) {
    std::memcpy(codes, in, size_t(dim));
  } else {
    unpack_plane<kBits>(in, codes, dim);
  }
}

// Codes of one packed row as floats; 16-bit ones less 2^15, so that sums over them lose no digits.
template <int kBits>
static inline void unpack_floats(const uint8_t* in, float* out, int dim) {
  if constexpr (kBits == 16) {
    for (int i = 0; i < dim; ++i) {
      out[i] = float(int32_t(in[2 * i] | (in[2 * i + 1] << 8)) - 32768);
    }
  } else {
    uint8_t codes[kMaxHeadDim];
    unpack_codes<kBits>(in, codes, dim);
    for (int i = 0; i < dim; ++i) out[i] = float(codes[i]);
  }
}

// Quantize one rotated row.
void quantize_row(const float* x, int bits, ScaleMode mode, int dim, uint8_t* packed, uint16_t* scale);

// Inverse of quantize_row.
void dequantize_row(const uint8_t* packed, const uint16_t* scale, int bits, int dim, float* out);

}  // namespace adakv
