// Unpacking of tiles with NEON, for every attend_neon*.cpp.
#pragma once

#include <arm_neon.h>

#include "cache/lanes.h"
#include "cache/tile.h"

namespace {

// Of lanes 4 v .. 4 v + 3 in vector v.
struct Codes {
  uint8x16_t v[4];
};

inline int32_t word(const int8_t* four) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  return bytes;
}

inline int8x16_t signed_codes(uint8x16_t codes) { return vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128))); }

template <int kWidth>
inline Codes codes_neon(const uint8_t* tile) {
  Codes codes;
  if constexpr (kWidth == 0 || kWidth == 8) {
    for (int v = 0; v < 4; ++v) codes.v[v] = vld1q_u8(tile + 16 * v);
  } else if constexpr (kWidth == 4) {
    for (int v = 0; v < 2; ++v) {
      const uint8x16_t both = vld1q_u8(tile + 16 * v);
      codes.v[v] = vandq_u8(both, vdupq_n_u8(15));
      codes.v[v + 2] = vshrq_n_u8(both, 4);
    }
  } else {
    const uint8x16_t plane = vld1q_u8(tile), pair = vdupq_n_u8(3);
    codes.v[0] = vandq_u8(plane, pair);
    codes.v[1] = vandq_u8(vshrq_n_u8(plane, 2), pair);
    codes.v[2] = vandq_u8(vshrq_n_u8(plane, 4), pair);
    codes.v[3] = vshrq_n_u8(plane, 6);
    if constexpr (kWidth == 3) {  // bit f of every byte to bit 2: of the low half f = 2 v, of the high half one more
      const uint8x16_t high = vcombine_u8(vld1_u8(tile + 16), vld1_u8(tile + 16));
      for (int v = 0; v < 4; ++v) {
        const int8x16_t shift = vcombine_s8(vdup_n_s8(int8_t(2 - 2 * v)), vdup_n_s8(int8_t(1 - 2 * v)));
        codes.v[v] = vorrq_u8(codes.v[v], vandq_u8(vshlq_u8(high, shift), vdupq_n_u8(4)));
      }
    }
  }
  return codes;
}

inline void store_neon(const Codes& codes, uint8_t* out) {
  for (int v = 0; v < 4; ++v) vst1q_u8(out + 16 * v, codes.v[v]);
}

}  // namespace
