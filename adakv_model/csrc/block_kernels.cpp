// Compiled once per instruction set with -DADAKV_ISA=<namespace>: products of int8 tokens with blocks of weight rows,
// and what makes the tokens int8. Without contraction, the plain loops give equal bits on every machine.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "block_simd.h"
#include "fast_exp.h"
#include "int4.h"
#include "table.h"

namespace adakv {
namespace ADAKV_ISA {
namespace {

constexpr int kTile = 4;   // tokens that share one unpacking of a block
constexpr int kLanes = 8;  // partial results of the plain loops, so that they vectorise

void normalize(const float* x, const float* weight, float eps, int channels, float* out) {
  float squares[kLanes] = {};
  for (int i = 0; i < channels; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) squares[j] += x[i + j] * x[i + j];
  }
  float sum = 0;
  for (float square : squares) sum += square;
  const float inverse = 1.0f / std::sqrt(sum / float(channels) + eps);
  for (int i = 0; i < channels; ++i) out[i] = x[i] * inverse * weight[i];
}

void swiglu(const float* gate, const float* up, int channels, float* out) {
  for (int i = 0; i < channels; ++i) {
    const float x = gate[i] < -80.0f ? -80.0f : gate[i];  // silu(-80) is -1e-33, its exponential finite
    out[i] = x / (1.0f + fast_exp(-x)) * up[i];
  }
}

void quantize(const float* x, int groups, const QuantizedToken& token) {
  for (int g = 0; g < groups; ++g, x += kGroup) {
    float peaks[kLanes] = {};
    for (int i = 0; i < kGroup; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const float size = std::fabs(x[i + j]);
        peaks[j] = size > peaks[j] ? size : peaks[j];
      }
    }
    float peak = 0;
    for (float lane : peaks) peak = lane > peak ? lane : peak;
    const float scale = peak / 127.0f, inverse = peak > 0 ? 127.0f / peak : 0.0f;
    int32_t rounded[kGroup], sum = 0;
    for (int j = 0; j < kGroup; ++j) rounded[j] = int32_t(std::nearbyint(x[j] * inverse));
    for (int j = 0; j < kGroup; ++j) sum += rounded[j];
    for (int j = 0; j < kGroup; ++j) token.codes[g * kGroup + j] = int8_t(rounded[j]);
    token.scales[g] = scale;
    token.sums[g] = sum;
    token.totals[g] = float(sum) * scale;
  }
}

// tile(integral constant n, t) for n tokens from t, in as few tiles as it takes.
template <typename Tile>
void for_tiles(int count, const Tile& tile) {
  int t = 0;
  for (; t + kTile <= count; t += kTile) tile(std::integral_constant<int, kTile>(), t);
  for (; t < count; ++t) tile(std::integral_constant<int, 1>(), t);
}

// One block of rows with kTokens tokens; rows: how many of the block's exist.
template <int kTokens>
void table_block(const uint8_t* codes, const uint16_t* halves, int groups, const QuantizedToken* tokens, int rows,
                 float* out, int64_t stride) {
  Sum sums[kTokens];
  for (Sum& sum : sums) sum = zero();
  for (int g = 0; g < groups; ++g) {
    Codes unpacked[kQuads];
    unpack_nibbles(codes + g * kTableBlockBytes, unpacked);
    add_pairs(codes + g * kTableBlockBytes + 128, unpacked);
    const Sum scales = widen_halves(halves + g * kBlockRows);
    for (int t = 0; t < kTokens; ++t) {
      const Ints products = dots(unpacked, tokens[t].codes + g * kGroup, -32 * tokens[t].sums[g]);
      sums[t] = fma(scaled(products, tokens[t].scales[g]), scales, sums[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    if (rows == kBlockRows) {
      store(out + t * stride, sums[t]);
    } else {
      float values[kBlockRows];
      store(values, sums[t]);
      std::copy(values, values + rows, out + t * stride);
    }
  }
}

void table(const Table& table, int64_t first, int64_t rows, const QuantizedToken* tokens, int count, float* out,
           int64_t stride) {
  const int groups = table.groups();
  for (int64_t r = 0; r < rows; r += kBlockRows) {
    const int64_t at = (first + r) / kBlockRows * groups;
    const int n = int(std::min<int64_t>(kBlockRows, rows - r));
    for_tiles(count, [&](auto size, int t) {
      table_block<size>(table.codes + at * kTableBlockBytes, table.scales + at * kBlockRows, groups, tokens + t, n,
                        out + t * stride + r, stride);
    });
  }
}

// Steps and offsets are added up as the integers they are stored as, in two sums; the row's units come last.
template <int kTokens>
void int4_block(const uint8_t* block, const float* units, int groups, const QuantizedToken* tokens,
                const float* residual, float* out, int64_t stride) {
  Sum sums[kTokens], shifts[kTokens];
  for (int t = 0; t < kTokens; ++t) sums[t] = shifts[t] = zero();
  for (int g = 0; g < groups; ++g, block += kInt4BlockBytes) {
    Codes codes[kQuads];
    unpack_nibbles(block, codes);
    const Sum steps = widen_unsigned(block + 128), offsets = widen_signed(block + 136);
    for (int t = 0; t < kTokens; ++t) {
      const Ints products = dots(codes, tokens[t].codes + g * kGroup, -kInt4Bias * tokens[t].sums[g]);
      sums[t] = fma(scaled(products, tokens[t].scales[g]), steps, sums[t]);
      shifts[t] = fma(offsets, tokens[t].totals[g], shifts[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const Sum start = residual == nullptr ? zero() : load(residual + t * stride);
    const Sum shifted = fma(shifts[t], load(units + kBlockRows), start);
    store(out + t * stride, fma(sums[t], load(units), shifted));
  }
}

void int4(const Int4Matrix& matrix, int64_t first, int64_t rows, const QuantizedToken* tokens, int count,
          const float* residual, float* out, int64_t stride) {
  const int groups = matrix.groups();
  for (int64_t r = 0; r < rows; r += kBlockRows) {
    const int64_t at = (first + r) / kBlockRows;
    for_tiles(count, [&](auto size, int t) {
      const int64_t to = t * stride + r;
      int4_block<size>(matrix.blocks + at * groups * kInt4BlockBytes, matrix.units + at * 2 * kBlockRows, groups,
                       tokens + t, residual == nullptr ? nullptr : residual + to, out + to, stride);
    });
  }
}

#define ADAKV_STRING(x) #x
#define ADAKV_NAME(x) ADAKV_STRING(x)

}  // namespace

extern const BlockKernels kBlockKernels;
const BlockKernels kBlockKernels = {ADAKV_NAME(ADAKV_ISA), normalize, swiglu, quantize, table, int4};

}  // namespace ADAKV_ISA
}  // namespace adakv
