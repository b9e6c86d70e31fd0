// Tile products with AVX-512 VNNI: a tile is one vector, four bytes multiplied and summed at once (vpdpbusd).
#include <immintrin.h>

#include "cache/lanes.h"
#include "cache/tile.h"

namespace {

using Codes = __m512i;

struct Tiles {
  static constexpr bool kQuadruples = false;

  // A plane is repeated, each copy shifted to the field it stands for.
  template <int kWidth, int kPass>
  static Codes codes(const uint8_t* tile) {
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

  static void store(const Codes& codes, uint8_t* out) { _mm512_storeu_si512(out, codes); }

  template <int kWidth>
  struct Sums {
    static constexpr int kSpan = 1 << 20, kPasses = 1;
    __m512i sums;

    void start(int32_t) { sums = _mm512_setzero_si512(); }
    template <int kPass>
    void add(const Codes& codes, const int8_t* four) {
      int32_t bytes;
      std::memcpy(&bytes, four, 4);
      sums = _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(bytes));
    }
    template <int kPass>
    void lanes(IntLanes& out) const {
      out = {{IntVector(sums)}};
    }
  };
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendAvx512Vnni;
const AttendKernels kAttendAvx512Vnni = table_named("avx512vnni");
}  // namespace adakv
