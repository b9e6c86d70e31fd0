#include "linear/linear.h"

#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "linear/linear_kernels.h"

namespace adakv {

namespace {

// A task is large enough to read memory in long runs, and small enough that fast cores can take more of them.
constexpr int64_t kTasks = 16, kMostBlocks = 32;

struct Choice {
  const LinearKernels* kernels;
  Isa isa;
};

constexpr Choice kChoices[] = {
// the best first
#if defined(ADAKV_HAVE_AVX2)
    {&avx512vnni::kLinearKernels, Isa::kAvx512Vnni},
    {&avxvnni::kLinearKernels, Isa::kAvxVnni},
    {&avx2::kLinearKernels, Isa::kAvx2},
#endif
#if defined(ADAKV_HAVE_DOTPROD)
    {&i8mm::kLinearKernels, Isa::kI8mm},
    {&dotprod::kLinearKernels, Isa::kDotprod},
    {&neon::kLinearKernels, Isa::kBaseline},
#endif
    {&baseline::kLinearKernels, Isa::kBaseline},
};

}  // namespace

const LinearKernels* find_linear_kernels(const char* name) {
  for (const Choice& choice : kChoices) {
    if (std::strcmp(choice.kernels->name, name) == 0) return cpu_has(choice.isa) ? choice.kernels : nullptr;
  }
  return nullptr;
}

const LinearKernels& linear_kernels() {
  static const LinearKernels* best =
      std::find_if(std::begin(kChoices), std::end(kChoices), [](const Choice& c) { return cpu_has(c.isa); })->kernels;
  return *best;
}

Activations::Activations(int count, int channels, int bias,
                         const std::function<const float*(int t, float* scratch)>& input, const ParallelFor& parallel,
                         const LinearKernels& kernels)
    : tiles_(size_t(count) * size_t(channels / kGroup) * kTokenBytes), count_(count) {
  const int groups = channels / kGroup;
  const auto quantize = [&](int t) {
    int first = 0, tile = kernels.tile;  // of the tile with token t
    while (first + tile > count || t >= first + tile) {
      if (first + tile > count) {
        tile /= 2;
      } else {
        first += tile;
      }
    }
    const int i = t - first;
    const bool paired = kernels.pairs && tile > 1;
    std::vector<float> scratch(static_cast<size_t>(channels));
    const float* x = input(t, scratch.data());
    uint8_t* group = tiles_.data() + int64_t(first) * groups * kTokenBytes;
    for (int g = 0; g < groups; ++g, group += tile * kTokenBytes) {
      float* scales = reinterpret_cast<float*>(group + tile * kGroup);
      float* totals = scales + tile;
      int8_t* codes = reinterpret_cast<int8_t*>(group);
      TokenGroup to{codes + i * kGroup, kGroup,     0,
                    scales + i,         totals + i, reinterpret_cast<int32_t*>(totals + tile) + i};
      if (paired) {
        to.codes = codes + i / 2 * 2 * kGroup + i % 2 * 8;
        to.run = 8;
        to.next_run = 16;
      }
      kernels.quantize(x + g * kGroup, bias, to);
    }
  };
  if (count == 1) {
    quantize(0);
  } else {
    parallel(count, quantize);
  }
}

void for_row_tasks(int64_t rows, const ParallelFor& parallel, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t task = std::clamp((blocks + kTasks - 1) / kTasks, int64_t(2), kMostBlocks) / 2 * 2 * kBlockRows;
  parallel(int((rows + task - 1) / task), [&](int i) {
    const int64_t first = i * task;
    body(first, std::min(task, rows - first));
  });
}

}  // namespace adakv
