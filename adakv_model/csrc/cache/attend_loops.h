// The kernels of attend_kernels.h over a set of tile products. Included once by each attend_<isa>.cpp, which defines,
// in an anonymous namespace of its own, a struct `Tiles`:
//   unpack<kWidth>(tile, out)      the 64 codes of a tile, one byte each
//   products<kWidth, kQueries>(...)   sums[i] = sum over tiles t of codes of t * x[i][4 t .. 4 t + 3], exactly.
//       Width 0 is an unpacked tile with codes of at most 4 bits. The tiles lie in `runs` runs of `quads`, `stride`
//       bytes apart. totals[i]: the sum of x[i] over all of these tiles, for those who need signed codes.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cache/attend_kernels.h"
#include "cache/lanes.h"

namespace {

using namespace adakv;

constexpr int kUnpacked = 0;   // width of tiles that lie unpacked, a byte a code of at most 4 bits
constexpr int kQueryTile = 4;  // queries whose sums stay in registers
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kSmallest = 1e-30f;  // what is not larger becomes 0: 127 divided by it must be finite
constexpr float kRound = 0x1.8p23f;  // added and subtracted: round to the nearest integer, ties to even

inline int tile_stride(int width) { return width == kUnpacked ? kTileCodes : tile_bytes(width); }

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

// 16 kBlocks results at a time, so that additions need not wait for each other.
template <int kBlocks>
inline void transform_block(const float* x, const float* columns, int dim, float* out) {
  Lanes sum[kBlocks];
  for (int b = 0; b < kBlocks; ++b) sum[b] = set1(x[0]) * load(columns + kLanes * b);
  for (int j = 1; j < dim; ++j) {
    const Lanes y = set1(x[j]);
    for (int b = 0; b < kBlocks; ++b) sum[b] = sum[b] + y * load(columns + int64_t(j) * dim + kLanes * b);
  }
  for (int b = 0; b < kBlocks; ++b) store(out + kLanes * b, sum[b]);
}

void transform(const float* x, const float* columns, int dim, float* out) {
  int i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes) transform_block<4>(x, columns + i, dim, out + i);
  for (; i < dim; i += kLanes) transform_block<1>(x, columns + i, dim, out + i);
}

void quantize_query(const float* x, int dim, int8_t* codes, float* scales, int32_t* sums) {
  const int bands = n_bands(dim), channels = dim / bands;
  for (int b = 0; b < bands; ++b, x += channels, codes += channels) {
    float peak = 0.0f;
    for (int i = 0; i < channels; ++i) peak = std::max(peak, std::fabs(x[i]));
    const float inverse = peak > kSmallest ? 127.0f / peak : 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < channels; ++i) {
      const int32_t code = int32_t((x[i] * inverse + kRound) - kRound);
      codes[i] = int8_t(code);
      sum += code;
    }
    scales[b] = peak / 127.0f;
    sums[b] = sum;
  }
}

// Scales of `count` rows from row `first` on, to a whole number of blocks.
inline void read_scales(const Rows& rows, int first, int count, float* scales) {
  const int n = (count + kBlockSlots - 1) / kBlockSlots * kBlockSlots;
  const uint8_t* stored = rows.scales + first * scale_bytes(rows.bits);
  if (is_narrow(rows.bits)) {
    for (int r = 0; r < n; ++r) scales[r] = kScaleTables.scales[stored[r]];
  } else {
    for (int r = 0; r < n; ++r) scales[r] = row_scale(rows.bits, stored + 2 * r);
  }
}

// Every band of a row, where a uniform row has equal ones.
struct Bands {
  int count, channels;
  int width[kMaxBands];

  explicit Bands(int bits, int dim) : count(n_bands(dim)), channels(dim / count) {
    for (int b = 0; b < count; ++b) width[b] = is_uniform(bits) ? bits : (bits >> (8 * b)) & 255;
  }
};

