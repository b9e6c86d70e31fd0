// Tile products with AVX-VNNI, the 256-bit dot products of CPUs without AVX-512 (vpdpbusd).
#include "cache/attend_kernels.h"
#include "cache/tiles_avx2.h"

namespace {

struct Tiles : Avx2Tiles {
  template <int kWidth, int kQueries>
  static void products(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                       const int32_t*, IntLanes* sums) {
    __m256i total[kQueries][2];
    for (int i = 0; i < kQueries; ++i) total[i][0] = total[i][1] = _mm256_setzero_si256();
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < quads; ++q, tile += bytes_of<kWidth>(), x += 4) {
        __m256i codes[2];
        codes_of<kWidth>(tile, codes);
        for (int i = 0; i < kQueries; ++i) {
          const __m256i y = four(x + i * x_stride);
          total[i][0] = _mm256_dpbusd_avx_epi32(total[i][0], codes[0], y);
          total[i][1] = _mm256_dpbusd_avx_epi32(total[i][1], codes[1], y);
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) sums[i] = {{IntVector(total[i][0]), IntVector(total[i][1])}};
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendAvxVnni;
const AttendKernels kAttendAvxVnni = table_named("avxvnni");
}  // namespace adakv
