// Tile products without vector instructions: the specification that the other sets are tested against.
#include <cstdint>

#include "cache/attend_kernels.h"
#include "cache/lanes.h"

namespace {

struct Tiles {
  template <int kWidth>
  static void unpack(const uint8_t* tile, uint8_t* out) {
    for (int n = 0; n < adakv::kTileCodes; ++n) {
      out[n] = kWidth == 0 ? tile[n] : uint8_t(adakv::code_at(tile, kWidth, n));
    }
  }

  template <int kWidth, int kQueries>
  static void products(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                       const int32_t*, IntLanes* sums) {
    int32_t totals[kQueries][16] = {};
    const int bytes = kWidth == 0 ? adakv::kTileCodes : adakv::tile_bytes(kWidth);
    for (int r = 0, at = 0; r < runs; ++r) {
      for (int q = 0; q < quads; ++q, at += 4) {
        uint8_t codes[adakv::kTileCodes];
        unpack<kWidth>(tiles + r * stride + q * bytes, codes);
        for (int i = 0; i < kQueries; ++i) {
          for (int n = 0; n < adakv::kTileCodes; ++n) totals[i][n / 4] += codes[n] * x[i * x_stride + at + n % 4];
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) std::memcpy(sums + i, totals[i], sizeof(totals[i]));
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendScalar;
const AttendKernels kAttendScalar = table_named("scalar");
}  // namespace adakv