// Scores of 16 rows: start + sum over bands of products * factor, times the scale of the row.
template <int kQueries>
inline void score_block(const uint8_t* tiles, const Bands& bands, const int* widths, const Queries& queries, int first,
                        int dim, const float (*factors)[kMaxBands], const float* starts, const float* scales,
                        float* scores, int64_t stride) {
  Lanes sums[kQueries];
  IntLanes products[kQueries];
  for (int i = 0; i < kQueries; ++i) sums[i] = set1(starts[first + i]);
  const int8_t* x = queries.codes + int64_t(first) * dim;
  const int quads = bands.channels / 4;
  for (int b = 0; b < bands.count; ++b, x += bands.channels) {
    int32_t totals[kQueries];
    for (int i = 0; i < kQueries; ++i) totals[i] = queries.sums[(first + i) * kMaxBands + b];
    with_tile_width(widths[b], [&](auto width) {
      Tiles::template products<width(), kQueries>(tiles, 1, quads, 0, x, dim, totals, products);
    });
    tiles += quads * tile_stride(widths[b]);
    for (int i = 0; i < kQueries; ++i) {
      sums[i] = sums[i] + to_float(products[i]) * set1(factors[first + i][b]);
    }
  }
  const Lanes row = load(scales);
  for (int i = 0; i < kQueries; ++i) store(scores + i * stride, sums[i] * row);
}

// 16-bit rows keep float queries: an int8 one would be the larger error.
void score_16(const Rows& keys, const Queries& queries, float* scores, int64_t stride) {
  for (int r = 0; r < keys.count; r += kBlockSlots) {
    alignas(64) float scales[kBlockSlots];
    read_scales(keys, r, kBlockSlots, scales);
    const uint8_t* block = keys.codes + r / kBlockSlots * block_bytes(16, keys.dim);
    for_query_tiles(queries.n, [&](auto size, int first) {
      Lanes sums[size()];
      for (Lanes& sum : sums) sum = set1(0.0f);
      for (int c = 0; c < keys.dim; ++c) {
        const Lanes levels = levels_16(block + 2 * kLanes * c);
        for (int i = 0; i < size(); ++i) {
          sums[i] = sums[i] + set1(queries.values[int64_t(first + i) * keys.dim + c]) * levels;
        }
      }
      const Lanes row = load(scales) * set1(kUnit16);
      for (int i = 0; i < size(); ++i) store(scores + (first + i) * stride + r, sums[i] * row);
    });
  }
}

void score(const Rows& keys, const Queries& queries, float* scores, int64_t stride) {
  if (keys.bits == 16) return score_16(keys, queries, scores, stride);
  const Bands bands(keys.bits, keys.dim);
  float factors[kMaxQueries][kMaxBands], starts[kMaxQueries];
  for (int q = 0; q < queries.n; ++q) {
    starts[q] = 0.0f;
    for (int b = 0; b < bands.count; ++b) {
      const float unit = queries.scales[q * kMaxBands + b] * level_factor(keys.bits, bands.width[b], keys.mode);
      factors[q][b] = 2.0f * unit;
      starts[q] = starts[q] - unit * float(((1 << bands.width[b]) - 1) * queries.sums[q * kMaxBands + b]);
    }
  }
  const bool unpack = queries.n > kQueryTile;
  alignas(64) uint8_t unpacked[kMaxHeadDim * kBlockSlots];
  int widths[kMaxBands];
  for (int b = 0; b < bands.count; ++b) widths[b] = unpack && bands.width[b] <= 4 ? kUnpacked : bands.width[b];
  for (int r = 0; r < keys.count; r += kBlockSlots) {
    const uint8_t* tiles = keys.codes + r / kBlockSlots * block_bytes(keys.bits, keys.dim);
    alignas(64) float scales[kBlockSlots];
    read_scales(keys, r, kBlockSlots, scales);
    if (unpack) {
      uint8_t* out = unpacked;
      for (int b = 0; b < bands.count; ++b) {
        with_tile_width(bands.width[b], [&](auto width) {
          for (int t = 0; t < bands.channels / 4; ++t, tiles += tile_bytes(width), out += kTileCodes) {
            Tiles::template unpack<width()>(tiles, out);
          }
        });
      }
      tiles = unpacked;
    }
    for_query_tiles(queries.n, [&](auto size, int first) {
      score_block<size()>(tiles, bands, widths, queries, first, keys.dim, factors, starts, scales,
                          scores + first * stride + r, stride);
    });
  }
}

