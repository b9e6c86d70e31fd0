// Products of tokens with weight matrices: what the token table and the 4-bit layers share. Weight rows are interleaved
// in blocks of 8; activations are int8 with a scale for every group of 32 channels. Formats: adakv_model/{blocks,table,
// int4}.py. Kernels: linear_<instruction set>.cpp; all of them give equal bits.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel.h"

namespace adakv {

constexpr int kGroup = 32;       // channels that share a scale
constexpr int kBlockRows = 8;    // rows of a block, whose channels are interleaved
constexpr int kQuads = 8;        // a group's channels are multiplied four at a time
constexpr int kTokenBytes = 44;  // of one group of one token: 32 codes, scale, total, start

// One group of `tokens` tokens that are multiplied together. value = code * scale, scale = largest magnitude / 127.
// Where a kernel set packs tokens in pairs, two tokens' codes alternate in runs of 8 channels (linear_i8mm.cpp).
template <int tokens>
struct TileGroup {
  int8_t codes[tokens][kGroup];
  float scales[tokens];
  float totals[tokens];    // sum of the codes * scale
  int32_t starts[tokens];  // -bias * sum of the codes, with the bias of the weights' codes
};
static_assert(sizeof(TileGroup<4>) == 4 * kTokenBytes, "no padding");

// Where one group of one token is written.
struct TokenGroup {
  int8_t* codes;
  int run, next_run;  // so many codes lie together, runs are so far apart
  float *scale, *total;
  int32_t* start;
};

// Activations of `count` tokens: tiles one after the other, each with its groups one after the other. A tile has as
// many tokens as the kernel set allows, the last ones half as many, a quarter ... down to 1.
struct Tokens {
  const uint8_t* tiles;
  int count;
};

struct Table;
struct Int4Matrix;

struct LinearKernels {
  const char* name;
  int tile;    // most tokens of a tile: 1, 2, 4 or 8
  bool pairs;  // tokens are packed in pairs, but for a tile of one

  // Inputs of a product, one token each. out = x / rms(x) * weight; out = silu(gate) * up.
  void (*normalize)(const float* x, const float* weight, float eps, int channels, float* out);
  void (*swiglu)(const float* gate, const float* up, int channels, float* out);
  void (*quantize)(const float* x, int bias, const TokenGroup& to);  // 32 channels

  // out[t * stride + r] = <token t, row first + r> for r < rows; first is a multiple of kBlockRows. A group's product
  // is an exact integer; groups are added in their order, multiplications fused, so a result depends neither on the
  // tokens beside it nor on the kernel set.
  void (*table)(const Table& table, int64_t first, int64_t rows, const Tokens& tokens, float* out, int64_t stride);
  // The same, and the residual added, unless it is null: residual[t * stride + r].
  void (*int4)(const Int4Matrix& matrix, int64_t first, int64_t rows, const Tokens& tokens, const float* residual,
               float* out, int64_t stride);
};

// The fastest set this CPU can run, or, for tests, the one called `name` (nullptr if there is none or the CPU lacks
// it).
const LinearKernels& linear_kernels();
const LinearKernels* find_linear_kernels(const char* name);

// Quantized activations of `count` tokens, for weights whose codes have this bias.
class Activations {
 public:
  // input(t, scratch): the channels of token t, in memory of its own or in scratch, float32 [channels].
  Activations(int count, int channels, int bias, const std::function<const float*(int t, float* scratch)>& input,
              const ParallelFor& parallel, const LinearKernels& kernels);

  Tokens tokens() const { return {tiles_.data(), count_}; }

 private:
  std::vector<uint8_t> tiles_;
  int count_;
};

// body(first row, rows) over all rows in tasks of a few blocks.
void for_row_tasks(int64_t rows, const ParallelFor& parallel, const std::function<void(int64_t, int64_t)>& body);

}  // namespace adakv
