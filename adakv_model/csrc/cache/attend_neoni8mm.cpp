// Tile products with the int8 matrix instructions of Armv8.6: two lanes by two queries at a time (usmmla), for tiles of
// four queries; fewer use dot products of unsigned codes (usdot).
#include "cache/attend_kernels.h"
#include "cache/tiles_neon.h"

namespace {

struct Tiles : NeonTiles {
  template <int kWidth, int kQueries>
  static void products(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                       const int32_t*, IntLanes* sums) {
    if constexpr (kQueries == 4) {
      if (quads % 2 == 0) return products_4<kWidth>(tiles, runs, quads, stride, x, x_stride, sums);
    }
    int32x4_t total[kQueries][4];
    for (auto& query : total) {
      for (int32x4_t& sum : query) sum = vdupq_n_s32(0);
    }
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < quads; ++q, tile += bytes_of<kWidth>(), x += 4) {
        uint8x16_t codes[4];
        codes_of<kWidth>(tile, codes);
        for (int i = 0; i < kQueries; ++i) {
          const int8x16_t y = vreinterpretq_s8_s32(vdupq_n_s32(four(x + i * x_stride)));
          for (int v = 0; v < 4; ++v) total[i][v] = vusdotq_s32(total[i][v], codes[v], y);
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      for (int v = 0; v < 4; ++v) sums[i].v[v] = IntVector(total[i][v]);
    }
  }

  // Two tiles at a time, whose quads are brought together: eight codes of a lane.
  template <int kWidth>
  static void products_4(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                         IntLanes* sums) {
    int32x4_t total[2][8];  // by pair of queries and pair of lanes: lane 0 x query 0, 0 x 1, 1 x 0, 1 x 1
    for (auto& pair : total) {
      for (int32x4_t& sum : pair) sum = vdupq_n_s32(0);
    }
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < quads; q += 2, tile += 2 * bytes_of<kWidth>(), x += 8) {
        uint8x16_t first[4], second[4];
        codes_of<kWidth>(tile, first);
        codes_of<kWidth>(tile + bytes_of<kWidth>(), second);
        const int8x16_t y[2] = {vcombine_s8(vld1_s8(x), vld1_s8(x + x_stride)),
                                vcombine_s8(vld1_s8(x + 2 * x_stride), vld1_s8(x + 3 * x_stride))};
        for (int v = 0; v < 4; ++v) {
          const uint32x4_t a = vreinterpretq_u32_u8(first[v]), b = vreinterpretq_u32_u8(second[v]);
          const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(a, b)), high = vreinterpretq_u8_u32(vzip2q_u32(a, b));
          for (int i = 0; i < 2; ++i) {
            total[i][2 * v] = vusmmlaq_s32(total[i][2 * v], low, y[i]);
            total[i][2 * v + 1] = vusmmlaq_s32(total[i][2 * v + 1], high, y[i]);
          }
        }
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int v = 0; v < 4; ++v) {
        sums[2 * i].v[v] = IntVector(vuzp1q_s32(total[i][2 * v], total[i][2 * v + 1]));
        sums[2 * i + 1].v[v] = IntVector(vuzp2q_s32(total[i][2 * v], total[i][2 * v + 1]));
      }
    }
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendNeonI8mm;
const AttendKernels kAttendNeonI8mm = table_named("i8mm");
}  // namespace adakv