// The last n - full of x, filled up with minus infinity.
inline Lanes load_tail(const float* x, int64_t n) {
  Lanes tail = set1(kMinusInfinity);
  std::memcpy(&tail, x, size_t(n) * sizeof(float));
  return tail;
}

inline float largest(const float* x, int64_t n) {
  Lanes peak = set1(kMinusInfinity);
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) peak = largest(load(x + i), peak);
  if (full < n) peak = largest(load_tail(x + full, n - full), peak);
  return lane_max(peak);
}

// Element i always goes to lane i % 16.
float softmax_part(float* x, int64_t n, float* peak) {
  *peak = largest(x, n);
  if (!(*peak > kMinusInfinity)) {
    std::memset(x, 0, size_t(n) * sizeof(float));
    return 0.0f;
  }
  const Lanes shift = set1(*peak);
  Lanes sum = set1(0.0f);
  const int64_t full = n / kLanes * kLanes;
  for (int64_t i = 0; i < full; i += kLanes) {
    const Lanes e = exp_lanes(load(x + i) - shift);
    sum = sum + e;
    store(x + i, e);
  }
  if (full < n) {
    const Lanes e = exp_lanes(load_tail(x + full, n - full) - shift);
    sum = sum + e;
    std::memcpy(x + full, &e, size_t(n - full) * sizeof(float));
  }
  return lane_sum(sum);
}

// int8 weights of one query for a group of 32 rows: round(w * 127 / largest). Returns largest / 127; sum: of the
// weights.
inline float quantize_weights(const Lanes& first, const Lanes& second, int8_t* codes, int32_t* sum) {
  const float peak = lane_max(largest(first, second));
  const Lanes inverse = set1(peak > kSmallest ? 127.0f / peak : 0.0f);
  int32_t rounded[kGroupRows], total = 0;
  store(rounded, round_lanes(first * inverse));
  store(rounded + kLanes, round_lanes(second * inverse));
  for (int r = 0; r < kGroupRows; ++r) total += rounded[r];
  for (int r = 0; r < kGroupRows; ++r) codes[r] = int8_t(rounded[r]);
  *sum = total;
  return peak * (1.0f / 127.0f);
}

// Fewer than 16 numbers, filled up with zeros.
inline Lanes load_rows(const float* x, int n) {
  Lanes out = set1(0.0f);
  std::memcpy(&out, x, size_t(n) * sizeof(float));
  return out;
}

// Sums of one group of rows, 16 channels at a time.
template <int kWidth, int kQueries>
inline void sum_group(const uint8_t* tiles, int blocks, int64_t stride, int dim, const int8_t* weights,
                      const int32_t* totals, const float* factors, float* acc) {
  IntLanes products[kQueries];
  for (int c = 0; c < dim; c += kTileLanes, tiles += 4 * tile_stride(kWidth)) {
    Tiles::template products<kWidth, kQueries>(tiles, blocks, 4, stride, weights, kGroupRows, totals, products);
    for (int i = 0; i < kQueries; ++i) {
      float* a = acc + int64_t(i) * dim + c;
      store(a, load(a) + to_float(products[i]) * set1(factors[i]));
    }
  }
}

void accumulate_16(const Rows& values, const float* weights, int64_t stride, int n, float* acc) {
  for (int r = 0; r < values.count; ++r) {
    const float scale = row_scale(16, values.scales + 2 * r) * kUnit16;
    const uint8_t* row = values.codes + int64_t(r) * 2 * values.dim;
    for (int q = 0; q < n; ++q) {
      const float w = weights[q * stride + r] * scale;
      float* a = acc + int64_t(q) * values.dim;
      for (int c = 0; c < values.dim; c += kLanes) store(a + c, load(a + c) + set1(w) * levels_16(row + 2 * c));
    }
  }
}

