// Products with weight matrices on AVX-512 VNNI: one block of 8 rows at a time for one token, two for several.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "linear/int4.h"
#include "linear/linear_kernels.h"
#include "linear/linear_tiles.h"
#include "linear/table.h"

namespace adakv {
namespace avx512vnni {
namespace {

#include "linear/linear_inputs.h"

inline __m256i dpbusd(__m256i ints, __m256i codes, __m256i x) { return _mm256_dpbusd_epi32(ints, codes, x); }

#include "linear/linear_vnni.h"

struct Dots : VnniDots {
  static __m256i merge(__m256i both, __m256i pairs) {
    return _mm256_ternarylogic_epi32(_mm256_set1_epi8(0x0f), both, pairs, 0xca);  // a ? b : c
  }
};

#include "linear/linear_ymm.h"

constexpr int kTile = 8, kZmmRows = 2 * kBlockRows;

// Vectors of two blocks; `next` is the distance to the same bytes of the second one, 0 if there is none.
inline __m512i join(const uint8_t* bytes, int64_t next) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load_codes(bytes)), load_codes(bytes + next), 1);
}
inline __m128i join_8(const uint8_t* bytes, int64_t next) {
  return _mm_unpacklo_epi64(load_8(bytes), load_8(bytes + next));
}
inline __m512 join_rows(const float* from, int64_t next) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from)), _mm256_loadu_ps(from + next), 1);
}

// ints += the products of one quad, for every token of the tile.
template <int n>
inline void add_quad(__m512i codes, const TileGroup<n>& tile, int quad, __m512i* ints) {
  for (int t = 0; t < n; ++t) {
    int32_t four;
    std::memcpy(&four, tile.codes[t] + 4 * quad, 4);
    ints[t] = _mm512_dpbusd_epi32(ints[t], codes, _mm512_set1_epi32(four));
  }
}

// sums += ints * the token's scale * steps.
template <int n>
inline void add_scaled(const __m512i* ints, const TileGroup<n>& tile, __m512 steps, __m512* sums) {
  for (int t = 0; t < n; ++t) {
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(ints[t]), _mm512_set1_ps(tile.scales[t]));
    sums[t] = _mm512_fmadd_ps(scaled, steps, sums[t]);
  }
}

// Two blocks at a time are two streams, which the hardware does not foresee: ask for the same bytes of the next two.
inline void fetch_next(const uint8_t* bytes, int size, int64_t next) {
  for (int line = 0; line < size; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes + 2 * next + line), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(bytes + 3 * next + line), _MM_HINT_T0);
  }
}

// fetch: whether to ask for the next blocks, which one tile of tokens does.
template <int n>
void table_tile(const Table& table, int64_t block, bool fetch, const TileGroup<n>* tile, int rows, float* out,
                int64_t stride) {
  const int groups = table.groups();
  const int64_t next = rows > kBlockRows ? groups : 0;
  const uint8_t* bytes = table.codes + block * groups * kTableBlockBytes;
  const uint16_t* halves = table.scales + block * groups * kBlockRows;
  const __m512i nibble = _mm512_set1_epi8(0x0f), pair = _mm512_set1_epi8(0x30);
  __m512 sums[n];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (int g = 0; g < groups; ++g, bytes += kTableBlockBytes, halves += kBlockRows, ++tile) {
    if (fetch) fetch_next(bytes, kTableBlockBytes, next * kTableBlockBytes);
    __m512i ints[n];
    for (int t = 0; t < n; ++t) ints[t] = _mm512_set1_epi32(tile->starts[t]);
    const __m512i pairs[2] = {join(bytes + 128, next * kTableBlockBytes), join(bytes + 160, next * kTableBlockBytes)};
    for (int q = 0; q < 4; ++q) {
      const __m512i both = join(bytes + 32 * q, next * kTableBlockBytes), high = pairs[q % 2];
      const __m512i low_pair = q < 2 ? _mm512_slli_epi16(high, 4) : _mm512_slli_epi16(high, 2);
      const __m512i high_pair = q < 2 ? high : _mm512_srli_epi16(high, 2);
      add_quad(_mm512_or_si512(_mm512_and_si512(both, nibble), _mm512_and_si512(low_pair, pair)), *tile, q, ints);
      add_quad(_mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), _mm512_and_si512(high_pair, pair)),
               *tile, q + 4, ints);
    }
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + next * kBlockRows));
    const __m512 scales = _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
    add_scaled(ints, *tile, scales, sums);
  }
  const __mmask16 mask = __mmask16((1u << rows) - 1);
  for (int t = 0; t < n; ++t) _mm512_mask_storeu_ps(out + t * stride, mask, sums[t]);
}

