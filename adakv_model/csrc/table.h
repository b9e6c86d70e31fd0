// The token table: embedding and output matrix in one copy. Format and source of truth: adakv_model/table.py.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace adakv {

constexpr int kTableGroup = 32;       // channels that share a scale
constexpr int kTableGroupBytes = 24;  // 16 bytes of low nibbles, 8 bytes of high bit pairs
constexpr int kTableBlock = 64;       // rows of one unit of parallel work
constexpr int kTableLanes = 8;        // partial sums over groups: per-group arrays are padded to a multiple of it

// Codes of 6 bits around 32: weight = (code - 32) * scale.
struct Table {
  const uint8_t* codes;    // [rows, channels / 32, 24]
  const uint16_t* scales;  // fp16 [rows, channels / 32]
  int64_t rows;
  int channels;

  int groups() const { return channels / kTableGroup; }
  int padded_groups() const { return (groups() + kTableLanes - 1) / kTableLanes * kTableLanes; }
};

// Activations of one token as the product needs them: int8 with a scale for every group of 32 channels.
struct QuantizedToken {
  const int8_t* codes;   // [channels]
  const float* scales;   // [padded groups], largest magnitude / 127
  const float* offsets;  // [padded groups], 32 times the sum of the codes
};

struct TableKernels {
  const char* name;

  // out[t * stride + r] = <token t, row first + r> for r < rows. A group's product is an exact integer; groups are
  // added in their order, one token at a time, so a result does not depend on what is computed beside it.
  void (*product)(const Table& table, int64_t first, int rows, const QuantizedToken* tokens, int count, float* out,
                  int64_t stride);
};

namespace baseline {
extern const TableKernels kTableKernels;
}
namespace avx2 {
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
