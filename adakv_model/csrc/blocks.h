// What the token table and the 4-bit layers share: weight rows interleaved in blocks of 8, activations as int8 with a
// scale for every group of 32 channels, and the kernels for both. Formats: adakv_model/{blocks,table,int4}.py.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel.h"

namespace adakv {

constexpr int kGroup = 32;     // channels that share a scale
constexpr int kBlockRows = 8;  // rows of a block, whose channels are interleaved

// Activations of one token, [channels] and [groups]. value = code * scale, scale = largest magnitude / 127.
struct QuantizedToken {
  int8_t* codes;
  float* scales;
  int32_t* sums;  // of a group's codes
  float* totals;  // sum * scale
};

struct Table;
struct Int4Matrix;

struct BlockKernels {
  const char* name;

  // Inputs of a product, one token each. out = x / rms(x) * weight; out = silu(gate) * up.
  void (*normalize)(const float* x, const float* weight, float eps, int channels, float* out);
  void (*swiglu)(const float* gate, const float* up, int channels, float* out);
  void (*quantize)(const float* x, int groups, const QuantizedToken& token);

  // out[t * stride + r] = <token t, row first + r> for r < rows; first is a multiple of kBlockRows. A group's product
  // is an exact integer; groups are added in their order, so a result does not depend on the tokens beside it.
  void (*table)(const Table& table, int64_t first, int64_t rows, const QuantizedToken* tokens, int count, float* out,
                int64_t stride);
  // The same, and the residual added, unless it is null: residual[t * stride + r].
  void (*int4)(const Int4Matrix& matrix, int64_t first, int64_t rows, const QuantizedToken* tokens, int count,
               const float* residual, float* out, int64_t stride);
};

namespace baseline {
extern const BlockKernels kBlockKernels;
}
namespace avx2 {
extern const BlockKernels kBlockKernels;
}
namespace avx512vnni {
extern const BlockKernels kBlockKernels;
}
namespace avx512wide {
extern const BlockKernels kBlockKernels;
}
namespace dotprod {
extern const BlockKernels kBlockKernels;
}

// The fastest set this CPU can run for so many tokens, or, for tests, the one called `name` (nullptr if it cannot).
// Sets that may be chosen for different counts give equal bits.
const BlockKernels& block_kernels(int count);
const BlockKernels* find_block_kernels(const char* name);

// Quantized activations of `count` tokens.
class Activations {
 public:
  // input(t, scratch): the channels of token t, in memory of its own or in scratch, float32 [channels].
  Activations(int count, int channels, const std::function<const float*(int t, float* scratch)>& input,
              const ParallelFor& parallel, const BlockKernels& kernels);

  const QuantizedToken* tokens() const { return tokens_.data(); }

 private:
  std::vector<int8_t> codes_;
  std::vector<float> scales_, totals_;
  std::vector<int32_t> sums_;
  std::vector<QuantizedToken> tokens_;
};

// body(first row, rows) over all rows in tasks of a few blocks.
void for_row_tasks(int64_t rows, const ParallelFor& parallel, const std::function<void(int64_t, int64_t)>& body);

}  // namespace adakv
