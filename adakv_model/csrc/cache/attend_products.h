// Exact products of the codes of tiles with int8 numbers, over what an instruction set does with one tile. Included by
// attend_loops.h after the set's definitions, in an anonymous namespace of its own:
//   Codes: the 64 codes of a tile, one byte each.
//   Tiles::codes<kWidth>(tile) -> Codes, Tiles::store(codes, out)
//   Tiles::Sums<kWidth>: the products of one query, lane by lane.
//       kSpan: tiles whose products may be added before lanes() is called.
//       kPasses: how often the tiles are read, each time for a part of the lanes; add<pass>, lanes<pass>.
//       start(total): total is the sum of all numbers, for those who need signed codes.
//       add<pass>(codes, four): and the products of a tile with four numbers.
//       lanes<pass>(out): the sums, or that part of them.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <type_traits>
#include <utility>

#include "cache/attend_kernels.h"
#include "cache/lanes.h"

namespace {

constexpr int kUnpacked = 0;         // width of tiles that lie unpacked, a byte a code of at most 4 bits
constexpr int kQueryTile = 4;        // queries whose sums stay in registers
constexpr float kSmallest = 1e-30f;  // what is not larger becomes 0: 127 divided by it must be finite
constexpr float kRound = 0x1.8p23f;  // added and subtracted: round to the nearest integer, ties to even

constexpr int tile_stride(int width) { return width == kUnpacked ? kTileCodes : kTileCodes * width / 8; }

// Calls f with a width as a compile-time constant.
template <typename F>
inline void with_tile_width(int width, F&& f) {
  switch (width) {
    case kUnpacked: return f(std::integral_constant<int, kUnpacked>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 8>());
  }
}

// Calls f(integral constant, first) for tiles of up to kQueryTile queries.
template <typename F>
inline void for_query_tiles(int n, F&& f) {
  int q = 0;
  for (; q + kQueryTile <= n; q += kQueryTile) f(std::integral_constant<int, kQueryTile>(), q);
  if (n - q == 3) return f(std::integral_constant<int, 3>(), q);
  if (n - q == 2) return f(std::integral_constant<int, 2>(), q);
  if (n - q == 1) return f(std::integral_constant<int, 1>(), q);
}

constexpr int64_t kAhead = 4096;  // bytes

// Asks for memory that is read soon: parts of a cache are too short for the hardware to foresee. Into the second cache:
// the first one is too busy to wait for memory.
inline void fetch_ahead(const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(bytes + kAhead + i, 0, 2);
}

// Tiles in runs: `runs` of kQuads each, `stride` bytes apart. A tile's codes are multiplied by four numbers of a query.
struct TileRuns {
  const uint8_t* tiles;
  int runs;
  int64_t stride;
};

// out[i] = products of query i with runs first .. end - 1, which kSpan covers. x[i * x_stride]: its first number.
template <int kWidth, int kQuads, int kQueries, int kPass>
inline __attribute__((always_inline)) void add_runs(const TileRuns& from, int first, int end, const int8_t* x,
                                                    int64_t x_stride, const int32_t* totals, IntLanes* out) {
  typename Tiles::template Sums<kWidth> sums[kQueries];
  for (int i = 0; i < kQueries; ++i) sums[i].start(totals[i]);
  x += 4 * kQuads * first;
  for (int r = first; r < end; ++r, x += 4 * kQuads) {
    const uint8_t* tile = from.tiles + r * from.stride;
    for (int q = 0; q < kQuads; ++q, tile += tile_stride(kWidth)) {
      const auto codes = Tiles::template codes<kWidth, kPass>(tile);
      for (int i = 0; i < kQueries; ++i) sums[i].template add<kPass>(codes, x + i * x_stride + 4 * q);
    }
  }
  for (int i = 0; i < kQueries; ++i) sums[i].template lanes<kPass>(out[i]);
}

template <int kWidth, int kQuads, int kQueries, int... kPass>
inline __attribute__((always_inline)) void add_passes(const TileRuns& from, int first, int end, const int8_t* x,
                                                      int64_t x_stride, const int32_t* totals, IntLanes* out,
                                                      std::integer_sequence<int, kPass...>) {
  (add_runs<kWidth, kQuads, kQueries, kPass>(from, first, end, x, x_stride, totals, out), ...);
}

// out[i] = products of query i with all tiles.
template <int kWidth, int kQuads, int kQueries, typename Set = Tiles>
inline __attribute__((always_inline)) void products(const TileRuns& from, const int8_t* x, int64_t x_stride,
                                                    const int32_t* totals, IntLanes* out) {
  using Sums = typename Tiles::template Sums<kWidth>;
  if constexpr (kQueries == 4 && Set::kQuadruples) {
    return Set::template products_4<kWidth, kQuads>(from.tiles, from.runs, from.stride, x, x_stride, out);
  }
  constexpr int kRuns = Sums::kSpan / kQuads;
  const std::make_integer_sequence<int, Sums::kPasses> passes;
  add_passes<kWidth, kQuads, kQueries>(from, 0, from.runs < kRuns ? from.runs : kRuns, x, x_stride, totals, out,
                                       passes);
  for (int r = kRuns; r < from.runs; r += kRuns) {
    IntLanes more[kQueries];
    add_passes<kWidth, kQuads, kQueries>(from, r, from.runs - r < kRuns ? from.runs : r + kRuns, x, x_stride, totals,
                                         more, passes);
    for (int i = 0; i < kQueries; ++i) out[i] = out[i] + more[i];
  }
}

// The codes of `count` tiles, a byte each.
inline void unpack_tiles(int width, const uint8_t* tiles, int count, uint8_t* out) {
  with_tile_width(width, [&](auto w) {
    if constexpr (w() == kUnpacked || w() == 8) {
      std::memcpy(out, tiles, size_t(count) * kTileCodes);
    } else {
      for (int t = 0; t < count; ++t) {
        Tiles::store(Tiles::template codes<w(), 0>(tiles + t * tile_stride(w())), out + t * kTileCodes);
      }
    }
  });
}

// Scales of 16 narrow rows: 2^((code - 128) / 16), put together from the sixteen fractions of an octave; 0 for code 0.
inline void narrow_scales(const uint8_t* codes, float* scales) {
#if defined(__AVX512F__)
  const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const __m512i fractions = _mm512_loadu_si512(kScaleTables.scales + 128);
  const __m512i octaves = _mm512_slli_epi32(_mm512_srli_epi32(code, 4), 23);
  const __m512i sums = _mm512_add_epi32(_mm512_permutexvar_epi32(code, fractions), octaves);
  const __mmask16 some = _mm512_test_epi32_mask(code, code);
  _mm512_storeu_si512(scales, _mm512_maskz_sub_epi32(some, sums, _mm512_set1_epi32(8 << 23)));
#elif defined(__AVX2__)
  const __m256i* fractions = reinterpret_cast<const __m256i*>(kScaleTables.scales + 128);
  for (int h = 0; h < 2; ++h) {
    const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * h)));
    const __m256i low = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(fractions), code);
    const __m256i high = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(fractions + 1), code);
    const __m256 third_bit = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
    const __m256 fraction = _mm256_blendv_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), third_bit);
    const __m256i octaves =
        _mm256_sub_epi32(_mm256_slli_epi32(_mm256_srli_epi32(code, 4), 23), _mm256_set1_epi32(8 << 23));
    const __m256i sums = _mm256_add_epi32(_mm256_castps_si256(fraction), octaves);
    const __m256i none = _mm256_cmpeq_epi32(code, _mm256_setzero_si256());
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(scales + 8 * h), _mm256_andnot_si256(none, sums));
  }
#else
  for (int r = 0; r < kBlockSlots; ++r) scales[r] = kScaleTables.scales[codes[r]];
#endif
}

// Scales of `count` rows from row `first` on, to a whole number of blocks.
inline void read_scales(const Rows& rows, int first, int count, float* scales) {
  const uint8_t* stored = rows.scales + first * scale_bytes(rows.bits);
  for (int r = 0; r < count; r += kBlockSlots) {
    if (is_narrow(rows.bits)) {
      narrow_scales(stored + r, scales + r);
    } else {
      for (int i = r; i < r + kBlockSlots; ++i) scales[i] = row_scale(rows.bits, stored + 2 * i);
    }
  }
}

}  // namespace
