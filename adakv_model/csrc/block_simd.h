// A block of rows at a time, or two, on one instruction set, for block_kernels.cpp: compile with
// -DADAKV_ISA=<namespace>.
//   Codes: the rows' codes of four channels. Ints, Sum: one int32, one float for each row.
//   unpack_nibbles: 128 bytes -> eight Codes of 4 bits. add_pairs: 64 bytes -> two higher bits for each code.
//   dots: start + the exact products of a group's codes, which are below 64, with int8 activations.
//   fma: a * b + sum. widen_*: 8 numbers of a block as floats. load, store: a float for each row.
// next: the distance to the same bytes of the second block, where there are two.
#pragma once

#include <cstdint>
#include <cstring>

#include "blocks.h"
#include "quantizer.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace adakv {
namespace ADAKV_ISA {
namespace {

constexpr int kQuads = kGroup / 4;  // channels are multiplied four at a time, for eight rows at once

inline int32_t four_bytes(const int8_t* x) {
  int32_t bytes;
  std::memcpy(&bytes, x, 4);
  return bytes;
}

#if defined(ADAKV_TWO_BLOCKS)

constexpr int kSimdBlocks = 2;
using Codes = __m512i;
using Ints = __m512i;
using Sum = __m512;

inline Codes join(const uint8_t* bytes, int64_t next) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), *reinterpret_cast<const __m256i_u*>(bytes + next), 1);
}

inline void unpack_nibbles(const uint8_t* bytes, int64_t next, Codes* codes) {
  const Codes nibble = _mm512_set1_epi8(0x0f);
  for (int q = 0; q < 4; ++q) {
    const Codes both = join(bytes + 32 * q, next);
    codes[q] = _mm512_and_si512(both, nibble);
    codes[q + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
  }
}

inline void add_pairs(const uint8_t* bytes, int64_t next, Codes* codes) {
  const Codes pair = _mm512_set1_epi8(0x30);
  for (int k = 0; k < 2; ++k) {
    const Codes high = join(bytes + 32 * k, next);
    const Codes shifted[4] = {_mm512_slli_epi16(high, 4), _mm512_slli_epi16(high, 2), high, _mm512_srli_epi16(high, 2)};
    for (int f = 0; f < 4; ++f) {
      codes[2 * f + k] = _mm512_or_si512(codes[2 * f + k], _mm512_and_si512(shifted[f], pair));
    }
  }
}

inline Ints dots(const Codes* codes, const int8_t* x, int32_t start) {
  Ints even = _mm512_set1_epi32(start), odd = _mm512_setzero_si512();  // two chains, to wait less for each addition
  for (int q = 0; q < kQuads; q += 2) {
    even = _mm512_dpbusd_epi32(even, codes[q], _mm512_set1_epi32(four_bytes(x + 4 * q)));
    odd = _mm512_dpbusd_epi32(odd, codes[q + 1], _mm512_set1_epi32(four_bytes(x + 4 * q + 4)));
  }
  return _mm512_add_epi32(even, odd);
}

inline Sum zero() { return _mm512_setzero_ps(); }
inline Sum scaled(Ints products, float scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(products), _mm512_set1_ps(scale));
}
inline Sum fma(const Sum& a, const Sum& b, const Sum& sum) { return _mm512_fmadd_ps(a, b, sum); }
inline Sum fma(const Sum& a, float b, const Sum& sum) { return _mm512_fmadd_ps(a, _mm512_set1_ps(b), sum); }
inline __m128i join_8(const uint8_t* bytes, int64_t next) {
  return _mm_unpacklo_epi64(_mm_loadu_si64(bytes), _mm_loadu_si64(bytes + next));
}
inline Sum widen_halves(const uint16_t* from, int64_t next) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + next));
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
}
inline Sum widen_unsigned(const uint8_t* from, int64_t next) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(join_8(from, next)));
}
inline Sum widen_signed(const uint8_t* from, int64_t next) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(join_8(from, next)));
}
inline Sum load(const float* from, int64_t next) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from)), _mm256_loadu_ps(from + next), 1);
}
inline void store(float* out, const Sum& sum) { _mm512_storeu_ps(out, sum); }

#elif defined(__AVX2__)

constexpr int kSimdBlocks = 1;
using Codes = __m256i;
using Ints = __m256i;
using Sum = __m256;

