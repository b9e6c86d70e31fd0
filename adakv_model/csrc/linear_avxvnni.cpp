// Products with weight matrices on AVX2 with the dot products of AVX-VNNI.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "int4.h"
#include "linear_kernels.h"
#include "linear_tiles.h"
#include "table.h"

namespace adakv {
namespace avxvnni {
namespace {

#include "linear_inputs.h"

struct Dots {
  using Ints = __m256i;
  static __m256i add(__m256i ints, __m256i codes, __m256i x) { return _mm256_dpbusd_avx_epi32(ints, codes, x); }
  static __m256i first(__m256i codes, __m256i x, int32_t start) { return add(_mm256_set1_epi32(start), codes, x); }
  static __m256i finish(__m256i ints, int32_t) { return ints; }
  static __m256i add_two(__m256i ints, const __m256i codes[2], __m256i x0, __m256i x1) {
    return add(add(ints, codes[0], x0), codes[1], x1);
  }
};

#include "linear_ymm.h"

}  // namespace

const LinearKernels kLinearKernels = {"avxvnni", kYmmTile, false, normalize, swiglu, quantize, table_ymm, int4_ymm};

}  // namespace avxvnni
}  // namespace adakv
