// The token table: embedding and output matrix in one copy. Format and source of truth: adakv_model/table.py.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace adakv {

constexpr int kTableGroup = 32;        // channels that share a scale
constexpr int kTableRows = 8;          // rows of a block, whose channels are interleaved
constexpr int kTableBlockBytes = 192;  // one group of one block: 4 x 32 bytes of low nibbles, 2 x 32 of bit pairs
constexpr int kTableTask = 8;          // blocks of one unit of parallel work

// Codes of 6 bits around 32: weight = (code - 32) * scale.
struct Table {
  const uint8_t* codes;    // [blocks, channels / 32, 192]
  const uint16_t* scales;  // fp16 [blocks, channels / 32, 8]
  int64_t rows;            // the last block may be padded
  int channels;

  int groups() const { return channels / kTableGroup; }
  int64_t blocks() const { return (rows + kTableRows - 1) / kTableRows; }
};

// Activations of one token as the product needs them: int8 with a scale for every group of 32 channels.
struct QuantizedToken {
  const int8_t* codes;   // [channels]
  const float* scales;   // [groups], largest magnitude / 127
  const float* offsets;  // [groups], 32 * scale * sum of the codes
};

struct TableKernels {
  const char* name;

  // out[t * stride + r] = <token t, row first + r> for r < rows; first is a multiple of kTableRows. A group's product
  // is an exact integer; groups are added in their order, so a result does not depend on the tokens beside it.
  void (*product)(const Table& table, int64_t first, int64_t rows, const QuantizedToken* tokens, int count, float* out,
                  int64_t stride);
};

namespace baseline {
extern const TableKernels kTableKernels;
}
namespace avx2 {
extern const TableKernels kTableKernels;
}
namespace avx512vnni {
extern const TableKernels kTableKernels;
}
namespace dotprod {
extern const TableKernels kTableKernels;
}

// The fastest set this CPU can run, or, for tests, the one called `name` (nullptr if it cannot).
const TableKernels& table_kernels();
const TableKernels* find_table_kernels(const char* name);

// out[t, :] = row tokens[t]. tokens: int64 [count], each in [0, rows); out: float32 [count, channels].
void table_lookup(const Table& table, const int64_t* tokens, int count, float* out);

// out[t, r] = <x[t], row r>. x: float32 [count, channels], out: float32 [count, rows].
void table_product(const Table& table, const float* x, int count, float* out, const ParallelFor& parallel,
                   const TableKernels& kernels);

}  // namespace adakv