inline Codes load(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline void unpack_nibbles(const uint8_t* bytes, int64_t, Codes* codes) {
  const __m256i nibble = _mm256_set1_epi8(0x0f);
  for (int q = 0; q < 4; ++q) {
    const Codes both = load(bytes + 32 * q);
    codes[q] = _mm256_and_si256(both, nibble);
    codes[q + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
  }
}

inline void add_pairs(const uint8_t* bytes, int64_t, Codes* codes) {
  const __m256i pair = _mm256_set1_epi8(0x30);
  for (int k = 0; k < 2; ++k) {
    const Codes high = load(bytes + 32 * k);
    const Codes shifted[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high, _mm256_srli_epi16(high, 2)};
    for (int f = 0; f < 4; ++f) {
      codes[2 * f + k] = _mm256_or_si256(codes[2 * f + k], _mm256_and_si256(shifted[f], pair));
    }
  }
}

inline __m256i broadcast(const int8_t* four) { return _mm256_set1_epi32(four_bytes(four)); }

inline Ints dots(const Codes* codes, const int8_t* x, int32_t start) {
  Ints sum = _mm256_set1_epi32(start);
#if defined(__AVX512VNNI__)
  Ints odd = _mm256_setzero_si256();  // two chains, to wait less for each addition
  for (int q = 0; q < kQuads; q += 2) {
    sum = _mm256_dpbusd_epi32(sum, codes[q], broadcast(x + 4 * q));
    odd = _mm256_dpbusd_epi32(odd, codes[q + 1], broadcast(x + 4 * q + 4));
  }
  return _mm256_add_epi32(sum, odd);
#else
  for (int q = 0; q < kQuads; q += 2) {  // four products of at most 63 * 127 fit 16 bits, so nothing saturates
    const __m256i even = _mm256_maddubs_epi16(codes[q], broadcast(x + 4 * q));
    const __m256i odd = _mm256_maddubs_epi16(codes[q + 1], broadcast(x + 4 * q + 4));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1)));
  }
  return sum;
#endif
}

inline Sum zero() { return _mm256_setzero_ps(); }
inline Sum scaled(Ints products, float scale) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale));
}
inline Sum fma(const Sum& a, const Sum& b, const Sum& sum) { return _mm256_fmadd_ps(a, b, sum); }
inline Sum fma(const Sum& a, float b, const Sum& sum) { return _mm256_fmadd_ps(a, _mm256_set1_ps(b), sum); }
inline __m128i load_8(const uint8_t* bytes) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)); }
inline Sum widen_halves(const uint16_t* from, int64_t) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Sum widen_unsigned(const uint8_t* from, int64_t) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8(from)));
}
inline Sum widen_signed(const uint8_t* from, int64_t) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8(from))); }
inline Sum load(const float* from, int64_t) { return _mm256_loadu_ps(from); }
inline void store(float* out, const Sum& sum) { _mm256_storeu_ps(out, sum); }

#elif defined(__ARM_NEON)

constexpr int kSimdBlocks = 1;
struct Codes {
  int8x16_t rows[2];  // rows 0..3 and 4..7
};
struct Ints {
  int32x4_t rows[2];
};
struct Sum {
  float32x4_t rows[2];
};

inline void unpack_nibbles(const uint8_t* bytes, int64_t, Codes* codes) {
  const uint8x16_t nibble = vdupq_n_u8(0x0f);
  for (int q = 0; q < 4; ++q) {
    for (int half = 0; half < 2; ++half) {
      const uint8x16_t both = vld1q_u8(bytes + 32 * q + 16 * half);
      codes[q].rows[half] = vreinterpretq_s8_u8(vandq_u8(both, nibble));
      codes[q + 4].rows[half] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
  }
}

inline void add_pairs(const uint8_t* bytes, int64_t, Codes* codes) {
  const uint8x16_t pair = vdupq_n_u8(0x30);
  for (int k = 0; k < 2; ++k) {
    for (int half = 0; half < 2; ++half) {
      const uint8x16_t high = vld1q_u8(bytes + 32 * k + 16 * half);
      const uint8x16_t shifted[4] = {vshlq_n_u8(high, 4), vshlq_n_u8(high, 2), high, vshrq_n_u8(high, 2)};
      for (int f = 0; f < 4; ++f) {
        int8x16_t& code = codes[2 * f + k].rows[half];
        code = vorrq_s8(code, vreinterpretq_s8_u8(vandq_u8(shifted[f], pair)));
      }
    }
  }
}

#if defined(__ARM_FEATURE_DOTPROD)
// Quads kFirst to kFirst + 3, whose activations are the lanes of x.
template <int kFirst>
inline void add_dots(const Codes* codes, int8x16_t x, Ints& sum) {
  for (int half = 0; half < 2; ++half) {
    int32x4_t& rows = sum.rows[half];
    rows = vdotq_laneq_s32(rows, codes[kFirst].rows[half], x, 0);
    rows = vdotq_laneq_s32(rows, codes[kFirst + 1].rows[half], x, 1);
    rows = vdotq_laneq_s32(rows, codes[kFirst + 2].rows[half], x, 2);
    rows = vdotq_laneq_s32(rows, codes[kFirst + 3].rows[half], x, 3);
  }
}
#endif

inline Ints dots(const Codes* codes, const int8_t* x, int32_t start) {
  Ints sum = {{vdupq_n_s32(start), vdupq_n_s32(start)}};
#if defined(__ARM_FEATURE_DOTPROD)
  add_dots<0>(codes, vld1q_s8(x), sum);
  add_dots<4>(codes, vld1q_s8(x + 16), sum);
#else
  for (int q = 0; q < kQuads; ++q) {
    const int8x16_t token = vreinterpretq_s8_s32(vdupq_n_s32(four_bytes(x + 4 * q)));
    for (int half = 0; half < 2; ++half) {
      const int8x16_t rows = codes[q].rows[half];
      const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(rows), vget_low_s8(token)));
      const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(rows), vget_high_s8(token)));
      sum.rows[half] = vaddq_s32(sum.rows[half], vpaddq_s32(low, high));
    }
  }
