// Compiled once per instruction set with -DADAKV_ISA=<namespace>: products of int8 tokens with 6-bit table rows.
#include <algorithm>
#include <cstring>

#include "quantizer.h"
#include "table.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace adakv {
namespace ADAKV_ISA {
namespace {

constexpr int kQuads = kTableGroup / 4;  // channels are multiplied four at a time, for eight rows at once

// Codes: the 8 rows' codes of four channels. Sum: one float for each row. dots adds up the exact products of a group;
// kBias: codes are 0..63 and the token's offsets take the 32 away, else they are -32..31.
#if defined(__AVX2__)

constexpr bool kBias = true;
using Codes = __m256i;
using Ints = __m256i;
using Sum = __m256;

inline Codes load(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline void unpack(const uint8_t* block, Codes* codes) {
  const __m256i nibble = _mm256_set1_epi8(0x0f), pair = _mm256_set1_epi8(0x30);
  const Codes high[2] = {load(block + 128), load(block + 160)};
  for (int q = 0; q < 4; ++q) {
    const Codes low = load(block + 32 * q);
    codes[q] = _mm256_and_si256(low, nibble);
    codes[q + 4] = _mm256_and_si256(_mm256_srli_epi16(low, 4), nibble);
  }
  for (int k = 0; k < 2; ++k) {
    const Codes shifted[4] = {_mm256_slli_epi16(high[k], 4), _mm256_slli_epi16(high[k], 2), high[k],
                              _mm256_srli_epi16(high[k], 2)};
    for (int f = 0; f < 4; ++f) {
      codes[2 * f + k] = _mm256_or_si256(codes[2 * f + k], _mm256_and_si256(shifted[f], pair));
    }
  }
}

inline Ints dots(const Codes* codes, const int8_t* x) {
  Ints even = _mm256_setzero_si256(), odd = even;
#if !defined(__AVX512VNNI__)
  const __m256i ones = _mm256_set1_epi16(1);
#endif
  for (int q = 0; q < kQuads; q += 2) {
    int32_t first, second;
    std::memcpy(&first, x + 4 * q, 4);
    std::memcpy(&second, x + 4 * q + 4, 4);
    const __m256i a = _mm256_set1_epi32(first), b = _mm256_set1_epi32(second);
#if defined(__AVX512VNNI__)
    even = _mm256_dpbusd_epi32(even, codes[q], a);
    odd = _mm256_dpbusd_epi32(odd, codes[q + 1], b);
#else
    // Four products of at most 63 * 127 fit 16 bits, so nothing saturates.
    const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(codes[q], a), _mm256_maddubs_epi16(codes[q + 1], b));
    Ints& sum = q % 4 == 0 ? even : odd;
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, ones));
#endif
  }
  return _mm256_add_epi32(even, odd);
}

inline Sum zero() { return _mm256_setzero_ps(); }
inline Sum widen(const uint16_t* halves) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}
inline Sum scaled(Ints products, const Sum& scales, float scale, float offset, const Sum& sum) {
  // sum + scales * (scale * products - offset)
  const Sum value = _mm256_fmsub_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), _mm256_set1_ps(offset));
  return _mm256_fmadd_ps(value, scales, sum);
}
inline void store(float* out, const Sum& sum) { _mm256_storeu_ps(out, sum); }

#elif defined(__ARM_NEON)

constexpr bool kBias = false;
struct Codes {
  int8x16_t rows[2];  // rows 0..3 and 4..7
};
struct Ints {
  int32x4_t rows[2];
};
struct Sum {
  float32x4_t rows[2];
};

inline void unpack(const uint8_t* block, Codes* codes) {
  const uint8x16_t nibble = vdupq_n_u8(0x0f), pair = vdupq_n_u8(0x30);
  const int8x16_t bias = vdupq_n_s8(32);
  for (int half = 0; half < 2; ++half, block += 16) {
    uint8x16_t low[kQuads];
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t bytes = vld1q_u8(block + 32 * q);
      low[q] = vandq_u8(bytes, nibble);
      low[q + 4] = vshrq_n_u8(bytes, 4);
    }
    for (int k = 0; k < 2; ++k) {
      const uint8x16_t high = vld1q_u8(block + 128 + 32 * k);
      const uint8x16_t shifted[4] = {vshlq_n_u8(high, 4), vshlq_n_u8(high, 2), high, vshrq_n_u8(high, 2)};
      for (int f = 0; f < 4; ++f) {
        const uint8x16_t code = vorrq_u8(low[2 * f + k], vandq_u8(shifted[f], pair));
        codes[2 * f + k].rows[half] = vsubq_s8(vreinterpretq_s8_u8(code), bias);
      }
    }
  }
}

inline Ints dots(const Codes* codes, const int8_t* x) {
  Ints sum = {{vdupq_n_s32(0), vdupq_n_s32(0)}};
  for (int q = 0; q < kQuads; ++q) {
    int32_t four;
    std::memcpy(&four, x + 4 * q, 4);
    const int8x16_t token = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int half = 0; half < 2; ++half) {
      const int8x16_t rows = codes[q].rows[half];
#if defined(__ARM_FEATURE_DOTPROD)
      sum.rows[half] = vdotq_s32(sum.rows[half], rows, token);
#else
      const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(rows), vget_low_s8(token)));
      const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(rows), vget_high_s8(token)));
      sum.rows[half] = vaddq_s32(sum.rows[half], vpaddq_s32(low, high));
