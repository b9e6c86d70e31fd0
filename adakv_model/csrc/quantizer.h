// Row quantizer: the C++ twin of adakv_model/quantizer.py, operation for operation. Compile with
// -ffp-contract=off: a fused multiply-add would round differently and change packed bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

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

static inline Runs runs_of(int bits, int dim) {
  if (is_uniform(bits)) return {1, dim, {bits}};
  Runs runs{n_bands(dim), dim / n_bands(dim), {}};
  for (int b = 0; b < runs.count; ++b) runs.width[b] = (bits >> (8 * b)) & 255;
  return runs;
}

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

// Rows of `columns` are the columns of `matrix` [dim, dim].
void transpose(const float* matrix, int dim, float* columns);

// matrix * x, summed over columns in order like transform in quantizer.py. columns: from transpose(); out is not x.
void transform(const float* x, const float* columns, int dim, float* out);

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

// Packs a run of codes of one width up to 8 bits.
static inline void pack_run(const uint8_t* codes, int width, uint8_t* out, int channels) {
  uint8_t low[kMaxHeadDim], high[kMaxHeadDim];
  switch (width) {
    case 2: pack_plane<2>(codes, out, channels); break;
    case 3:  // a plane of the two low bits, then a plane of the high bit
      for (int i = 0; i < channels; ++i) low[i] = codes[i] & 3, high[i] = codes[i] >> 2;
      pack_plane<2>(low, out, channels);
      pack_plane<1>(high, out + channels / 4, channels);
      break;
    case 4: pack_plane<4>(codes, out, channels); break;
    default: std::memcpy(out, codes, size_t(channels));
  }
}

// Inverse of pack_run.
template <int kWidth>
static inline void unpack_run(const uint8_t* in, uint8_t* codes, int channels) {
  if constexpr (kWidth == 3) {
    const uint8_t* high = in + channels / 4;
    unpack_plane<2>(in, codes, channels);
    for (int f = 0; f < 8; ++f) {
      for (int j = 0; j < channels / 8; ++j) codes[f * (channels / 8) + j] |= uint8_t(((high[j] >> f) & 1) << 2);
    }
  } else if constexpr (kWidth == 8) {
    std::memcpy(codes, in, size_t(channels));
  } else {
    unpack_plane<kWidth>(in, codes, channels);
  }
}

// Odd levels 2 c - (2^width - 1) of a packed run, times a factor.
template <int kWidth>
static inline void unpack_levels(const uint8_t* in, float factor, float* out, int channels) {
  if constexpr (kWidth == 16) {
    for (int i = 0; i < channels; ++i) {
      out[i] = float(2 * int32_t(in[2 * i] | (in[2 * i + 1] << 8)) - 65535) * factor;
    }
  } else {
    uint8_t codes[kMaxHeadDim];
    unpack_run<kWidth>(in, codes, channels);
    for (int i = 0; i < channels; ++i) out[i] = float(2 * codes[i] - ((1 << kWidth) - 1)) * factor;
  }
}

// Calls f with a run's width as a compile-time constant.
template <typename F>
static inline void with_width(int width, F&& f) {
  switch (width) {
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    case 8: return f(std::integral_constant<int, 8>());
    default: return f(std::integral_constant<int, 16>());
  }
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

// Quantize one transformed row.
void quantize_row(const float* x, int bits, int dim, uint8_t* packed, uint8_t* scale);

// Inverse of quantize_row.
void dequantize_row(const uint8_t* packed, const uint8_t* scale, int bits, ScaleMode mode, int dim, float* out);

}  // namespace adakv
