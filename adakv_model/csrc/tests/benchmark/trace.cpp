// One call of one kernel between two marks, for a tracer: kernel_trace score|sum|softmax ISA BITS [slots = 512]
// ISA int8 and fp16 are the rows of other_rows.h. Three query heads, head dimension 64. scripts/bench_kernels.py
// --arm runs it under an emulator that logs every instruction.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cache/attend_kernels.h"
#include "other_rows.h"

// Marks: the tracer cuts at these symbols.
extern "C" __attribute__((noinline)) void trace_begin() { asm volatile("" ::: "memory"); }
extern "C" __attribute__((noinline)) void trace_end() { asm volatile("" ::: "memory"); }

namespace {

using namespace adakv;

constexpr int kQueryCount = 3;

alignas(64) uint8_t codes[kPartRows * 2 * kMaxHeadDim], scale_bytes_[2 * kPartRows];
alignas(64) float values[kQueryCount * kMaxHeadDim], units[kQueryCount * kMaxBands], out[kQueryCount * kPartRows],
    weights[kQueryCount * kPartRows], acc[kQueryCount * kMaxHeadDim], scales[kPartRows];
alignas(64) int8_t x[kQueryCount * kPartRows];
int32_t sums[kQueryCount * kMaxBands];

template <typename Work>
void traced(const Work& work) {
  trace_begin();
  work();
  trace_end();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const char *kind = argv[1], *isa = argv[2];
  const int bits = std::atoi(argv[3]), slots = argc > 4 ? std::atoi(argv[4]) : kPartRows, dim = 64;
  if (slots > kPartRows) return 2;
  const bool score = std::strcmp(kind, "score") == 0;
  // Any numbers do, as no kernel's path depends on them; floats of such bytes are small.
  std::memset(codes, 0x2c, sizeof(codes));
  std::memset(scale_bytes_, 0x2c, sizeof(scale_bytes_));
  std::memset(values, 0x3c, sizeof(values));
  std::memset(weights, 0x3c, sizeof(weights));
  std::memset(x, 3, sizeof(x));
  if (std::strcmp(isa, "int8") == 0) {
    const auto* w = reinterpret_cast<const int8_t*>(codes);
    traced([&] {
      score ? int8_products_3x16c4(x, dim, w, slots, scales, out) : int8_products_3x16c4(x, slots, w, dim, scales, acc);
    });
    return 0;
  }
  if (std::strcmp(isa, "fp16") == 0) {
    const auto* rows = reinterpret_cast<const uint16_t*>(codes);
    traced([&] { score ? fp16_scores(values, dim, rows, slots, out) : fp16_sums(weights, slots, rows, dim, acc); });
    return 0;
  }
  const AttendKernels* kernels = find_attend_kernels(isa);
  if (kernels == nullptr) return 3;
  for (int q = 0; q < kQueryCount; ++q) {
    kernels->quantize_query(values + q * dim, dim, x + q * dim, units + q * kMaxBands, sums + q * kMaxBands);
  }
  const Rows rows{bits, kRms, dim, codes, scale_bytes_, slots};
  const Queries queries{values, x, units, sums, kQueryCount};
  if (score) {
    traced([&] { kernels->score(rows, queries, out, slots); });
  } else if (std::strcmp(kind, "sum") == 0) {
    traced([&] { kernels->accumulate(rows, weights, slots, kQueryCount, acc); });
  } else if (std::strcmp(kind, "softmax") == 0) {
    traced([&] {
      float peak;
      for (int q = 0; q < kQueryCount; ++q) kernels->softmax_part(weights + q * slots, slots, &peak);
    });
  } else {
    return 2;
  }
  return 0;
}
