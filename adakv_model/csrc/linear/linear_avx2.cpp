// Products with weight matrices on AVX2.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "linear/int4.h"
#include "linear/linear_kernels.h"
#include "linear/linear_tiles.h"
#include "linear/table.h"

namespace adakv {
namespace avx2 {
namespace {

#include "linear/linear_inputs.h"

// Pairs of products summed in 16 bits: eight pairs of 15 * 127 fit, or two of 63 * 127.
struct Dots {
  using Ints = __m256i;
  static __m256i first(__m256i codes, __m256i x, int32_t) { return _mm256_maddubs_epi16(codes, x); }
  static __m256i add(__m256i ints, __m256i codes, __m256i x) {
    return _mm256_add_epi16(ints, _mm256_maddubs_epi16(codes, x));
  }
  static __m256i widen(__m256i ints) { return _mm256_madd_epi16(ints, _mm256_set1_epi16(1)); }
  static __m256i finish(__m256i ints, int32_t start) { return _mm256_add_epi32(widen(ints), _mm256_set1_epi32(start)); }
  static __m256i add_two(__m256i ints, const __m256i codes[2], __m256i x0, __m256i x1) {
    return _mm256_add_epi32(ints, widen(add(_mm256_maddubs_epi16(codes[0], x0), codes[1], x1)));
  }

  using Nibbles = __m256i;
  static Nibbles start_nibbles(int32_t) { return _mm256_setzero_si256(); }
  static void add_nibbles(Nibbles& ints, __m256i both, __m256i low, __m256i high) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i lower = _mm256_maddubs_epi16(_mm256_and_si256(both, nibble), low);
    ints = _mm256_add_epi16(ints, lower);
    ints = add(ints, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), high);
  }
  static __m256i finish_nibbles(Nibbles ints, int32_t start) { return finish(ints, start); }

  static __m256i merge(__m256i both, __m256i pairs) {
    return _mm256_or_si256(_mm256_and_si256(both, _mm256_set1_epi8(0x0f)),
                           _mm256_and_si256(pairs, _mm256_set1_epi8(0x30)));
  }
};

#include "linear/linear_ymm.h"

}  // namespace

const LinearKernels kLinearKernels = {"avx2", kYmmTile, false, normalize, swiglu, quantize, table_ymm, int4_ymm};

}  // namespace avx2
}  // namespace adakv
