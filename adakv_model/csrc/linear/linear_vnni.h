// What struct Dots of linear_ymm.h is with VNNI, but for merge. Included in the namespace of a set, after its
// dpbusd(ints, codes, x): ints plus the products of four unsigned codes with four activations.

struct VnniDots {
  using Ints = __m256i;
  static __m256i add(__m256i ints, __m256i codes, __m256i x) { return dpbusd(ints, codes, x); }
  static __m256i first(__m256i codes, __m256i x, int32_t start) { return add(_mm256_set1_epi32(start), codes, x); }
  static __m256i finish(__m256i ints, int32_t) { return ints; }
  static __m256i add_two(__m256i ints, const __m256i codes[2], __m256i x0, __m256i x1) {
    return add(add(ints, codes[0], x0), codes[1], x1);
  }

  // The upper codes are multiplied where they are, 16 times too large.
  struct Nibbles {
    __m256i low, high;
  };
  static Nibbles start_nibbles(int32_t start) { return {_mm256_set1_epi32(start), _mm256_setzero_si256()}; }
  static void add_nibbles(Nibbles& ints, __m256i both, __m256i low, __m256i high) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    ints.low = add(ints.low, _mm256_and_si256(both, nibble), low);
    ints.high = add(ints.high, _mm256_andnot_si256(nibble, both), high);
  }
  static __m256i finish_nibbles(const Nibbles& ints, int32_t) {
    return _mm256_add_epi32(ints.low, _mm256_srai_epi32(ints.high, 4));
  }
};
