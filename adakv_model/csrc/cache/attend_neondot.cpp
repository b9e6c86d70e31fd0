// Tile products with the dot product instructions of Armv8.2 (sdot).
#include "cache/attend_kernels.h"
#include "cache/tiles_neon.h"

namespace {

struct Tiles : NeonTiles {
  template <int kWidth, int kQueries>
  static void products(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                       const int32_t* totals, IntLanes* sums) {
    int32x4_t total[kQueries][4];
    for (int i = 0; i < kQueries; ++i) {
      for (int32x4_t& sum : total[i]) sum = vdupq_n_s32(kWidth == 8 ? 128 * totals[i] : 0);
    }
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < quads; ++q, tile += bytes_of<kWidth>(), x += 4) {
        uint8x16_t codes[4];
        codes_of<kWidth>(tile, codes);
        for (int i = 0; i < kQueries; ++i) {
          const int8x16_t y = vreinterpretq_s8_s32(vdupq_n_s32(four(x + i * x_stride)));
          for (int v = 0; v < 4; ++v) {
            const int8x16_t c = kWidth == 8 ? signed_codes(codes[v]) : vreinterpretq_s8_u8(codes[v]);
            total[i][v] = vdotq_s32(total[i][v], c, y);
          }
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      for (int v = 0; v < 4; ++v) sums[i].v[v] = IntVector(total[i][v]);
    }
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendNeonDot;
const AttendKernels kAttendNeonDot = table_named("dotprod");
}  // namespace adakv
