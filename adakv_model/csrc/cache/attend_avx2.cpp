// Tile products with AVX2: eight lanes a vector, bytes multiplied in pairs (vpmaddubsw) into 16-bit sums.
#include "cache/tiles_avx2.h"

namespace {

// 8-bit codes as two nibbles, because whole ones would overflow the 16-bit sums of pairs; half of the lanes at a time.
struct Nibbles {
  __m256i low, high;
};

inline __m256i add_pairs(__m256i sums, __m256i codes, __m256i x) {
  return _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, x));
}

inline IntVector widen(__m256i pairs) { return IntVector(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }

struct Tiles {
  static constexpr bool kQuadruples = false;

  template <int kWidth, int kPass>
  static auto codes(const uint8_t* tile) {
    if constexpr (kWidth == 8) {
      const __m256i both = load_32(tile + 32 * kPass), nibble = _mm256_set1_epi8(15);
      return Nibbles{_mm256_and_si256(both, nibble), _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)};
    } else {
      return codes_avx2<kWidth>(tile);
    }
  }

  static void store(const Codes& codes, uint8_t* out) { store_avx2(codes, out); }

  static constexpr int kFit = 8;  // tiles of 4-bit codes whose products surely fit 16 bits: 8 * 2 * 15 * 127 = 30,480

  template <int kWidth>
  struct Sums {
    static constexpr int kSpan = kFit, kPasses = 1;
    __m256i half[2];

    void start(int32_t) { half[0] = half[1] = _mm256_setzero_si256(); }
    template <int kPass>
    void add(const Codes& codes, const int8_t* four) {
      const __m256i x = broadcast(four);
      half[0] = add_pairs(half[0], codes.half[0], x);
      half[1] = add_pairs(half[1], codes.half[1], x);
    }
    template <int kPass>
    void lanes(IntLanes& out) const {
      out = {{widen(half[0]), widen(half[1])}};
    }
  };
};

template <>
struct Tiles::Sums<8> {
  static constexpr int kSpan = kFit, kPasses = 2;
  __m256i low, high;

  void start(int32_t) { low = high = _mm256_setzero_si256(); }
  template <int kPass>
  void add(const Nibbles& codes, const int8_t* four) {
    const __m256i x = broadcast(four);
    low = add_pairs(low, codes.low, x);
    high = add_pairs(high, codes.high, x);
  }
  template <int kPass>
  void lanes(IntLanes& out) const {
    out.v[kPass] = widen(low) + 16 * widen(high);
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendAvx2;
const AttendKernels kAttendAvx2 = table_named("avx2");
}  // namespace adakv