void accumulate(const Rows& values, const float* weights, int64_t stride, int n, float* acc) {
  const int dim = values.dim;
  std::fill_n(acc, int64_t(n) * dim, 0.0f);
  if (values.bits == 16) return accumulate_16(values, weights, stride, n, acc);
  const float factor = level_factor(values.bits, values.bits, values.mode);
  const int64_t block = block_bytes(values.bits, dim);
  const bool unpack = n > kQueryTile && values.bits <= 4;
  alignas(64) uint8_t unpacked[kMaxHeadDim * kGroupRows];
  alignas(64) int8_t codes[kMaxQueries][kGroupRows];
  float offsets[kMaxQueries] = {}, factors[kMaxQueries];
  int32_t totals[kMaxQueries];
  for (int r = 0; r < values.count; r += kGroupRows) {
    const int rows = std::min(kGroupRows, values.count - r), blocks = (rows + kBlockSlots - 1) / kBlockSlots;
    alignas(64) float scales[kGroupRows];
    read_scales(values, r, rows, scales);
    for (int q = 0; q < n; ++q) {
      const float* w = weights + q * stride + r;
      const Lanes first = (rows >= kLanes ? load(w) : load_rows(w, rows)) * load(scales);
      const Lanes second = rows == kGroupRows ? load(w + kLanes) * load(scales + kLanes)
                           : rows > kLanes    ? load_rows(w + kLanes, rows - kLanes) * load(scales + kLanes)
                                              : set1(0.0f);
      const float unit = quantize_weights(first, second, codes[q], totals + q) * factor;
      factors[q] = 2.0f * unit;
      offsets[q] = offsets[q] - unit * float(((1 << values.bits) - 1) * totals[q]);
    }
    const uint8_t* tiles = values.codes + r / kBlockSlots * block;
    int64_t apart = block;
    if (unpack) {
      with_tile_width(values.bits, [&](auto width) {
        for (int t = 0; t < blocks * dim / 4; ++t) {
          Tiles::template unpack<width()>(tiles + t * tile_bytes(width), unpacked + t * kTileCodes);
        }
      });
      tiles = unpacked;
      apart = int64_t(dim) * kBlockSlots;
    }
    for_query_tiles(n, [&](auto size, int first) {
      with_tile_width(unpack ? kUnpacked : values.bits, [&](auto width) {
        sum_group<width(), size()>(tiles, blocks, apart, dim, codes[first], totals + first, factors + first,
                                   acc + int64_t(first) * dim);
      });
    });
  }
  for (int q = 0; q < n; ++q) {
    for (int c = 0; c < dim; ++c) acc[int64_t(q) * dim + c] += offsets[q];
  }
}

void join(float* acc, float keep, const float* other, float take, int dim) {
  for (int c = 0; c < dim; c += kLanes) {
    store(acc + c, load(acc + c) * set1(keep) + load(other + c) * set1(take));
  }
}

void prediction_stats(const float* logits, int64_t vocab, int64_t token, float out[3]) {
  constexpr int64_t kBlock = 4096;  // float sums within a block, double across
  const float peak = largest(logits, vocab);
  double total = 0, weighted = 0;  // of e^x and x e^x, x relative to the peak
  for (int64_t start = 0; start < vocab; start += kBlock) {
    const int64_t end = start + kBlock < vocab ? start + kBlock : vocab;
    Lanes sum = set1(0.0f), sum_x = set1(0.0f);
    for (int64_t i = start; i < end; i += kLanes) {
      const Lanes x = (end - i >= kLanes ? load(logits + i) : load_tail(logits + i, end - i)) - set1(peak);
      const Lanes e = exp_lanes(x);
      sum = sum + e;
      sum_x = sum_x + e * largest(x, set1(-1e30f));  // 0 * -1e30 where nothing is
    }
    total += lane_sum(sum);
    weighted += lane_sum(sum_x);
  }
  const double log_total = std::log(total);
  out[0] = float(1.0 / total);
  out[1] = float(log_total - weighted / total);
  out[2] = float(log_total - double(logits[token] - peak));
}

constexpr AttendKernels table_named(const char* name) {
  return {name, transform, quantize_query, score, softmax_part, accumulate, join, prediction_stats};
}

}  // namespace
