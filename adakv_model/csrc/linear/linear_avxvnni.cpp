// Products with weight matrices on AVX2 with the dot products of AVX-VNNI.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "linear/int4.h"
#include "linear/linear_kernels.h"
#include "linear/linear_tiles.h"
#include "linear/table.h"

namespace adakv {
namespace avxvnni {
namespace {

#include "linear/linear_inputs.h"

inline __m256i dpbusd(__m256i ints, __m256i codes, __m256i x) { return _mm256_dpbusd_avx_epi32(ints, codes, x); }

#include "linear/linear_vnni.h"

struct Dots : VnniDots {
  static __m256i merge(__m256i both, __m256i pairs) {
    return _mm256_or_si256(_mm256_and_si256(both, _mm256_set1_epi8(0x0f)),
                           _mm256_and_si256(pairs, _mm256_set1_epi8(0x30)));
  }
};

#include "linear/linear_ymm.h"

}  // namespace

const LinearKernels kLinearKernels = {"avxvnni", kYmmTile, false, normalize, swiglu, quantize, table_ymm, int4_ymm};

}  // namespace avxvnni
}  // namespace adakv
