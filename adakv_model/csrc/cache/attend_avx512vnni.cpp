// Tile products with AVX-512 VNNI: a tile is one vector, four bytes multiplied and summed at once (vpdpbusd).
#include <immintrin.h>

#include "cache/attend_kernels.h"
#include "cache/lanes.h"

namespace {

struct Tiles {
  // A plane is repeated, each copy shifted to the field it stands for.
  template <int kWidth>
  static __m512i codes_of(const uint8_t* tile) {
    if constexpr (kWidth == 0 || kWidth == 8) {
      return _mm512_loadu_si512(tile);
    } else if constexpr (kWidth == 4) {
      const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile)));
      const __m512i shifted = _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
      return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
    } else {
      const __m512i plane = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tile)));
      const __m512i shifted = _mm512_srlv_epi64(plane, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
      const __m512i codes = _mm512_and_si512(shifted, _mm512_set1_epi8(3));
      if constexpr (kWidth == 2) return codes;
      int64_t eight;
      std::memcpy(&eight, tile + 16, 8);
      const __m512i high = _mm512_rorv_epi64(_mm512_set1_epi64(eight), _mm512_setr_epi64(62, 63, 0, 1, 2, 3, 4, 5));
      return _mm512_ternarylogic_epi32(codes, high, _mm512_set1_epi8(4), 0xf8);  // codes | (high & 4)
    }
  }

  template <int kWidth>
  static void unpack(const uint8_t* tile, uint8_t* out) {
    _mm512_storeu_si512(out, codes_of<kWidth>(tile));
  }

  template <int kWidth, int kQueries>
  static void products(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                       const int32_t*, IntLanes* sums) {
    constexpr int kBytes = kWidth == 0 ? adakv::kTileCodes : 8 * kWidth;
    __m512i total[kQueries];
    for (int i = 0; i < kQueries; ++i) total[i] = _mm512_setzero_si512();
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < quads; ++q, tile += kBytes, x += 4) {
        const __m512i codes = codes_of<kWidth>(tile);
        for (int i = 0; i < kQueries; ++i) {
          int32_t four;
          std::memcpy(&four, x + i * x_stride, 4);
          total[i] = _mm512_dpbusd_epi32(total[i], codes, _mm512_set1_epi32(four));
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) sums[i] = {{IntVector(total[i])}};
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendAvx512Vnni;
const AttendKernels kAttendAvx512Vnni = table_named("avx512vnni");
}  // namespace adakv
