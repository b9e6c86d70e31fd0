// Products with weight matrices on the int8 matrix products of Armv8.6, dot products for a single token.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "linear/int4.h"
#include "linear/linear_kernels.h"
#include "linear/linear_tiles.h"
#include "linear/table.h"

namespace adakv {
namespace i8mm {
namespace {

#include "linear/linear_inputs.h"

#include "linear/linear_sdot.h"

#include "linear/linear_neon.h"

// SMMLA multiplies 8 channels of two rows with those of two tokens: [row 0 token 0, row 0 token 1, row 1 token 0, ...].
// So a group's codes of two tokens alternate in runs of 8, and of two rows are brought together by interleaving quads.

// Eight channels of row pairs: rows 0 and 1, 2 and 3, ...
struct RowPairs {
  uint8x16_t rows[4];
};

// Runs i and i + 1 (their bytes) of interleaved rows.
inline RowPairs zip_runs(const uint8_t* first, const uint8_t* second) {
  RowPairs out;
  for (int h = 0; h < 2; ++h) {
    const uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(first + 16 * h));
    const uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(second + 16 * h));
    out.rows[2 * h] = vreinterpretq_u8_u32(vzip1q_u32(a, b));
    out.rows[2 * h + 1] = vreinterpretq_u8_u32(vzip2q_u32(a, b));
  }
  return out;
}

// ints[pair of tokens][pair of rows] += products with channels 8 k to 8 k + 7.
template <int n>
inline void add_octet(const RowPairs& codes, const TileGroup<n>& tile, int k, int32x4_t ints[][4]) {
  for (int p = 0; p < n / 2; ++p) {
    const int8x16_t x = vld1q_s8(tile.codes[2 * p] + 16 * k);
    for (int r = 0; r < 4; ++r) ints[p][r] = vmmlaq_s32(ints[p][r], vreinterpretq_s8_u8(codes.rows[r]), x);
  }
}

template <int n>
inline void start_pairs(const TileGroup<n>& tile, int32x4_t ints[][4]) {
  for (int p = 0; p < n / 2; ++p) {
    const int32x2_t start = vld1_s32(tile.starts + 2 * p);
    for (int r = 0; r < 4; ++r) ints[p][r] = vcombine_s32(start, start);
  }
}

// sums += ints * scales of the tokens * steps of the rows.
template <int n>
inline void add_scaled_pairs(const int32x4_t ints[][4], const TileGroup<n>& tile, const Floats8& steps,
                             float32x4_t sums[][4]) {
  const float32x4_t paired[4] = {vzip1q_f32(steps.rows[0], steps.rows[0]), vzip2q_f32(steps.rows[0], steps.rows[0]),
                                 vzip1q_f32(steps.rows[1], steps.rows[1]), vzip2q_f32(steps.rows[1], steps.rows[1])};
  for (int p = 0; p < n / 2; ++p) {
    const float32x2_t two = vld1_f32(tile.scales + 2 * p);
    const float32x4_t scales = vcombine_f32(two, two);
    for (int r = 0; r < 4; ++r) {
      sums[p][r] = vfmaq_f32(sums[p][r], vmulq_f32(vcvtq_f32_s32(ints[p][r]), scales), paired[r]);
    }
  }
}

// Sums of pairs as those of tokens.
template <int n>
inline void split_pairs(const float32x4_t sums[][4], Floats8* tokens) {
  for (int p = 0; p < n / 2; ++p) {
    for (int h = 0; h < 2; ++h) {
      tokens[2 * p].rows[h] = vuzp1q_f32(sums[p][2 * h], sums[p][2 * h + 1]);
      tokens[2 * p + 1].rows[h] = vuzp2q_f32(sums[p][2 * h], sums[p][2 * h + 1]);
    }
  }
}

template <int n>
void int4_tile(const Int4Matrix& matrix, int64_t block, const TileGroup<n>* tile, const float* residual, float* out,
               int64_t stride) {
  const int groups = matrix.groups();
  const uint8_t* bytes = matrix.blocks + block * groups * kInt4BlockBytes;
  float32x4_t pairs[n / 2][4] = {};
  Floats8 sums[n], shifts[n] = {};
  for (int g = 0; g < groups; ++g) {
    const uint8_t* group = bytes + g * kInt4BlockBytes;
    int32x4_t ints[n / 2][4];
    start_pairs(tile[g], ints);
    for (int k = 0; k < 2; ++k) {
      const RowPairs both = zip_runs(group + 64 * k, group + 64 * k + 32);
      RowPairs low, high;
      for (int r = 0; r < 4; ++r) low.rows[r] = nibble_low(both.rows[r]);
      for (int r = 0; r < 4; ++r) high.rows[r] = nibble_high(both.rows[r]);
      add_octet(low, tile[g], k, ints);
      add_octet(high, tile[g], k + 2, ints);
    }
    add_scaled_pairs(ints, tile[g], widen_unsigned(group + 128), pairs);
  }
  for (int g = 0; g < groups; ++g) add_shifts<n>(bytes + g * kInt4BlockBytes + 136, tile[g], shifts);
  split_pairs<n>(pairs, sums);
  store_int4<n>(matrix, block, sums, shifts, residual, out, stride);
}

template <int n>
void table_tile(const Table& table, int64_t block, const TileGroup<n>* tile, int rows, float* out, int64_t stride) {
  const int groups = table.groups();
  const uint8_t* bytes = table.codes + block * groups * kTableBlockBytes;
  const uint16_t* halves = table.scales + block * groups * kBlockRows;
  float32x4_t pairs[n / 2][4] = {};
  for (int g = 0; g < groups; ++g, bytes += kTableBlockBytes, halves += kBlockRows, ++tile) {
    int32x4_t ints[n / 2][4];
    start_pairs(*tile, ints);
    const RowPairs high_bits = zip_runs(bytes + 128, bytes + 160);  // quads 2 k and 2 k + 1 in bits 2 k and 2 k + 1
    const RowPairs first = zip_runs(bytes, bytes + 32), second = zip_runs(bytes + 64, bytes + 96);
    RowPairs codes;
    for (int r = 0; r < 4; ++r) codes.rows[r] = vorrq_u8(nibble_low(first.rows[r]), pair_of<0>(high_bits.rows[r]));
    add_octet(codes, *tile, 0, ints);
    for (int r = 0; r < 4; ++r) codes.rows[r] = vorrq_u8(nibble_low(second.rows[r]), pair_of<1>(high_bits.rows[r]));
    add_octet(codes, *tile, 1, ints);
    for (int r = 0; r < 4; ++r) codes.rows[r] = vorrq_u8(nibble_high(first.rows[r]), pair_of<2>(high_bits.rows[r]));
    add_octet(codes, *tile, 2, ints);
    for (int r = 0; r < 4; ++r) codes.rows[r] = vorrq_u8(nibble_high(second.rows[r]), pair_of<3>(high_bits.rows[r]));
    add_octet(codes, *tile, 3, ints);
    add_scaled_pairs(ints, *tile, widen_halves(halves), pairs);
  }
  Floats8 sums[n];
  split_pairs<n>(pairs, sums);
  for (int t = 0; t < n; ++t) store_rows(out + t * stride, sums[t], rows);
}

void table(const Table& table, int64_t first, int64_t rows, const Tokens& tokens, float* out, int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int n) {
    for_tiles<kNeonTile>(tokens, table.groups(), [&](auto size, int t, const auto* tile) {
      if constexpr (size == 1) {
        table_tile_neon<1>(table, block, tile, n, out + t * stride + r, stride);
      } else {
        table_tile<size>(table, block, tile, n, out + t * stride + r, stride);
      }
    });
  });
}

void int4(const Int4Matrix& matrix, int64_t first, int64_t rows, const Tokens& tokens, const float* residual,
          float* out, int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int) {
    for_tiles<kNeonTile>(tokens, matrix.groups(), [&](auto size, int t, const auto* tile) {
      const int64_t to = t * stride + r;
      const float* added = residual == nullptr ? nullptr : residual + to;
      if constexpr (size == 1) {
        int4_tile_neon<1>(matrix, block, tile, added, out + to, stride);
      } else {
        int4_tile<size>(matrix, block, tile, added, out + to, stride);
      }
    });
  });
}

}  // namespace

const LinearKernels kLinearKernels = {"i8mm", kNeonTile, true, normalize, swiglu, quantize, table, int4};

}  // namespace i8mm
}  // namespace adakv