void table(const Table& table, int64_t first, int64_t rows, const Tokens& tokens, float* out, int64_t stride) {
  if (tokens.count == 1) return table_ymm(table, first, rows, tokens, out, stride);
  for_blocks<kZmmRows>(first, rows, [&](int64_t block, int64_t r, int n) {
    for_tiles<kTile>(tokens, table.groups(), [&](auto size, int t, const auto* tile) {
      table_tile<size>(table, block, t == 0, tile, n, out + t * stride + r, stride);
    });
  });
}

template <int n>
void int4_tile(const Int4Matrix& matrix, int64_t block, bool fetch, const TileGroup<n>* tile, int rows,
               const float* residual, float* out, int64_t stride) {
  const int groups = matrix.groups();
  const int64_t next = rows > kBlockRows ? groups * kInt4BlockBytes : 0;
  const uint8_t* bytes = matrix.blocks + block * groups * kInt4BlockBytes;
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  __m512 sums[n], shifts[n];
  for (int t = 0; t < n; ++t) sums[t] = shifts[t] = _mm512_setzero_ps();
  for (int g = 0; g < groups; ++g, bytes += kInt4BlockBytes, ++tile) {
    if (fetch) fetch_next(bytes, kInt4BlockBytes, next);
    __m512i ints[n];
    for (int t = 0; t < n; ++t) ints[t] = _mm512_set1_epi32(tile->starts[t]);
    for (int q = 0; q < 4; ++q) {
      const __m512i both = join(bytes + 32 * q, next);
      add_quad(_mm512_and_si512(both, nibble), *tile, q, ints);
      add_quad(_mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), *tile, q + 4, ints);
    }
    const __m512 steps = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(join_8(bytes + 128, next)));
    const __m512 offsets = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(join_8(bytes + 136, next)));
    add_scaled(ints, *tile, steps, sums);
    for (int t = 0; t < n; ++t) {
      shifts[t] = _mm512_fmadd_ps(offsets, _mm512_set1_ps(tile->totals[t]), shifts[t]);
    }
  }
  const int64_t next_units = next == 0 ? 0 : 2 * kBlockRows;
  const float* units = matrix.units + block * 2 * kBlockRows;
  const __m512 step_units = join_rows(units, next_units), offset_units = join_rows(units + kBlockRows, next_units);
  const __mmask16 mask = __mmask16((1u << rows) - 1);
  for (int t = 0; t < n; ++t) {
    const __m512 start = residual == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, residual + t * stride);
    const __m512 shifted = _mm512_fmadd_ps(shifts[t], offset_units, start);
    _mm512_mask_storeu_ps(out + t * stride, mask, _mm512_fmadd_ps(sums[t], step_units, shifted));
  }
}

void int4(const Int4Matrix& matrix, int64_t first, int64_t rows, const Tokens& tokens, const float* residual,
          float* out, int64_t stride) {
  if (tokens.count == 1) return int4_ymm(matrix, first, rows, tokens, residual, out, stride);
  for_blocks<kZmmRows>(first, rows, [&](int64_t block, int64_t r, int n) {
    for_tiles<kTile>(tokens, matrix.groups(), [&](auto size, int t, const auto* tile) {
      const int64_t to = t * stride + r;
      int4_tile<size>(matrix, block, t == 0, tile, n, residual == nullptr ? nullptr : residual + to, out + to, stride);
    });
  });
}

}  // namespace

const LinearKernels kLinearKernels = {"avx512vnni", kTile, false, normalize, swiglu, quantize, table, int4};

}  // namespace avx512vnni
}  // namespace adakv
