// Unpacking of tiles with AVX2.
#pragma once

#include <immintrin.h>

#include "cache/lanes.h"
#include "cache/tile.h"

namespace {

struct Avx2Tiles {
  template <int kWidth>
  static constexpr int bytes_of() {
    return kWidth == 0 ? adakv::kTileCodes : 8 * kWidth;
  }

  static __m256i load_32(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

  // Codes of lanes 0-7 and 8-15. A plane is repeated, each copy shifted to the field it stands for.
  template <int kWidth>
  static void codes_of(const uint8_t* tile, __m256i* codes) {
    if constexpr (kWidth == 0 || kWidth == 8) {
      codes[0] = load_32(tile);
      codes[1] = load_32(tile + 32);
    } else if constexpr (kWidth == 4) {
      const __m256i both = load_32(tile), nibble = _mm256_set1_epi8(15);
      codes[0] = _mm256_and_si256(both, nibble);
      codes[1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    } else {
      const __m256i plane = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tile)));
      const __m256i pair = _mm256_set1_epi8(3);
      codes[0] = _mm256_and_si256(_mm256_srlv_epi32(plane, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), pair);
      codes[1] = _mm256_and_si256(_mm256_srlv_epi32(plane, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)), pair);
      if constexpr (kWidth == 3) {
        int64_t eight;
        std::memcpy(&eight, tile + 16, 8);
        const __m256i high = _mm256_set1_epi64x(eight), bit = _mm256_set1_epi8(4);
        const __m256i first = _mm256_srlv_epi64(_mm256_slli_epi64(high, 2), _mm256_setr_epi64x(0, 1, 2, 3));
        const __m256i second = _mm256_srlv_epi64(high, _mm256_setr_epi64x(2, 3, 4, 5));
        codes[0] = _mm256_or_si256(codes[0], _mm256_and_si256(first, bit));
        codes[1] = _mm256_or_si256(codes[1], _mm256_and_si256(second, bit));
      }
    }
  }

  template <int kWidth>
  static void unpack(const uint8_t* tile, uint8_t* out) {
    __m256i codes[2];
    codes_of<kWidth>(tile, codes);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), codes[1]);
  }

  static __m256i four(const int8_t* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
  }
};

}  // namespace
