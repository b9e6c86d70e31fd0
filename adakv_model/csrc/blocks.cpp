#include "blocks.h"

#include <algorithm>
#include <cstring>

#include "cpu.h"

namespace adakv {

namespace {

constexpr int kTaskBlocks = 4;  // blocks of one unit of parallel work
constexpr int kSeveral = 8;     // tokens from which on two blocks at a time are faster than one

const BlockKernels* usable(const BlockKernels& kernels, bool supported) { return supported ? &kernels : nullptr; }

// Faster sets first; the very first is for several tokens only.
std::vector<const BlockKernels*> available() {
  std::vector<const BlockKernels*> all;
#if defined(ADAKV_HAVE_AVX2)
  all.push_back(usable(avx512wide::kBlockKernels, cpu_has(Isa::kAvx512Vnni)));
  all.push_back(usable(avx512vnni::kBlockKernels, cpu_has(Isa::kAvx512Vnni)));
  all.push_back(usable(avx2::kBlockKernels, cpu_has(Isa::kAvx2)));
#endif
#if defined(ADAKV_HAVE_DOTPROD)
  all.push_back(usable(dotprod::kBlockKernels, cpu_has(Isa::kDotprod)));
#endif
  all.push_back(&baseline::kBlockKernels);
  all.erase(std::remove(all.begin(), all.end(), nullptr), all.end());
  return all;
}

}  // namespace

const BlockKernels* find_block_kernels(const char* name) {
  for (const BlockKernels* kernels : available()) {
    if (std::strcmp(kernels->name, name) == 0) return kernels;
  }
  return nullptr;
}

const BlockKernels& block_kernels(int count) {
  static const BlockKernels* wide = find_block_kernels("avx512wide");
  static const BlockKernels* best = available()[wide != nullptr ? 1 : 0];
  return wide != nullptr && count >= kSeveral ? *wide : *best;
}

Activations::Activations(int count, int channels, const std::function<const float*(int t, float* scratch)>& input,
                         const ParallelFor& parallel, const BlockKernels& kernels) {
  const size_t groups = size_t(channels / kGroup);
  codes_.resize(size_t(count) * channels);
  scales_.resize(count * groups);
  totals_.resize(count * groups);
  sums_.resize(count * groups);
  for (size_t t = 0; t < size_t(count); ++t) {
    tokens_.push_back({codes_.data() + t * channels, scales_.data() + t * groups, sums_.data() + t * groups,
                       totals_.data() + t * groups});
  }
  const auto quantize = [&](int t) {
    std::vector<float> scratch(static_cast<size_t>(channels));
    kernels.quantize(input(t, scratch.data()), int(groups), tokens_[size_t(t)]);
  };
  if (count == 1) {
    quantize(0);
  } else {
    parallel(count, quantize);
  }
}

void for_row_tasks(int64_t rows, const ParallelFor& parallel, const std::function<void(int64_t, int64_t)>& body) {
  constexpr int64_t kTask = kTaskBlocks * kBlockRows;
  parallel(int((rows + kTask - 1) / kTask), [&](int task) {
    const int64_t first = task * kTask;
    body(first, std::min(kTask, rows - first));
  });
}

}  // namespace adakv
