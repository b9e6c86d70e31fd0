// Tile products with the instructions that every arm64 CPU has: bytes multiplied into 16-bit sums (smlal).
#include "cache/attend_kernels.h"
#include "cache/tiles_neon.h"

namespace {

struct Tiles : NeonTiles {
  // Codes of at most 4 bits: 16 tiles' products fit 16 bits, one sum a code: 16 * 15 * 127 = 30,480.
  template <int kWidth, int kQueries>
  static void products(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                       const int32_t* totals, IntLanes* sums) {
    if constexpr (kWidth == 8) return products_8<kQueries>(tiles, runs, quads, stride, x, x_stride, totals, sums);
    int16x8_t part[kQueries][8];
    for (auto& query : part) {
      for (int16x8_t& sum : query) sum = vdupq_n_s16(0);
    }
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < quads; ++q, tile += bytes_of<kWidth>(), x += 4) {
        uint8x16_t codes[4];
        codes_of<kWidth>(tile, codes);
        for (int i = 0; i < kQueries; ++i) {
          const int8x8_t y = vreinterpret_s8_s32(vdup_n_s32(four(x + i * x_stride)));
          for (int v = 0; v < 4; ++v) {
            const int8x16_t c = vreinterpretq_s8_u8(codes[v]);
            part[i][2 * v] = vmlal_s8(part[i][2 * v], vget_low_s8(c), y);
            part[i][2 * v + 1] = vmlal_s8(part[i][2 * v + 1], vget_high_s8(c), y);
          }
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      for (int v = 0; v < 4; ++v) {
        sums[i].v[v] = IntVector(vpaddq_s32(vpaddlq_s16(part[i][2 * v]), vpaddlq_s16(part[i][2 * v + 1])));
      }
    }
  }

  // 8-bit codes less 128, so that they are signed.
  template <int kQueries>
  static void products_8(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                         const int32_t* totals, IntLanes* sums) {
    for (int v = 0; v < 4; ++v) {
      int32x4_t low[kQueries], high[kQueries];
      for (int i = 0; i < kQueries; ++i) low[i] = high[i] = vdupq_n_s32(0);
      const int8_t* y = x;
      for (int r = 0; r < runs; ++r) {
        for (int q = 0; q < quads; ++q, y += 4) {
          const int8x16_t c = signed_codes(vld1q_u8(tiles + r * stride + 64 * q + 16 * v));
          for (int i = 0; i < kQueries; ++i) {
            const int8x8_t four_x = vreinterpret_s8_s32(vdup_n_s32(four(y + i * x_stride)));
            low[i] = vpadalq_s16(low[i], vmull_s8(vget_low_s8(c), four_x));
            high[i] = vpadalq_s16(high[i], vmull_s8(vget_high_s8(c), four_x));
          }
        }
      }
      for (int i = 0; i < kQueries; ++i) {
        sums[i].v[v] = IntVector(vaddq_s32(vpaddq_s32(low[i], high[i]), vdupq_n_s32(128 * totals[i])));
      }
    }
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendNeon;
const AttendKernels kAttendNeon = table_named("neon");
}  // namespace adakv
