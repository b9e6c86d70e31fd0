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

// Sums of one group of rows, 16 channels at a time.
template <int kWidth, int kQueries>
inline void sum_group(TileRuns group, int dim, const int8_t* weights, const int32_t* totals, const float* factors,
                      float* acc) {
  IntLanes out[kQueries];
  for (int c = 0; c < dim; c += kTileLanes, group.tiles += 4 * tile_stride(kWidth)) {
    products<kWidth, 4, kQueries>(group, weights, kGroupRows, totals, out);
    for (int i = 0; i < kQueries; ++i) {
      float* a = acc + int64_t(i) * dim + c;
      store(a, load(a) + to_float(out[i]) * set1(factors[i]));
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
    TileRuns group{values.codes + r / kBlockSlots * block, blocks, block};
    if (unpack) {
      unpack_tiles(values.bits, group.tiles, blocks * dim / 4, unpacked);
      group = {unpacked, blocks, int64_t(dim) * kBlockSlots};
    }
    for_query_tiles(n, [&](auto size, int first) {
      with_tile_width(unpack ? kUnpacked : values.bits, [&](auto width) {
        sum_group<width(), size()>(group, dim, codes[first], totals + first, factors + first,
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
