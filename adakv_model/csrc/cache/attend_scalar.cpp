// Tile products without vector instructions: the specification that the other sets are tested against.
#include <cstdint>

#include "cache/lanes.h"
#include "cache/tile.h"

namespace {

struct Codes {
  uint8_t n[adakv::kTileCodes];
};

struct Tiles {
  static constexpr bool kQuadruples = false;

  template <int kWidth, int kPass>
  static Codes codes(const uint8_t* tile) {
    Codes out;
    for (int n = 0; n < adakv::kTileCodes; ++n) {
      out.n[n] = kWidth == 0 ? tile[n] : uint8_t(adakv::code_at(tile, kWidth, n));
    }
    return out;
  }

  static void store(const Codes& codes, uint8_t* out) { std::memcpy(out, codes.n, sizeof(codes.n)); }

  template <int kWidth>
  struct Sums {
    static constexpr int kSpan = 1 << 20, kPasses = 1;
    int32_t sums[16];

    void start(int32_t) { std::memset(sums, 0, sizeof(sums)); }
    template <int kPass>
    void add(const Codes& codes, const int8_t* four) {
      for (int n = 0; n < adakv::kTileCodes; ++n) sums[n / 4] += codes.n[n] * four[n % 4];
    }
    template <int kPass>
    void lanes(IntLanes& out) const {
      std::memcpy(&out, sums, sizeof(sums));
    }
  };
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendScalar;
const AttendKernels kAttendScalar = table_named("scalar");
}  // namespace adakv
