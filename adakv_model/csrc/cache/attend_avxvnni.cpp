// Tile products with AVX-VNNI, the 256-bit dot products of CPUs without AVX-512 (vpdpbusd).
#include "cache/tiles_avx2.h"

namespace {

struct Tiles {
  static constexpr bool kQuadruples = false;

  template <int kWidth, int kPass>
  static Codes codes(const uint8_t* tile) {
    return codes_avx2<kWidth>(tile);
  }

  static void store(const Codes& codes, uint8_t* out) { store_avx2(codes, out); }

  template <int kWidth>
  struct Sums {
    static constexpr int kSpan = 1 << 20, kPasses = 1;
    __m256i half[2];

    void start(int32_t) { half[0] = half[1] = _mm256_setzero_si256(); }
    template <int kPass>
    void add(const Codes& codes, const int8_t* four) {
      const __m256i x = broadcast(four);
      half[0] = _mm256_dpbusd_avx_epi32(half[0], codes.half[0], x);
      half[1] = _mm256_dpbusd_avx_epi32(half[1], codes.half[1], x);
    }
    template <int kPass>
    void lanes(IntLanes& out) const {
      out = {{IntVector(half[0]), IntVector(half[1])}};
    }
  };
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendAvxVnni;
const AttendKernels kAttendAvxVnni = table_named("avxvnni");
}  // namespace adakv