#endif
    }
  }
  return sum;
}

inline Sum zero() { return {{vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}}; }
inline Sum widen(const uint16_t* halves) {
  const float16x8_t all = vreinterpretq_f16_u16(vld1q_u16(halves));
  return {{vcvt_f32_f16(vget_low_f16(all)), vcvt_f32_f16(vget_high_f16(all))}};
}
inline Sum scaled(const Ints& products, const Sum& scales, float scale, float, const Sum& sum) {
  Sum out;
  for (int half = 0; half < 2; ++half) {
    const float32x4_t value = vmulq_n_f32(vcvtq_f32_s32(products.rows[half]), scale);
    out.rows[half] = vfmaq_f32(sum.rows[half], value, scales.rows[half]);
  }
  return out;
}
inline void store(float* out, const Sum& sum) {
  vst1q_f32(out, sum.rows[0]);
  vst1q_f32(out + 4, sum.rows[1]);
}

#else

constexpr bool kBias = false;
struct Codes {
  int16_t values[kTableRows * 4];
};
struct Ints {
  int32_t rows[kTableRows];
};
struct Sum {
  float rows[kTableRows];
};

inline void unpack(const uint8_t* block, Codes* codes) {
  for (int q = 0; q < kQuads; ++q) {
    for (int j = 0; j < kTableRows * 4; ++j) {
      const int low = (block[32 * (q % 4) + j] >> (q / 4 * 4)) & 15;
      const int high = (block[128 + 32 * (q % 2) + j] >> (q / 2 * 2)) & 3;
      codes[q].values[j] = int16_t((low | high << 4) - 32);
    }
  }
}

inline Ints dots(const Codes* codes, const int8_t* x) {
  Ints sum = {};
  for (int q = 0; q < kQuads; ++q) {
    for (int r = 0; r < kTableRows; ++r) {
      for (int c = 0; c < 4; ++c) sum.rows[r] += codes[q].values[4 * r + c] * x[4 * q + c];
    }
  }
  return sum;
}

inline Sum zero() { return {}; }
inline Sum widen(const uint16_t* halves) {
  Sum out;
  for (int r = 0; r < kTableRows; ++r) out.rows[r] = half_to_float(halves[r]);
  return out;
}
inline Sum scaled(const Ints& products, const Sum& scales, float scale, float, const Sum& sum) {
  Sum out;
  for (int r = 0; r < kTableRows; ++r) out.rows[r] = sum.rows[r] + float(products.rows[r]) * scale * scales.rows[r];
  return out;
}
inline void store(float* out, const Sum& sum) { std::memcpy(out, sum.rows, sizeof(sum.rows)); }

#endif

// One block of rows with kTokens tokens; rows: how many of the block's exist.
template <int kTokens>
void multiply_block(const uint8_t* codes, const uint16_t* halves, int groups, const QuantizedToken* tokens, int rows,
                    float* out, int64_t stride) {
  Sum sums[kTokens];
  for (int t = 0; t < kTokens; ++t) sums[t] = zero();
  for (int g = 0; g < groups; ++g) {
    Codes unpacked[kQuads];
    unpack(codes + g * kTableBlockBytes, unpacked);
    const Sum scales = widen(halves + g * kTableRows);
    for (int t = 0; t < kTokens; ++t) {
      const QuantizedToken& token = tokens[t];
      const Ints products = dots(unpacked, token.codes + g * kTableGroup);
      sums[t] = scaled(products, scales, token.scales[g], kBias ? token.offsets[g] : 0.0f, sums[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    if (rows == kTableRows) {
      store(out + t * stride, sums[t]);
    } else {
      float values[kTableRows];
      store(values, sums[t]);
      std::copy(values, values + rows, out + t * stride);
    }
  }
}

constexpr int kTile = 4;  // tokens that share one unpacking of a block

void product(const Table& table, int64_t first, int64_t rows, const QuantizedToken* tokens, int count, float* out,
             int64_t stride) {
  const int groups = table.groups();
  for (int64_t r = 0; r < rows; r += kTableRows) {
    const int64_t at = (first + r) / kTableRows * groups;
    const uint8_t* codes = table.codes + at * kTableBlockBytes;
    const uint16_t* halves = table.scales + at * kTableRows;
    const int n = int(std::min<int64_t>(kTableRows, rows - r));
    int t = 0;
    for (; t + kTile <= count; t += kTile) {
      multiply_block<kTile>(codes, halves, groups, tokens + t, n, out + t * stride + r, stride);
    }
    for (; t < count; ++t) multiply_block<1>(codes, halves, groups, tokens + t, n, out + t * stride + r, stride);
  }
}

#define ADAKV_STRING(x) #x
#define ADAKV_NAME(x) ADAKV_STRING(x)

}  // namespace

extern const TableKernels kTableKernels;
const TableKernels kTableKernels = {ADAKV_NAME(ADAKV_ISA), product};

}  // namespace ADAKV_ISA
}  // namespace adakv
