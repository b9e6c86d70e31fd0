// Linear layers of 4-bit weights on asymmetric grids. Format and source of truth: adakv_model/linear/int4.py.
#pragma once

#include "linear/linear.h"

namespace adakv {

// One group of one block: 4 x 32 bytes of codes (as the low nibbles of the token table), 8 steps, 8 offsets.
constexpr int kInt4BlockBytes = 144;
constexpr int kInt4Bias = 8;

// weight = (code - 8) * step * units[b, 0, r] + offset * units[b, 1, r] for row r of block b.
struct Int4Matrix {
  const uint8_t* blocks;  // [rows / 8, channels / 32, 144]; steps are uint8, offsets int8
  const float* units;     // [rows / 8, 2, 8]
  int64_t rows;           // a multiple of 8
  int channels;           // a multiple of 32

  int groups() const { return channels / kGroup; }
};

// W (x / rms(x) * norm). x: float32 [count, channels], norm: float32 [channels], out: float32 [count, rows].
void norm_linear(const float* x, const float* norm, float eps, const Int4Matrix& matrix, int count, float* out,
                 const ParallelFor& parallel, const LinearKernels& kernels);

// residual + W x. residual and out: float32 [count, rows].
void add_linear(const float* x, const float* residual, const Int4Matrix& matrix, int count, float* out,
                const ParallelFor& parallel, const LinearKernels& kernels);

// residual + W (silu(gate) * up). gate_up: float32 [count, 2 * channels], a token's gate before its up.
void swiglu_linear(const float* gate_up, const float* residual, const Int4Matrix& matrix, int count, float* out,
                   const ParallelFor& parallel, const LinearKernels& kernels);

}  // namespace adakv
