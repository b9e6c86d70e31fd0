// Struct Dots of linear_neon.h with the dot products of Armv8.2. Included in the namespace of a set.

struct Dots {
  struct Ints {
    int32x4_t rows[2];
  };
  static Ints start() { return {{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
  template <int lane>
  static void add(Ints& ints, const int8x16_t codes[2], int8x16_t x) {
    for (int h = 0; h < 2; ++h) ints.rows[h] = vdotq_laneq_s32(ints.rows[h], codes[h], x, lane);
  }
  template <typename Ints8>
  static Ints8 finish(const Ints& ints, int32_t start) {
    return {{vaddq_s32(ints.rows[0], vdupq_n_s32(start)), vaddq_s32(ints.rows[1], vdupq_n_s32(start))}};
  }
};
