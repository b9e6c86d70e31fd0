// The token table: embedding and output matrix in one copy. Format and source of truth: adakv_model/linear/table.py.
#pragma once

#include "linear/linear.h"

namespace adakv {

constexpr int kTableBlockBytes = 192;  // one group of one block: 4 x 32 bytes of low nibbles, 2 x 32 of bit pairs
constexpr int kTableBias = 32;

// Codes of 6 bits around 32: weight = (code - 32) * scale.
struct Table {
  const uint8_t* codes;    // [blocks, channels / 32, 192]
  const uint16_t* scales;  // fp16 [blocks, channels / 32, 8]
  int64_t rows;            // the last block may be padded
  int channels;

  int groups() const { return channels / kGroup; }
  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
};

// out[t, :] = row tokens[t]. tokens: int64 [count], each in [0, rows); out: float32 [count, channels].
void table_lookup(const Table& table, const int64_t* tokens, int count, float* out);

// out[t, r] = <x[t], row r>. x: float32 [count, channels], out: float32 [count, rows].
void table_product(const Table& table, const float* x, int count, float* out, const ParallelFor& parallel,
                   const LinearKernels& kernels);

}  // namespace adakv
