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

constexpr int kSimdRows = kSimdBlocks * kBlockRows;

// The first `rows` of kSimdRows floats.
void store_rows(float* out, const Sum& sum, int rows) {
  if (rows == kSimdRows) return store(out, sum);
  float values[kSimdRows];
  store(values, sum);
  std::copy(values, values + rows, out);
}

Sum load_rows(const float* from, int rows) {
  if (rows == kSimdRows) return load(from, kBlockRows);
  float values[kSimdRows] = {};
  std::copy(from, from + rows, values);
  return load(values, kBlockRows);
}

// Rows from `first` on: tile(block, blocks to the second one or 0 if there is none, row, rows).
template <typename Tile>
void for_blocks(int64_t first, int64_t rows, const Tile& tile) {
  for (int64_t r = 0; r < rows; r += kSimdRows) {
    const int n = int(std::min<int64_t>(kSimdRows, rows - r));
    tile((first + r) / kBlockRows, n > kBlockRows ? 1 : 0, r, n);
  }
}

// Two blocks at a time are two streams, which the hardware does not foresee: ask for the same bytes of the next two.
inline void fetch_ahead(const uint8_t* bytes, int size, int64_t next) {
  if constexpr (kSimdBlocks == 1) return;
  for (int line = 0; line < size; line += 64) {
    __builtin_prefetch(bytes + 2 * next + line);
    __builtin_prefetch(bytes + 3 * next + line);
  }
}

template <int kTokens>
void table_tile(const Table& table, int64_t block, int64_t next, const QuantizedToken* tokens, int rows, float* out,
                int64_t stride) {
  const int groups = table.groups();
  const uint8_t* codes = table.codes + block * groups * kTableBlockBytes;
  const uint16_t* halves = table.scales + block * groups * kBlockRows;
  const int64_t next_codes = next * groups * kTableBlockBytes, next_halves = next * groups * kBlockRows;
  Sum sums[kTokens];
  for (Sum& sum : sums) sum = zero();
  for (int g = 0; g < groups; ++g, codes += kTableBlockBytes) {
    fetch_ahead(codes, kTableBlockBytes, next_codes);
    Codes unpacked[kQuads];
    unpack_nibbles(codes, next_codes, unpacked);
    add_pairs(codes + 128, next_codes, unpacked);
    const Sum scales = widen_halves(halves + g * kBlockRows, next_halves);
    for (int t = 0; t < kTokens; ++t) {
      const Ints products = dots(unpacked, tokens[t].codes + g * kGroup, -32 * tokens[t].sums[g]);
      sums[t] = fma(scaled(products, tokens[t].scales[g]), scales, sums[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) store_rows(out + t * stride, sums[t], rows);
}

void table(const Table& table, int64_t first, int64_t rows, const QuantizedToken* tokens, int count, float* out,
           int64_t stride) {
  for_blocks(first, rows, [&](int64_t block, int64_t next, int64_t r, int n) {
    for_tiles(count, [&](auto size, int t) {
      table_tile<size>(table, block, next, tokens + t, n, out + t * stride + r, stride);
    });
  });
}

// Steps and offsets are added up as the integers they are stored as, in two sums; the row's units come last.
template <int kTokens>
void int4_tile(const Int4Matrix& matrix, int64_t block, int64_t next, const QuantizedToken* tokens, int rows,
               const float* residual, float* out, int64_t stride) {
  const int groups = matrix.groups();
  const uint8_t* bytes = matrix.blocks + block * groups * kInt4BlockBytes;
  const float* units = matrix.units + block * 2 * kBlockRows;
  const int64_t next_bytes = next * groups * kInt4BlockBytes, next_units = next * 2 * kBlockRows;
  Sum sums[kTokens], shifts[kTokens];
  for (int t = 0; t < kTokens; ++t) sums[t] = shifts[t] = zero();
  for (int g = 0; g < groups; ++g, bytes += kInt4BlockBytes) {
    fetch_ahead(bytes, kInt4BlockBytes, next_bytes);
    Codes codes[kQuads];
    unpack_nibbles(bytes, next_bytes, codes);
    const Sum steps = widen_unsigned(bytes + 128, next_bytes), offsets = widen_signed(bytes + 136, next_bytes);
    for (int t = 0; t < kTokens; ++t) {
      const Ints products = dots(codes, tokens[t].codes + g * kGroup, -kInt4Bias * tokens[t].sums[g]);
      sums[t] = fma(scaled(products, tokens[t].scales[g]), steps, sums[t]);
      shifts[t] = fma(offsets, tokens[t].totals[g], shifts[t]);
    }
  }
  const Sum step_units = load(units, next_units), offset_units = load(units + kBlockRows, next_units);
  for (int t = 0; t < kTokens; ++t) {
    const Sum start = residual == nullptr ? zero() : load_rows(residual + t * stride, rows);
    store_rows(out + t * stride, fma(sums[t], step_units, fma(shifts[t], offset_units, start)), rows);
  }
}

void int4(const Int4Matrix& matrix, int64_t first, int64_t rows, const QuantizedToken* tokens, int count,
          const float* residual, float* out, int64_t stride) {
  for_blocks(first, rows, [&](int64_t block, int64_t next, int64_t r, int n) {
    for_tiles(count, [&](auto size, int t) {
      const int64_t to = t * stride + r;
      int4_tile<size>(matrix, block, next, tokens + t, n, residual == nullptr ? nullptr : residual + to, out + to,
                      stride);
    });
  });
}

#define ADAKV_STRING(x) #x
#define ADAKV_NAME(x) ADAKV_STRING(x)

}  // namespace

extern const BlockKernels kBlockKernels;
const BlockKernels kBlockKernels = {ADAKV_NAME(ADAKV_ISA), normalize, swiglu, quantize, table, int4};

}  // namespace ADAKV_ISA
}  // namespace adakv
