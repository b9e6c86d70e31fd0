// Products with weight matrices in portable C++: the reference that every other set equals to the last bit.
#include <cmath>
#include <cstring>

#include "fast_exp.h"
#include "linear/int4.h"
#include "linear/linear_kernels.h"
#include "linear/linear_tiles.h"
#include "linear/table.h"

namespace adakv {
namespace baseline {
namespace {

#include "linear/linear_inputs.h"

constexpr int kTile = 4;

// a * b + c, rounded once. The product of two floats is exact in double; their sum is rounded to odd, so that rounding
// it again to float gives what one rounding would have given (Boldo and Melquiond 2008).
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  const double product = double(a) * double(b), sum = product + double(c), part = sum - product;
  const double error = (product - (sum - part)) + (double(c) - part);
  uint64_t bits;
  std::memcpy(&bits, &sum, 8);
  const uint64_t inexact = error != 0 && (bits & 1) == 0;
  bits = (error > 0) == (sum > 0) ? bits + inexact : bits - inexact;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return float(odd);
#endif
}

// The rows' codes of a quad's four channels.
struct Codes {
  int16_t values[kBlockRows * 4];
};

inline void unpack_nibbles(const uint8_t* bytes, Codes* codes) {
  for (int q = 0; q < kQuads; ++q) {
    for (int j = 0; j < kBlockRows * 4; ++j) {
      codes[q].values[j] = int16_t((bytes[32 * (q % 4) + j] >> (q / 4 * 4)) & 15);
    }
  }
}

inline void add_pairs(const uint8_t* bytes, Codes* codes) {
  for (int q = 0; q < kQuads; ++q) {
    for (int j = 0; j < kBlockRows * 4; ++j) {
      codes[q].values[j] = int16_t(codes[q].values[j] | ((bytes[32 * (q % 2) + j] >> (q / 2 * 2)) & 3) << 4);
    }
  }
}

// sums += (start + the exact products) * scale * steps, for every row.
inline void add_products(const Codes* codes, const int8_t* x, int32_t start, float scale, const float* steps,
                         float* sums) {
  int32_t products[kBlockRows];
  for (int32_t& product : products) product = start;
  for (int q = 0; q < kQuads; ++q) {
    for (int r = 0; r < kBlockRows; ++r) {
      for (int c = 0; c < 4; ++c) products[r] += codes[q].values[4 * r + c] * x[4 * q + c];
    }
  }
  for (int r = 0; r < kBlockRows; ++r) sums[r] = fused(float(products[r]) * scale, steps[r], sums[r]);
}

template <int n>
void table_tile(const Table& table, int64_t block, const TileGroup<n>* tile, int rows, float* out, int64_t stride) {
  const int groups = table.groups();
  const uint8_t* bytes = table.codes + block * groups * kTableBlockBytes;
  const uint16_t* halves = table.scales + block * groups * kBlockRows;
  float sums[n][kBlockRows] = {};
  for (int g = 0; g < groups; ++g, bytes += kTableBlockBytes, halves += kBlockRows) {
    Codes codes[kQuads];
    unpack_nibbles(bytes, codes);
    add_pairs(bytes + 128, codes);
    float scales[kBlockRows];
    for (int r = 0; r < kBlockRows; ++r) scales[r] = half_to_float(halves[r]);
    for (int t = 0; t < n; ++t) {
      add_products(codes, tile[g].codes[t], tile[g].starts[t], tile[g].scales[t], scales, sums[t]);
    }
  }
  for (int t = 0; t < n; ++t) std::memcpy(out + t * stride, sums[t], size_t(rows) * sizeof(float));
}

void table(const Table& table, int64_t first, int64_t rows, const Tokens& tokens, float* out, int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int n) {
    for_tiles<kTile>(tokens, table.groups(), [&](auto size, int t, const auto* tile) {
      table_tile<size>(table, block, tile, n, out + t * stride + r, stride);
    });
  });
}

template <int n>
void int4_tile(const Int4Matrix& matrix, int64_t block, const TileGroup<n>* tile, const float* residual, float* out,
               int64_t stride) {
  const int groups = matrix.groups();
  const uint8_t* bytes = matrix.blocks + block * groups * kInt4BlockBytes;
  const float* units = matrix.units + block * 2 * kBlockRows;
  float sums[n][kBlockRows] = {}, shifts[n][kBlockRows] = {};
  for (int g = 0; g < groups; ++g, bytes += kInt4BlockBytes) {
    Codes codes[kQuads];
    unpack_nibbles(bytes, codes);
    float steps[kBlockRows], offsets[kBlockRows];
    for (int r = 0; r < kBlockRows; ++r) {
      steps[r] = float(bytes[128 + r]);
      offsets[r] = float(int8_t(bytes[136 + r]));
    }
    for (int t = 0; t < n; ++t) {
      add_products(codes, tile[g].codes[t], tile[g].starts[t], tile[g].scales[t], steps, sums[t]);
      for (int r = 0; r < kBlockRows; ++r) shifts[t][r] = fused(offsets[r], tile[g].totals[t], shifts[t][r]);
    }
  }
  for (int t = 0; t < n; ++t, out += stride) {
    for (int r = 0; r < kBlockRows; ++r) {
      const float start = residual == nullptr ? 0.0f : residual[t * stride + r];
      out[r] = fused(sums[t][r], units[r], fused(shifts[t][r], units[kBlockRows + r], start));
    }
  }
}

void int4(const Int4Matrix& matrix, int64_t first, int64_t rows, const Tokens& tokens, const float* residual,
          float* out, int64_t stride) {
  for_blocks<kBlockRows>(first, rows, [&](int64_t block, int64_t r, int) {
    for_tiles<kTile>(tokens, matrix.groups(), [&](auto size, int t, const auto* tile) {
      const int64_t to = t * stride + r;
      int4_tile<size>(matrix, block, tile, residual == nullptr ? nullptr : residual + to, out + to, stride);
    });
  });
}

}  // namespace

const LinearKernels kLinearKernels = {"baseline", kTile, false, normalize, swiglu, quantize, table, int4};

}  // namespace baseline
}  // namespace adakv
