// Tile products with the instructions that every arm64 CPU has: bytes multiplied into 16-bit sums (smlal).
#include "cache/tiles_neon.h"

namespace {

struct Tiles {
  static constexpr bool kQuadruples = false;

  // 8-bit codes less 128, so that they are signed, a vector at a time.
  template <int kWidth, int kPass>
  static auto codes(const uint8_t* tile) {
    if constexpr (kWidth == 8) {
      return signed_codes(vld1q_u8(tile + 16 * kPass));
    } else {
      return codes_neon<kWidth>(tile);
    }
  }

  static void store(const Codes& codes, uint8_t* out) { store_neon(codes, out); }

  // Codes of at most 4 bits: 16 tiles' products fit 16 bits, one sum a code: 16 * 15 * 127 = 30,480.
  template <int kWidth>
  struct Sums {
    static constexpr int kSpan = 16, kPasses = 1;
    int16x8_t half[8];

    void start(int32_t) {
      for (int16x8_t& sum : half) sum = vdupq_n_s16(0);
    }
    template <int kPass>
    void add(const Codes& codes, const int8_t* four) {
      const int8x8_t x = vreinterpret_s8_s32(vdup_n_s32(word(four)));
      for (int v = 0; v < 4; ++v) {
        const int8x16_t c = vreinterpretq_s8_u8(codes.v[v]);
        half[2 * v] = vmlal_s8(half[2 * v], vget_low_s8(c), x);
        half[2 * v + 1] = vmlal_s8(half[2 * v + 1], vget_high_s8(c), x);
      }
    }
    template <int kPass>
    void lanes(IntLanes& out) const {
      for (int v = 0; v < 4; ++v) {
        out.v[v] = IntVector(vpaddq_s32(vpaddlq_s16(half[2 * v]), vpaddlq_s16(half[2 * v + 1])));
      }
    }
  };
};

template <>
struct Tiles::Sums<8> {
  static constexpr int kSpan = 1 << 20, kPasses = 4;
  int32x4_t low, high;
  int32_t missing;

  void start(int32_t total) {
    low = high = vdupq_n_s32(0);
    missing = 128 * total;
  }
  template <int kPass>
  void add(int8x16_t codes, const int8_t* four) {
    const int8x8_t x = vreinterpret_s8_s32(vdup_n_s32(word(four)));
    low = vpadalq_s16(low, vmull_s8(vget_low_s8(codes), x));
    high = vpadalq_s16(high, vmull_s8(vget_high_s8(codes), x));
  }
  template <int kPass>
  void lanes(IntLanes& out) const {
    out.v[kPass] = IntVector(vaddq_s32(vpaddq_s32(low, high), vdupq_n_s32(missing)));
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendNeon;
const AttendKernels kAttendNeon = table_named("neon");
}  // namespace adakv
