// Weight products in the shapes of SmolLM2-135M, by kernel set:
//   linear_benchmark [tokens = 1] [threads = 1] [layers = 30] [rounds = 20]
// Prints milliseconds a token of the layers' products (the table's too with one token), minima of all rounds for every
// matrix, and the bytes of weights they read. With 30 layers they come from memory, with 1 from a cache. ADAKV_ISA does
// not matter; sets that this CPU lacks are left out.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "benchmark/spinning_pool.h"
#include "cache/quantizer.h"
#include "linear/int4.h"
#include "linear/table.h"

namespace {

using namespace adakv;
using Clock = std::chrono::steady_clock;

struct Shape {
  const char* name;
  int rows, channels;
};
constexpr Shape kShapes[] = {{"qkv", 960, 576}, {"o", 576, 576}, {"gate_up", 3072, 576}, {"down", 576, 1536}};
constexpr int kVocabulary = 49152, kHidden = 576, kWidest = 3072;

template <typename Work>
void keep_minimum(double& best, const Work& work) {
  const auto start = Clock::now();
  work();
  best = std::min(best, std::chrono::duration<double, std::milli>(Clock::now() - start).count());
}

}  // namespace

int main(int argc, char** argv) {
  const auto option = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  const int tokens = option(1, 1), threads = option(2, 1), layers = option(3, 30), rounds = option(4, 20);
  SpinningPool pool(threads);
  const ParallelFor parallel = pool.loop();

  std::vector<std::vector<uint8_t>> blocks;
  size_t bytes = 0;
  for (int i = 0; i < 4 * layers; ++i) {
    const Shape& shape = kShapes[i % 4];
    blocks.emplace_back(size_t(shape.rows / kBlockRows * (shape.channels / kGroup) * kInt4BlockBytes));
    for (size_t j = 0; j < blocks.back().size(); ++j) blocks.back()[j] = uint8_t(j * 7 + j / 13);
    bytes += blocks.back().size();
  }
  const std::vector<float> units(2 * kWidest, 1e-3f), norm(kHidden, 1.0f);
  std::vector<float> x(size_t(tokens) * kWidest), residual(size_t(tokens) * kHidden, 0.1f);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i * 2654435761u % 2000) * 1e-3f - 1.0f;
  std::vector<float> out(size_t(tokens) * kWidest), logits(kVocabulary);
  const size_t groups = size_t(kVocabulary / kBlockRows) * (kHidden / kGroup);
  std::vector<uint8_t> codes(groups * kTableBlockBytes, 0x5a);
  const std::vector<uint16_t> scales(groups * kBlockRows, float_to_half(0.01f));
  bytes += tokens == 1 ? codes.size() + 2 * scales.size() : 0;

  for (const char* name : {"baseline", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm"}) {
    const LinearKernels* kernels = find_linear_kernels(name);
    if (kernels == nullptr) continue;
    std::vector<double> best(blocks.size(), 1e9);
    double table = tokens == 1 ? 1e9 : 0;
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < blocks.size(); ++i) {
        const Shape& shape = kShapes[i % 4];
        const Int4Matrix matrix{blocks[i].data(), units.data(), shape.rows, shape.channels};
        keep_minimum(best[i], [&] {
          switch (i % 4) {
            case 1: return add_linear(x.data(), residual.data(), matrix, tokens, out.data(), parallel, *kernels);
            case 3: return swiglu_linear(x.data(), residual.data(), matrix, tokens, out.data(), parallel, *kernels);
            default: return norm_linear(x.data(), norm.data(), 1e-5f, matrix, tokens, out.data(), parallel, *kernels);
          }
        });
      }
      if (tokens == 1) {
        keep_minimum(table, [&] {
          table_product({codes.data(), scales.data(), kVocabulary, kHidden}, x.data(), 1, logits.data(), parallel,
                        *kernels);
        });
      }
    }
    double all = table;
    std::printf("%-11s", name);
    for (size_t s = 0; s < 4; ++s) {
      double sum = 0;
      for (size_t i = s; i < best.size(); i += 4) sum += best[i];
      std::printf(" %s %.3f", kShapes[s].name, sum / tokens);
      all += sum;
    }
    std::printf(" table %.3f | all %.3f ms a token, %.1f GB/s\n", table, all / tokens, double(bytes) / all / 1e6);
  }
}
