// V sums: packed rows weighted by a softmax. Included by attend_loops.h.
#pragma once

#include "cache/attend_products.h"

namespace {

// Fewer than 16 numbers, filled up with zeros.
inline Lanes load_rows(const float* x, int n) {
  Lanes out = set1(0.0f);
  std::memcpy(&out, x, size_t(n) * sizeof(float));
  return out;
}

// Up to 16 products w * scale of rows that there are, zeros after them.
inline Lanes scaled_rows(const float* w, const float* scales, int rows) {
  if (rows <= 0) return set1(0.0f);
  return (rows >= kLanes ? load(w) : load_rows(w, rows)) * load(scales);
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

// Groups of rows that are summed at a time, `rows` in all, and the weights of `n` queries for them, query by query.
// Weights first, all of them: they do not wait for each other, as a group's sums would wait for its weights.
struct WeightedGroups {
  static constexpr int kMost = kPartRows / kGroupRows, kMostOfMany = 4;

  int rows, n, count;
  alignas(64) int8_t codes[kMaxQueries * kMostOfMany * kGroupRows];
  float factors[kMaxQueries * kMostOfMany];
  int32_t totals[kMaxQueries * kMostOfMany];

  static int most(int n) { return n > kQueryTile ? kMostOfMany : kMost; }
  static_assert(kQueryTile * kMost <= kMaxQueries * kMostOfMany, "few queries fit as well");

  // offsets[q]: what codes that count from zero add to every channel of query q.
  void quantize(const Rows& values, int first, const float* weights, int64_t stride, float factor, float* offsets) {
    alignas(64) float scales[kPartRows];
    read_scales(values, first, rows, scales);
    for (int q = 0; q < n; ++q) {
      for (int g = 0; g < count; ++g) {
        const int r = g * kGroupRows, left = rows - r, at = q * count + g;
        const float* w = weights + q * stride + first + r;
        const float unit = quantize_weights(scaled_rows(w, scales + r, left),
                                            scaled_rows(w + kLanes, scales + r + kLanes, left - kLanes),
                                            codes + at * kGroupRows, totals + at) *
                           factor;
        factors[at] = 2.0f * unit;
        offsets[q] = offsets[q] - unit * float(((1 << values.bits) - 1) * totals[at]);
      }
    }
  }
};

// Adds the sums of queries first .. to acc, 16 channels at a time. tiles: of the groups' blocks, `stride` bytes apart.
template <int kWidth, int kQueries>
inline void sum_groups(const WeightedGroups& groups, int first, const uint8_t* tiles, int64_t stride, int dim,
                       float* acc) {
  int blocks = (groups.rows + kBlockSlots - 1) / kBlockSlots;
  for (int g = 0; g < groups.count; ++g, blocks -= 2, tiles += 2 * stride) {
    const int at = first * groups.count + g;
    float factors[kQueries];
    int32_t totals[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      factors[i] = groups.factors[at + i * groups.count];
      totals[i] = groups.totals[at + i * groups.count];
    }
    TileRuns group{tiles, std::min(2, blocks), stride};
    for (int c = 0; c < dim; c += kTileLanes, group.tiles += 4 * tile_stride(kWidth)) {
      for (int b = 0; b < 2; ++b) fetch_ahead(group.tiles + b * stride, 4 * tile_stride(kWidth));
      IntLanes out[kQueries];
      products<kWidth, 4, kQueries>(group, groups.codes + int64_t(at) * kGroupRows, groups.count * kGroupRows, totals,
                                    out);
      for (int i = 0; i < kQueries; ++i) {
        float* a = acc + int64_t(i) * dim + c;
        store(a, load(a) + to_float(out[i]) * set1(factors[i]));
      }
    }
  }
}

// Adds rows first .. first + rows - 1, a group or less. Rows in the inner loop, so that sums stay in registers.
template <int kQueries>
inline void add_rows_16(const Rows& values, int first, int rows, const float (*weights)[kGroupRows], float* acc) {
  for (int c = 0; c < values.dim; c += kLanes) {
    const uint8_t* row = values.codes + 2 * (int64_t(first) * values.dim + c);
    Lanes sums[kQueries];
    for (int i = 0; i < kQueries; ++i) sums[i] = load(acc + int64_t(i) * values.dim + c);
    for (int r = 0; r < rows; ++r, row += 2 * values.dim) {
      const Lanes levels = levels_16(row);
      for (int i = 0; i < kQueries; ++i) sums[i] = sums[i] + set1(weights[i][r]) * levels;
    }
    for (int i = 0; i < kQueries; ++i) store(acc + int64_t(i) * values.dim + c, sums[i]);
  }
}

void accumulate_16(const Rows& values, const float* weights, int64_t stride, int n, float* acc) {
  float scaled[kMaxQueries][kGroupRows];
  for (int first = 0; first < values.count; first += kGroupRows) {
    const int rows = std::min(kGroupRows, values.count - first);
    for (int r = 0; r < rows; ++r) {
      const float scale = row_scale(16, values.scales + 2 * (first + r)) * kUnit16;
      for (int q = 0; q < n; ++q) scaled[q][r] = weights[q * stride + first + r] * scale;
    }
    for_query_tiles(n, [&](auto size, int q) {
      add_rows_16<size()>(values, first, rows, scaled + q, acc + int64_t(q) * values.dim);
    });
  }
}

void accumulate(const Rows& values, const float* weights, int64_t stride, int n, float* acc) {
  const int dim = values.dim;
  std::fill_n(acc, int64_t(n) * dim, 0.0f);
  if (values.bits == 16) return accumulate_16(values, weights, stride, n, acc);
  const float factor = level_factor(values.bits, values.bits, values.mode);
  const int64_t block = block_bytes(values.bits, dim);
  const bool unpack = n > kQueryTile && values.bits <= 4;
  alignas(64) uint8_t unpacked[kMaxHeadDim * WeightedGroups::kMostOfMany * kGroupRows];
  float offsets[kMaxQueries] = {};
  WeightedGroups groups;
  groups.n = n;
  const int most = WeightedGroups::most(n) * kGroupRows;
  for (int r = 0; r < values.count; r += most) {
    groups.rows = std::min(most, values.count - r);
    groups.count = (groups.rows + kGroupRows - 1) / kGroupRows;
    groups.quantize(values, r, weights, stride, factor, offsets);
    const uint8_t* tiles = values.codes + r / kBlockSlots * block;
    if (unpack) {
      unpack_tiles(values.bits, tiles, (groups.rows + kBlockSlots - 1) / kBlockSlots * dim / 4, unpacked);
      tiles = unpacked;
    }
    for_query_tiles(n, [&](auto size, int first) {
      with_tile_width(unpack ? kUnpacked : values.bits, [&](auto width) {
        sum_groups<width(), size()>(groups, first, tiles, unpack ? int64_t(dim) * kBlockSlots : block, dim,
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

}  // namespace
