// K scores: what queries make of packed rows. Included by attend_loops.h.
#pragma once

#include "cache/attend_products.h"

namespace {

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

// What the scores of a segment's rows have in common.
struct ScoreFactors {
  Runs bands;
  float factors[kMaxQueries][kMaxBands], starts[kMaxQueries];

  ScoreFactors(const Rows& keys, const Queries& queries) : bands(bands_of(keys.bits, keys.dim)) {
    float levels[kMaxBands];
    for (int b = 0; b < bands.count; ++b) levels[b] = level_factor(keys.bits, bands.width[b], keys.mode);
    for (int q = 0; q < queries.n; ++q) {
      starts[q] = 0.0f;
      for (int b = 0; b < bands.count; ++b) {
        const float unit = queries.scales[q * kMaxBands + b] * levels[b];
        factors[q][b] = 2.0f * unit;
        starts[q] = starts[q] - unit * float(((1 << bands.width[b]) - 1) * queries.sums[q * kMaxBands + b]);
      }
    }
  }
};

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

// A band of consecutive blocks: its tiles lie in runs of kQuads, blocks are `stride` bytes apart.
struct BandTiles {
  const uint8_t* tiles;
  int blocks, runs;
  int64_t stride;
};

// scores[i * stride + r] = before + products * factors[i], where the first band starts with starts[i].
template <int kWidth, int kQuads, int kQueries>
inline void score_band(const BandTiles& band, const int8_t* x, int64_t x_stride, const int32_t* totals,
                       const float (*factors)[kMaxBands], const float* starts, float* scores, int64_t stride) {
  for (int r = 0; r < band.blocks; ++r) {
    if (starts != nullptr) fetch_ahead(band.tiles + r * band.stride, band.stride);
    IntLanes out[kQueries];
    products<kWidth, kQuads, kQueries>({band.tiles + r * band.stride, band.runs, kQuads * tile_stride(kWidth)}, x,
                                       x_stride, totals, out);
    for (int i = 0; i < kQueries; ++i) {
      float* s = scores + i * stride + r * kBlockSlots;
      const Lanes before = starts != nullptr ? set1(starts[i]) : load(s);
      store(s, before + to_float(out[i]) * set1(factors[i][0]));
    }
  }
}

// Scores of `blocks` blocks: start + sum over bands of products * factor, without the scale of the row. Band by band,
// so that the blocks of a loop do not wait for each other.
template <int kQuads>
void score_blocks(const uint8_t* tiles, int blocks, const int* widths, const ScoreFactors& common,
                  const Queries& queries, int dim, float* scores, int64_t stride) {
  const Runs& bands = common.bands;
  const int quads = bands.channels / 4;
  int64_t block = 0;
  for (int b = 0; b < bands.count; ++b) block += quads * tile_stride(widths[b]);
  for (int b = 0; b < bands.count; ++b) {
    for_query_tiles(queries.n, [&](auto size, int first) {
      int32_t totals[size()];
      for (int i = 0; i < size(); ++i) totals[i] = queries.sums[(first + i) * kMaxBands + b];
      with_tile_width(widths[b], [&](auto width) {
        score_band<width(), kQuads, size()>({tiles, blocks, quads / kQuads, block},
                                            queries.codes + int64_t(first) * dim + b * bands.channels, dim, totals,
                                            reinterpret_cast<const float (*)[kMaxBands]>(&common.factors[first][b]),
                                            b == 0 ? common.starts + first : nullptr, scores + first * stride, stride);
      });
    });
    tiles += quads * tile_stride(widths[b]);
  }
}

template <int kQuads>
void score_narrow(const Rows& keys, const Queries& queries, float* scores, int64_t stride) {
  constexpr int kMostBlocks = kPartRows / kBlockSlots, kUnpackedBlocks = 4;
  const ScoreFactors common(keys, queries);
  const Runs& bands = common.bands;
  const bool unpack = queries.n > kQueryTile;
  const int64_t block = block_bytes(keys.bits, keys.dim);
  alignas(64) uint8_t unpacked[kUnpackedBlocks * kMaxHeadDim * kBlockSlots];
  int widths[kMaxBands];
  for (int b = 0; b < bands.count; ++b) widths[b] = unpack && bands.width[b] <= 4 ? kUnpacked : bands.width[b];
  const int all = (keys.count + kBlockSlots - 1) / kBlockSlots, most = unpack ? kUnpackedBlocks : kMostBlocks;
  for (int first = 0; first < all; first += most) {
    const int blocks = std::min(most, all - first);
    const uint8_t* tiles = keys.codes + first * block;
    if (unpack) {
      uint8_t* out = unpacked;
      const int count = bands.channels / 4;
      for (int r = 0; r < blocks; ++r) {
        for (int b = 0; b < bands.count; ++b) {
          unpack_tiles(bands.width[b], tiles, count, out);
          tiles += count * tile_bytes(bands.width[b]);
          out += count * kTileCodes;
        }
      }
      tiles = unpacked;
    }
    float* to = scores + first * kBlockSlots;
    score_blocks<kQuads>(tiles, blocks, widths, common, queries, keys.dim, to, stride);
    alignas(64) float scales[kPartRows];
    read_scales(keys, first * kBlockSlots, blocks * kBlockSlots, scales);
    for (int q = 0; q < queries.n; ++q) {
      float* s = to + q * stride;
      for (int r = 0; r < blocks * kBlockSlots; r += kLanes) store(s + r, load(s + r) * load(scales + r));
    }
  }
}

void score(const Rows& keys, const Queries& queries, float* scores, int64_t stride) {
  if (keys.bits == 16) return score_16(keys, queries, scores, stride);
  if (bands_of(keys.bits, keys.dim).channels == 8) return score_narrow<2>(keys, queries, scores, stride);
  score_narrow<4>(keys, queries, scores, stride);
}

}  // namespace
