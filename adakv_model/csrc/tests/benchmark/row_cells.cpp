// Packed rows of the cache, as a decode step reads them: parts of 512 slots, some query heads of one kv head.
#include <algorithm>
#include <cmath>
#include <memory>

#include "cache/attend_kernels.h"
#include "cells.h"

namespace adakv {

namespace {

constexpr int kRowsOfRun = 32768, kRowsOfScalarRun = 8192;

// One query tile and the scratch of a thread.
struct Inputs {
  std::vector<float> values, scales, scores, weights, acc;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  int n, dim;

  Inputs(const AttendKernels& kernels, int n, int dim)
      : values(size_t(n * dim)),
        scales(size_t(n * kMaxBands)),
        scores(size_t(n * kPartRows)),
        weights(size_t(n * kPartRows)),
        acc(size_t(n * dim)),
        codes(size_t(n * dim)),
        sums(size_t(n * kMaxBands)),
        n(n),
        dim(dim) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(float(i));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = std::exp(-float(i * 2654435761u % 4096) * 1e-3f);
    for (int q = 0; q < n; ++q) {
      kernels.quantize_query(&values[size_t(q * dim)], dim, &codes[size_t(q * dim)], &scales[size_t(q * kMaxBands)],
                             &sums[size_t(q * kMaxBands)]);
    }
  }

  Queries queries() const { return {values.data(), codes.data(), scales.data(), sums.data(), n}; }
};

enum class Work { kScore, kSum, kSoftmax };

void run_unit(const AttendKernels& kernels, Work work, const Rows& unit, Inputs& in) {
  for (int first = 0; first < unit.count; first += kPartRows) {
    Rows part = unit;
    part.count = std::min(kPartRows, unit.count - first);
    part.codes += first * row_bytes(unit.bits, unit.dim);
    part.scales += first * scale_bytes(unit.bits);
    switch (work) {
      case Work::kScore: kernels.score(part, in.queries(), in.scores.data(), kPartRows); break;
      case Work::kSum: kernels.accumulate(part, in.weights.data(), kPartRows, in.n, in.acc.data()); break;
      case Work::kSoftmax:
        for (int q = 0; q < in.n; ++q) {
          float peak;
          std::copy_n(&in.weights[size_t(q) * kPartRows], part.count, &in.scores[size_t(q) * kPartRows]);
          kernels.softmax_part(&in.scores[size_t(q) * kPartRows], part.count, &peak);
        }
    }
  }
}

Cell row_cell(const AttendKernels& kernels, Work work, bool from_memory, int bits, int slots, const Options& options,
              Memory& memory, SpinningPool& pool) {
  Cell cell{work == Work::kScore ? "score"
            : work == Work::kSum ? "sum"
                                 : "softmax",
            kernels.name, from_memory ? "memory" : "cache"};
  cell.bits = bits;
  cell.slots = slots;
  const int rows = std::string(kernels.name) == "scalar" ? kRowsOfScalarRun : kRowsOfRun;
  const int units = std::max(pool.threads(), rows / slots), dim = options.dim;
  const int64_t codes = int64_t(slots) * row_bytes(bits, dim);
  const int64_t bytes = work == Work::kSoftmax ? 0 : (codes + int64_t(slots) * scale_bytes(bits) + 63) / 64 * 64;
  cell.units = int64_t(units) * slots;
  cell.bytes = units * bytes;
  auto inputs = std::make_shared<std::vector<Inputs>>(size_t(units), Inputs(kernels, options.queries, dim));
  auto kept = std::make_shared<std::vector<uint8_t>>(memory.data(), memory.data() + (from_memory ? 0 : bytes));
  cell.run = [=, &kernels, &memory, &pool] {
    const uint8_t* first = from_memory ? memory.take(units * bytes) : kept->data();
    pool.loop()(units, [&](int i) {
      const uint8_t* at = first + (from_memory ? i * bytes : 0);
      const Rows unit{bits, kRms, dim, at, at + codes, slots};
      run_unit(kernels, work, unit, (*inputs)[size_t(i)]);
    });
  };
  return cell;
}

}  // namespace

void add_row_cells(std::vector<Cell>& cells, const Options& options, Memory& memory, SpinningPool& pool) {
  for (const char* name : {"scalar", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm"}) {
    const AttendKernels* kernels = find_attend_kernels(name);
    const auto& chosen = options.isas;
    if (kernels == nullptr || (!chosen.empty() && std::find(chosen.begin(), chosen.end(), name) == chosen.end())) {
      continue;
    }
    for (int slots : options.slots) {
      cells.push_back(row_cell(*kernels, Work::kSoftmax, false, 0, slots, options, memory, pool));
      for (int bits : options.bits) {
        for (bool from_memory : {true, false}) {
          cells.push_back(row_cell(*kernels, Work::kScore, from_memory, bits, slots, options, memory, pool));
          if (!is_uniform(bits)) continue;  // V rows have one width
          cells.push_back(row_cell(*kernels, Work::kSum, from_memory, bits, slots, options, memory, pool));
        }
      }
    }
  }
}

}  // namespace adakv
