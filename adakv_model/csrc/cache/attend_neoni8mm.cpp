// Tile products with the int8 matrix instructions of Armv8.6: two lanes by two queries at a time (usmmla), for tiles of
// four queries; fewer use dot products of unsigned codes (usdot).
#include "cache/tiles_neon.h"

namespace {

struct Tiles {
  static constexpr bool kQuadruples = true;

  template <int kWidth, int kPass>
  static Codes codes(const uint8_t* tile) {
    return codes_neon<kWidth>(tile);
  }

  static void store(const Codes& codes, uint8_t* out) { store_neon(codes, out); }

  template <int kWidth>
  struct Sums {
    static constexpr int kSpan = 1 << 20, kPasses = 1;
    int32x4_t sums[4];

    void start(int32_t) {
      for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
    }
    template <int kPass>
    void add(const Codes& codes, const int8_t* four) {
      const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(word(four)));
      for (int v = 0; v < 4; ++v) sums[v] = vusdotq_s32(sums[v], codes.v[v], x);
    }
    template <int kPass>
    void lanes(IntLanes& out) const {
      for (int v = 0; v < 4; ++v) out.v[v] = IntVector(sums[v]);
    }
  };

  // Two tiles at a time, whose quads are brought together: eight codes of a lane.
  template <int kWidth, int kQuads>
  static void products_4(const uint8_t* tiles, int runs, int64_t stride, const int8_t* x, int64_t x_stride,
                         IntLanes* sums) {
    constexpr int kBytes = kWidth == 0 ? adakv::kTileCodes : 8 * kWidth;
    int32x4_t total[2][8];  // by pair of queries and pair of lanes: lane 0 x query 0, 0 x 1, 1 x 0, 1 x 1
    for (auto& pair : total) {
      for (int32x4_t& sum : pair) sum = vdupq_n_s32(0);
    }
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < kQuads; q += 2, tile += 2 * kBytes, x += 8) {
        const Codes first = codes_neon<kWidth>(tile), second = codes_neon<kWidth>(tile + kBytes);
        const int8x16_t y[2] = {vcombine_s8(vld1_s8(x), vld1_s8(x + x_stride)),
                                vcombine_s8(vld1_s8(x + 2 * x_stride), vld1_s8(x + 3 * x_stride))};
        for (int v = 0; v < 4; ++v) {
          const uint32x4_t a = vreinterpretq_u32_u8(first.v[v]), b = vreinterpretq_u32_u8(second.v[v]);
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