#endif
  return sum;
}

inline Sum zero() { return {{vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}}; }
inline Sum scaled(const Ints& products, float scale) {
  return {{vmulq_n_f32(vcvtq_f32_s32(products.rows[0]), scale), vmulq_n_f32(vcvtq_f32_s32(products.rows[1]), scale)}};
}
inline Sum fma(const Sum& a, const Sum& b, const Sum& sum) {
  return {{vfmaq_f32(sum.rows[0], a.rows[0], b.rows[0]), vfmaq_f32(sum.rows[1], a.rows[1], b.rows[1])}};
}
inline Sum fma(const Sum& a, float b, const Sum& sum) {
  return {{vfmaq_n_f32(sum.rows[0], a.rows[0], b), vfmaq_n_f32(sum.rows[1], a.rows[1], b)}};
}
inline Sum widen_halves(const uint16_t* from, int64_t) {
  const float16x8_t all = vreinterpretq_f16_u16(vld1q_u16(from));
  return {{vcvt_f32_f16(vget_low_f16(all)), vcvt_f32_f16(vget_high_f16(all))}};
}
inline Sum widen_unsigned(const uint8_t* from, int64_t) {
  const uint16x8_t all = vmovl_u8(vld1_u8(from));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(all))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(all)))}};
}
inline Sum widen_signed(const uint8_t* from, int64_t) {
  const int16x8_t all = vmovl_s8(vreinterpret_s8_u8(vld1_u8(from)));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(all))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(all)))}};
}
inline Sum load(const float* from, int64_t) { return {{vld1q_f32(from), vld1q_f32(from + 4)}}; }
inline void store(float* out, const Sum& sum) {
  vst1q_f32(out, sum.rows[0]);
  vst1q_f32(out + 4, sum.rows[1]);
}

#else

constexpr int kSimdBlocks = 1;
struct Codes {
  int16_t values[kBlockRows * 4];
};
struct Ints {
  int32_t rows[kBlockRows];
};
struct Sum {
  float rows[kBlockRows];
};

inline void unpack_nibbles(const uint8_t* bytes, int64_t, Codes* codes) {
  for (int q = 0; q < kQuads; ++q) {
    for (int j = 0; j < kBlockRows * 4; ++j) {
      codes[q].values[j] = int16_t((bytes[32 * (q % 4) + j] >> (q / 4 * 4)) & 15);
    }
  }
}

inline void add_pairs(const uint8_t* bytes, int64_t, Codes* codes) {
  for (int q = 0; q < kQuads; ++q) {
    for (int j = 0; j < kBlockRows * 4; ++j) {
      codes[q].values[j] = int16_t(codes[q].values[j] | ((bytes[32 * (q % 2) + j] >> (q / 2 * 2)) & 3) << 4);
    }
  }
}

inline Ints dots(const Codes* codes, const int8_t* x, int32_t start) {
  Ints sum;
  for (int32_t& row : sum.rows) row = start;
  for (int q = 0; q < kQuads; ++q) {
    for (int r = 0; r < kBlockRows; ++r) {
      for (int c = 0; c < 4; ++c) sum.rows[r] += codes[q].values[4 * r + c] * x[4 * q + c];
    }
  }
  return sum;
}

template <typename Row>
inline Sum each(const Row& row) {
  Sum out;
  for (int r = 0; r < kBlockRows; ++r) out.rows[r] = row(r);
  return out;
}

inline Sum zero() { return {}; }
inline Sum scaled(const Ints& products, float scale) {
  return each([&](int r) { return float(products.rows[r]) * scale; });
}
inline Sum fma(const Sum& a, const Sum& b, const Sum& sum) {
  return each([&](int r) { return sum.rows[r] + a.rows[r] * b.rows[r]; });
}
inline Sum fma(const Sum& a, float b, const Sum& sum) {
  return each([&](int r) { return sum.rows[r] + a.rows[r] * b; });
}
inline Sum widen_halves(const uint16_t* from, int64_t) {
  return each([&](int r) { return half_to_float(from[r]); });
}
inline Sum widen_unsigned(const uint8_t* from, int64_t) {
  return each([&](int r) { return float(from[r]); });
}
inline Sum widen_signed(const uint8_t* from, int64_t) {
  return each([&](int r) { return float(int8_t(from[r])); });
}
inline Sum load(const float* from, int64_t) {
  return each([&](int r) { return from[r]; });
}
inline void store(float* out, const Sum& sum) { std::memcpy(out, sum.rows, sizeof(sum.rows)); }

#endif

}  // namespace
}  // namespace ADAKV_ISA
}  // namespace adakv
