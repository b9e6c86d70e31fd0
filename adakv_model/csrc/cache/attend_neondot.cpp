// Tile products with the dot product instructions of Armv8.2 (sdot).
#include "cache/tiles_neon.h"

namespace {

struct Tiles {
  static constexpr bool kQuadruples = false;

  template <int kWidth, int kPass>
  static Codes codes(const uint8_t* tile) {
    return codes_neon<kWidth>(tile);
  }

  static void store(const Codes& codes, uint8_t* out) { store_neon(codes, out); }

  // 8-bit codes less 128, so that they are signed.
  template <int kWidth>
  struct Sums {
    static constexpr int kSpan = 1 << 20, kPasses = 1;
    int32x4_t sums[4];

    void start(int32_t total) {
      for (int32x4_t& sum : sums) sum = vdupq_n_s32(kWidth == 8 ? 128 * total : 0);
    }
    template <int kPass>
    void add(const Codes& codes, const int8_t* four) {
      const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(word(four)));
      for (int v = 0; v < 4; ++v) {
        const int8x16_t c = kWidth == 8 ? signed_codes(codes.v[v]) : vreinterpretq_s8_u8(codes.v[v]);
        sums[v] = vdotq_s32(sums[v], c, x);
      }
    }
    template <int kPass>
    void lanes(IntLanes& out) const {
      for (int v = 0; v < 4; ++v) out.v[v] = IntVector(sums[v]);
    }
  };
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendNeonDot;
const AttendKernels kAttendNeonDot = table_named("dotprod");
}  // namespace adakv
