// Unpacking of tiles with AVX2.
#pragma once

#include <immintrin.h>

#include "cache/lanes.h"
#include "cache/tile.h"

namespace {

// Of lanes 0 - 7 and 8 - 15.
struct Codes {
  __m256i half[2];
};

inline __m256i load_32(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline __m256i broadcast(const int8_t* four) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  return _mm256_set1_epi32(bytes);
}

// A plane is repeated, each copy shifted to the field it stands for.
template <int kWidth>
inline Codes codes_avx2(const uint8_t* tile) {
  if constexpr (kWidth == 0 || kWidth == 8) {
    return {{load_32(tile), load_32(tile + 32)}};
  } else if constexpr (kWidth == 4) {
    const __m256i both = load_32(tile), nibble = _mm256_set1_epi8(15);
    return {{_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)}};
  } else {
    const __m256i plane = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tile)));
    const __m256i pair = _mm256_set1_epi8(3);
    Codes codes;
    codes.half[0] = _mm256_and_si256(_mm256_srlv_epi32(plane, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), pair);
    codes.half[1] = _mm256_and_si256(_mm256_srlv_epi32(plane, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)), pair);
    if constexpr (kWidth == 3) {
      int64_t eight;
      std::memcpy(&eight, tile + 16, 8);
      const __m256i high = _mm256_set1_epi64x(eight), bit = _mm256_set1_epi8(4);
      const __m256i first = _mm256_srlv_epi64(_mm256_slli_epi64(high, 2), _mm256_setr_epi64x(0, 1, 2, 3));
      const __m256i second = _mm256_srlv_epi64(high, _mm256_setr_epi64x(2, 3, 4, 5));
      codes.half[0] = _mm256_or_si256(codes.half[0], _mm256_and_si256(first, bit));
      codes.half[1] = _mm256_or_si256(codes.half[1], _mm256_and_si256(second, bit));
    }
    return codes;
  }
}

inline void store_avx2(const Codes& codes, uint8_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes.half[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), codes.half[1]);
}

}  // namespace
