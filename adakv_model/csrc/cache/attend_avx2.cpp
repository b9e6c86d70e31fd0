// Tile products with AVX2: eight lanes a vector, bytes multiplied in pairs (vpmaddubsw) into 16-bit sums.
#include "cache/attend_kernels.h"
#include "cache/tiles_avx2.h"

namespace {

struct Tiles : Avx2Tiles {
  static __m256i pairs(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

  static constexpr int kSpan = 8;  // tiles of 4-bit codes whose products surely fit 16 bits: 8 * 2 * 15 * 127 = 30,480

  template <int kWidth, int kQueries>
  static void products(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                       const int32_t*, IntLanes* sums) {
    if constexpr (kWidth == 8) return products_8<kQueries>(tiles, runs, quads, stride, x, x_stride, sums);
    __m256i total[kQueries][2], part[kQueries][2];
    for (int i = 0; i < kQueries; ++i) total[i][0] = total[i][1] = part[i][0] = part[i][1] = _mm256_setzero_si256();
    const auto flush = [&] {
      for (int i = 0; i < kQueries; ++i) {
        for (int h = 0; h < 2; ++h) {
          total[i][h] = _mm256_add_epi32(total[i][h], pairs(part[i][h]));
          part[i][h] = _mm256_setzero_si256();
        }
      }
    };
    int held = 0;
    for (int r = 0; r < runs; ++r) {
      const uint8_t* tile = tiles + r * stride;
      for (int q = 0; q < quads; ++q, tile += bytes_of<kWidth>(), x += 4) {
        __m256i codes[2];
        codes_of<kWidth>(tile, codes);
        for (int i = 0; i < kQueries; ++i) {
          const __m256i y = four(x + i * x_stride);
          part[i][0] = _mm256_add_epi16(part[i][0], _mm256_maddubs_epi16(codes[0], y));
          part[i][1] = _mm256_add_epi16(part[i][1], _mm256_maddubs_epi16(codes[1], y));
        }
        if (++held == kSpan) {
          flush();
          held = 0;
        }
      }
    }
    if (held > 0) flush();
    for (int i = 0; i < kQueries; ++i) sums[i] = {{IntVector(total[i][0]), IntVector(total[i][1])}};
  }

  // 8-bit codes as two nibbles: whole ones would overflow the 16-bit sums of pairs.
  template <int kQueries>
  static void products_8(const uint8_t* tiles, int runs, int quads, int64_t stride, const int8_t* x, int64_t x_stride,
                         IntLanes* sums) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i total[kQueries][2];
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < kQueries; ++i) total[i][h] = _mm256_setzero_si256();
      const int8_t* y = x;
      for (int r = 0; r < runs; ++r) {
        for (int q = 0; q < quads; q += kSpan) {
          const int n = quads - q < kSpan ? quads - q : kSpan;
          __m256i low[kQueries], high[kQueries];
          for (int i = 0; i < kQueries; ++i) low[i] = high[i] = _mm256_setzero_si256();
          for (int k = 0; k < n; ++k, y += 4) {
            const __m256i codes = load_32(tiles + r * stride + 64 * (q + k) + 32 * h);
            const __m256i a = _mm256_and_si256(codes, nibble),
                          b = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
            for (int i = 0; i < kQueries; ++i) {
              low[i] = _mm256_add_epi16(low[i], _mm256_maddubs_epi16(a, four(y + i * x_stride)));
              high[i] = _mm256_add_epi16(high[i], _mm256_maddubs_epi16(b, four(y + i * x_stride)));
            }
          }
          for (int i = 0; i < kQueries; ++i) {
            const __m256i sum = _mm256_add_epi32(pairs(low[i]), _mm256_slli_epi32(pairs(high[i]), 4));
            total[i][h] = _mm256_add_epi32(total[i][h], sum);
          }
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) sums[i] = {{IntVector(total[i][0]), IntVector(total[i][1])}};
  }
};

}  // namespace

#include "cache/attend_loops.h"

namespace adakv {
extern const AttendKernels kAttendAvx2;
const AttendKernels kAttendAvx2 = table_named("avx2");
}  // namespace adakv
