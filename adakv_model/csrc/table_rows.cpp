// Compiled once per instruction set with -DADAKV_ISA=<namespace>: products of int8 tokens with 6-bit table rows.
#include <algorithm>
#include <vector>

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

// Codes: one group, unpacked, ready to be multiplied with several tokens. Sum: float partial sums of one product.
// multiply(codes, x, scale, sum) adds scale * sum over the group of code * x; kBias: codes are 0..63, not -32..31.
#if defined(__AVX2__)

constexpr bool kBias = true;
using Codes = __m256i;
using Sum = __m256;

inline Sum zero() { return _mm256_setzero_ps(); }

inline Codes unpack(const uint8_t* group) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group));
  const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group + 16));
  const __m256i nibbles = _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_srli_epi16(low, 4), 1);
  // The four lanes of 64 bits need bits 0, 2, 4, 6 of every byte at 4: the mask drops what a shift moved across.
  const __m256i pairs = _mm256_broadcastq_epi64(high);
  const __m256i shifted =
      _mm256_srlv_epi64(_mm256_sllv_epi64(pairs, _mm256_setr_epi64x(4, 2, 0, 0)), _mm256_setr_epi64x(0, 0, 0, 2));
  return _mm256_or_si256(_mm256_and_si256(nibbles, _mm256_set1_epi8(0x0f)),
                         _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)));
}

inline void multiply(Codes codes, const int8_t* x, float scale, Sum& sum) {
  const __m256i token = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  // 63 * 127 * 2 fits 16 bits, so the saturating product is exact.
  const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, token), _mm256_set1_epi16(1));
  sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), sum);
}

inline float total(Sum sum) {
  __m128 lanes = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  lanes = _mm_add_ps(lanes, _mm_movehl_ps(lanes, lanes));
  return _mm_cvtss_f32(_mm_add_ss(lanes, _mm_shuffle_ps(lanes, lanes, 1)));
}

#elif defined(__ARM_NEON)

constexpr bool kBias = false;
struct Codes {
  int8x16_t low, high;  // channels 0..15 and 16..31
};
using Sum = float32x4_t;

inline Sum zero() { return vdupq_n_f32(0.0f); }

inline Codes unpack(const uint8_t* group) {
  const uint8x16_t nibbles = vld1q_u8(group);
  const uint8x8_t pairs = vld1_u8(group + 16);
  const uint8x16_t mask = vdupq_n_u8(0x30);
  const uint8x16_t first = vandq_u8(vcombine_u8(vshl_n_u8(pairs, 4), vshl_n_u8(pairs, 2)), mask);
  const uint8x16_t second = vandq_u8(vcombine_u8(pairs, vshr_n_u8(pairs, 2)), mask);
  const uint8x16_t low = vorrq_u8(vandq_u8(nibbles, vdupq_n_u8(0x0f)), first);
  const uint8x16_t high = vorrq_u8(vshrq_n_u8(nibbles, 4), second);
  const int8x16_t bias = vdupq_n_s8(32);
  return {vsubq_s8(vreinterpretq_s8_u8(low), bias), vsubq_s8(vreinterpretq_s8_u8(high), bias)};
}

inline void multiply(const Codes& codes, const int8_t* x, float scale, Sum& sum) {
  const int8x16_t a = vld1q_s8(x), b = vld1q_s8(x + 16);
#if defined(__ARM_FEATURE_DOTPROD)
  const int32x4_t products = vdotq_s32(vdotq_s32(vdupq_n_s32(0), codes.low, a), codes.high, b);
#else
  // Four products of at most 32 * 127 fit 16 bits.
  int16x8_t pairs = vmull_s8(vget_low_s8(codes.low), vget_low_s8(a));
  pairs = vmlal_s8(pairs, vget_high_s8(codes.low), vget_high_s8(a));
  pairs = vmlal_s8(pairs, vget_low_s8(codes.high), vget_low_s8(b));
  pairs = vmlal_s8(pairs, vget_high_s8(codes.high), vget_high_s8(b));
  const int32x4_t products = vpaddlq_s16(pairs);
#endif
  sum = vfmaq_n_f32(sum, vcvtq_f32_s32(products), scale);
}

