#include "linear/table.h"

#include "cache/quantizer.h"

namespace adakv {

void table_lookup(const Table& table, const int64_t* tokens, int count, float* out) {
  const int groups = table.groups();
  for (int t = 0; t < count; ++t) {
    const int row = int(tokens[t] % kBlockRows);
    for (int g = 0; g < groups; ++g) {
      const int64_t at = tokens[t] / kBlockRows * groups + g;
      const uint8_t* block = table.codes + at * kTableBlockBytes + 4 * row;
      const float scale = half_to_float(table.scales[at * kBlockRows + row]);
      for (int j = 0; j < kGroup; ++j) {
        const int quad = j / 4, c = j % 4;
        const int low = (block[32 * (quad % 4) + c] >> (quad / 4 * 4)) & 15;
        const int high = (block[128 + 32 * (quad % 2) + c] >> (quad / 2 * 2)) & 3;
        *out++ = float((low | high << 4) - kTableBias) * scale;
      }
    }
  }
}

void table_product(const Table& table, const float* x, int count, float* out, const ParallelFor& parallel,
                   const LinearKernels& kernels) {
  const auto input = [&](int t, float*) { return x + int64_t(t) * table.channels; };
  const Activations activations(count, table.channels, kTableBias, input, parallel, kernels);
  for_row_tasks(table.rows, parallel, [&](int64_t first, int64_t rows) {
    kernels.table(table, first, rows, activations.tokens(), out + first, table.rows);
  });
}

}  // namespace adakv
