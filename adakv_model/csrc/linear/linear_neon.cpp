// Products with weight matrices on NEON of Armv8.0.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "linear/int4.h"
#include "linear/linear_kernels.h"
#include "linear/linear_tiles.h"
#include "linear/table.h"

namespace adakv {
namespace neon {
namespace {

#include "linear/linear_inputs.h"

// Products of each of a quad's channels summed in 16 bits: 8 of 15 * 127 fit, or 4 of 63 * 127.
struct Dots {
  struct Ints {
    int16x8_t rows[4];  // two rows' four channels each
  };
  static Ints start() { return {{vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0)}}; }
  template <int lane>
  static void add(Ints& ints, const int8x16_t codes[2], int8x16_t x) {
    const int8x8_t four = vreinterpret_s8_s32(vdup_laneq_s32(vreinterpretq_s32_s8(x), lane));
    for (int h = 0; h < 2; ++h) {
      ints.rows[2 * h] = vmlal_s8(ints.rows[2 * h], vget_low_s8(codes[h]), four);
      ints.rows[2 * h + 1] = vmlal_s8(ints.rows[2 * h + 1], vget_high_s8(codes[h]), four);
    }
  }
  template <typename Ints8>
  static Ints8 finish(const Ints& ints, int32_t start) {
    Ints8 out;
    for (int h = 0; h < 2; ++h) {
      const int32x4_t sums = vpaddq_s32(vpaddlq_s16(ints.rows[2 * h]), vpaddlq_s16(ints.rows[2 * h + 1]));
      out.rows[h] = vaddq_s32(sums, vdupq_n_s32(start));
    }
    return out;
  }
};

#include "linear/linear_neon.h"

}  // namespace

const LinearKernels kLinearKernels = {"neon", kNeonTile, false, normalize, swiglu, quantize, table_neon, int4_neon};

}  // namespace neon
}  // namespace adakv