inline float total(Sum sum) { return vaddvq_f32(sum); }

#else

constexpr bool kBias = false;
struct Codes {
  int16_t values[kTableGroup];
};
using Sum = float;

inline Sum zero() { return 0.0f; }

inline Codes unpack(const uint8_t* group) {
  Codes codes;
  for (int j = 0; j < kTableGroup; ++j) {
    const int nibble = j < 16 ? group[j] & 15 : group[j - 16] >> 4;
    codes.values[j] = int16_t((nibble | ((group[16 + j % 8] >> (j / 8 * 2)) & 3) << 4) - 32);
  }
  return codes;
}

inline void multiply(const Codes& codes, const int8_t* x, float scale, Sum& sum) {
  int32_t products = 0;
  for (int j = 0; j < kTableGroup; ++j) products += codes.values[j] * x[j];
  sum += float(products) * scale;
}

inline float total(Sum sum) { return sum; }

#endif

// One row with kTokens tokens. scales: the row's, fp32 [padded groups]; both: [kTokens * padded groups], scratch.
template <int kTokens>
void multiply_row(const Table& table, const uint8_t* codes, const float* scales, const QuantizedToken* tokens,
                  float* both, float* out, int64_t stride) {
  const int groups = table.groups(), padded = table.padded_groups();
  float bias[kTokens] = {};
  for (int t = 0; t < kTokens; ++t) {
    float lanes[kTableLanes] = {};
    for (int g = 0; g < padded; g += kTableLanes) {
      for (int l = 0; l < kTableLanes; ++l) {
        const float scale = scales[g + l] * tokens[t].scales[g + l];
        both[t * padded + g + l] = scale;
        if (kBias) lanes[l] += scale * tokens[t].offsets[g + l];
      }
    }
    for (int l = 0; l < kTableLanes; ++l) bias[t] += lanes[l];
  }
  Sum sums[kTokens];
  for (int t = 0; t < kTokens; ++t) sums[t] = zero();
  for (int g = 0; g < groups; ++g) {
    const Codes unpacked = unpack(codes + g * kTableGroupBytes);
    for (int t = 0; t < kTokens; ++t) {
      multiply(unpacked, tokens[t].codes + g * kTableGroup, both[t * padded + g], sums[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) out[t * stride] = total(sums[t]) - bias[t];
}

constexpr int kTile = 4;  // tokens that share one unpacking of a row

void product(const Table& table, int64_t first, int rows, const QuantizedToken* tokens, int count, float* out,
             int64_t stride) {
  const int groups = table.groups(), padded = table.padded_groups();
  std::vector<float> scratch(size_t(padded) * (1 + kTile));
  float *scales = scratch.data(), *both = scales + padded;
  for (int r = 0; r < rows; ++r) {
    const uint8_t* codes = table.codes + (first + r) * groups * kTableGroupBytes;
    const uint16_t* halves = table.scales + (first + r) * groups;
    for (int g = 0; g < groups; ++g) scales[g] = half_to_float(halves[g]);
    int t = 0;
    for (; t + kTile <= count; t += kTile) {
      multiply_row<kTile>(table, codes, scales, tokens + t, both, out + t * stride + r, stride);
    }
    for (; t < count; ++t) multiply_row<1>(table, codes, scales, tokens + t, both, out + t * stride + r, stride);
  }
}

#define ADAKV_STRING(x) #x
#define ADAKV_NAME(x) ADAKV_STRING(x)

}  // namespace

extern const TableKernels kTableKernels;
const TableKernels kTableKernels = {ADAKV_NAME(ADAKV_ISA), product};

}  // namespace ADAKV_ISA
}  // namespace adakv
