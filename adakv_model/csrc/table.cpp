#include "table.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "quantizer.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace adakv {

namespace {

const TableKernels* usable(const TableKernels& kernels, bool supported) { return supported ? &kernels : nullptr; }

// Faster sets first.
std::vector<const TableKernels*> available() {
  std::vector<const TableKernels*> all;
#if defined(ADAKV_HAVE_AVX2)
  all.push_back(
      usable(avx512vnni::kTableKernels, __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")));
  all.push_back(usable(avx2::kTableKernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
#endif
#if defined(ADAKV_HAVE_DOTPROD)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  all.push_back(usable(dotprod::kTableKernels, (getauxval(AT_HWCAP) & kDotProduct) != 0));
#endif
  all.push_back(&baseline::kTableKernels);
  all.erase(std::remove(all.begin(), all.end(), nullptr), all.end());
  return all;
}

}  // namespace

const TableKernels* find_table_kernels(const char* name) {
  for (const TableKernels* kernels : available()) {
    if (std::strcmp(kernels->name, name) == 0) return kernels;
  }
  return nullptr;
}

const TableKernels& table_kernels() {
  static const TableKernels& best = *available().front();
  return best;
}

void table_lookup(const Table& table, const int64_t* tokens, int count, float* out) {
  const int groups = table.groups();
  for (int t = 0; t < count; ++t) {
    const int row = int(tokens[t] % kTableRows);
    for (int g = 0; g < groups; ++g) {
      const int64_t at = tokens[t] / kTableRows * groups + g;
      const uint8_t* block = table.codes + at * kTableBlockBytes + 4 * row;
      const float scale = half_to_float(table.scales[at * kTableRows + row]);
      for (int j = 0; j < kTableGroup; ++j) {
        const int quad = j / 4, c = j % 4;
        const int low = (block[32 * (quad % 4) + c] >> (quad / 4 * 4)) & 15;
        const int high = (block[128 + 32 * (quad % 2) + c] >> (quad / 2 * 2)) & 3;
        *out++ = float((low | high << 4) - 32) * scale;
      }
    }
  }
}

void table_product(const Table& table, const float* x, int count, float* out, const ParallelFor& parallel,
                   const TableKernels& kernels) {
  const int groups = table.groups();
  std::vector<int8_t> codes(size_t(count) * table.channels);
  std::vector<float> scales(size_t(count) * groups), offsets(size_t(count) * groups);
  std::vector<QuantizedToken> tokens;
  for (int t = 0; t < count; ++t) {
    const QuantizedToken token = {codes.data() + size_t(t) * table.channels, scales.data() + size_t(t) * groups,
                                  offsets.data() + size_t(t) * groups};
    tokens.push_back(token);
    int8_t* q = codes.data() + size_t(t) * table.channels;
    for (int g = 0; g < groups; ++g, q += kTableGroup, x += kTableGroup) {
      float peak = 0;
      for (int j = 0; j < kTableGroup; ++j) peak = std::max(peak, std::fabs(x[j]));
      const float scale = peak / 127.0f, inverse = peak > 0 ? 127.0f / peak : 0.0f;
      int sum = 0;
      for (int j = 0; j < kTableGroup; ++j) {
        q[j] = int8_t(std::nearbyint(x[j] * inverse));
        sum += q[j];
      }
      scales[size_t(t) * groups + g] = scale;
      offsets[size_t(t) * groups + g] = 32.0f * float(sum) * scale;
    }
  }
  const int tasks = int((table.blocks() + kTableTask - 1) / kTableTask);
  parallel(tasks, [&](int task) {
    const int64_t first = int64_t(task) * kTableTask * kTableRows;
    const int64_t rows = std::min<int64_t>(kTableTask * kTableRows, table.rows - first);
    kernels.product(table, first, rows, tokens.data(), count, out + first, table.rows);
  });
}

}  // namespace adakv
