// The token table's kernels of every instruction set this CPU has, against double precision.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "cache/quantizer.h"
#include "check.h"
#include "linear/table.h"

namespace adakv::testing {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm"};

struct Example {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
  std::vector<float> x;
  std::vector<std::vector<double>> weights;  // [rows][channels]
  int rows, channels, count;

  Example(int rows, int channels, int count) : rows(rows), channels(channels), count(count) {
    Random random(uint64_t(rows * 7 + channels + count));
    const int groups = channels / kGroup, blocks = (rows + kBlockRows - 1) / kBlockRows;
    codes.resize(size_t(blocks) * groups * kTableBlockBytes);
    for (uint8_t& byte : codes) byte = uint8_t(random.integer(0, 255));
    for (int i = 0; i < blocks * groups * kBlockRows; ++i) {
      scales.push_back(float_to_half(0.001f * float(random.integer(1, 1000))));
    }
    for (int i = 0; i < count * channels; ++i) x.push_back(float(random.integer(-1000, 1000)) * 0.01f);
    for (int j = 0; j < kGroup; ++j) x[size_t(j)] = 0;  // a silent group
    if (channels > 64) x[70] = 5000;                    // an outlier
    weights.assign(size_t(rows), std::vector<double>(size_t(channels)));
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < channels; ++c) {
        const int quad = c % kGroup / 4, at = r / kBlockRows * groups + c / kGroup;
        const uint8_t* block = codes.data() + at * kTableBlockBytes + r % kBlockRows * 4 + c % 4;
        const int low = (block[quad % 4 * 32] >> (quad / 4 * 4)) & 15;
        const int high = (block[128 + quad % 2 * 32] >> (quad / 2 * 2)) & 3;
        const double scale = half_to_float(scales[size_t(at * kBlockRows + r % kBlockRows)]);
        weights[size_t(r)][size_t(c)] = (low + 16 * high - 32) * scale;
      }
    }
  }

  Table table() const { return {codes.data(), scales.data(), rows, channels}; }
};

TEST(table_products_are_those_of_rounded_activations) {
  for (const char* name : kNames) {
    const LinearKernels* kernels = find_linear_kernels(name);
    if (kernels == nullptr) continue;
    for (const auto& [rows, channels, count] : {std::array{1, 32, 1}, {130, 192, 5}, {64, 576, 4}, {65, 2048, 7}}) {
      const Example e(rows, channels, count);
      std::vector<float> out(size_t(rows) * count);
      table_product(e.table(), e.x.data(), count, out.data(), serial_for, *kernels);
      for (int t = 0; t < count; ++t) {
        std::vector<double> rounded, doubt;  // doubt: what a code halfway between two may add
        for (int g = 0; g < channels; g += kGroup) {
          const float* x = e.x.data() + t * channels + g;
          double peak = 0;
          for (int j = 0; j < kGroup; ++j) peak = std::max(peak, double(std::fabs(x[j])));
          const double step = peak > 0 ? peak / 127 : 1;
          for (int j = 0; j < kGroup; ++j) {
            const double code = x[j] / step;
            rounded.push_back(std::nearbyint(code) * step);
            doubt.push_back(std::fabs(code - std::floor(code) - 0.5) < 1e-4 ? step : 0);
          }
        }
        for (int r = 0; r < rows; ++r) {
          double want = 0, size = 0, slack = 0;
          for (int c = 0; c < channels; ++c) {
            want += e.weights[size_t(r)][size_t(c)] * rounded[size_t(c)];
            size += std::fabs(e.weights[size_t(r)][size_t(c)] * rounded[size_t(c)]);
            slack += std::fabs(e.weights[size_t(r)][size_t(c)] * doubt[size_t(c)]);
          }
          const double got = out[size_t(t) * rows + r];
          CHECK(std::fabs(got - want) <= 1e-5 * size + slack, "%s, %d channels, token %d, row %d: %g, not %g", name,
                channels, t, r, got, want);
        }
      }
    }
  }
}

TEST(table_products_do_not_depend_on_the_tokens_beside) {
  for (const char* name : kNames) {
    const LinearKernels* kernels = find_linear_kernels(name);
    if (kernels == nullptr) continue;
    const Example e(70, 576, 9);
    std::vector<float> together(70 * 9), alone(70);
    table_product(e.table(), e.x.data(), 9, together.data(), serial_for, *kernels);
    for (int t = 0; t < 9; ++t) {
      table_product(e.table(), e.x.data() + t * 576, 1, alone.data(), serial_for, *kernels);
      for (int r = 0; r < 70; ++r) CHECK(together[size_t(t * 70 + r)] == alone[size_t(r)], "%s, token %d", name, t);
    }
  }
}

TEST(table_products_of_every_set_equal_the_baseline) {
  for (const auto& [rows, channels, count] :
       {std::array{1, 32, 1}, {77, 96, 1}, {70, 576, 2}, {65, 576, 9}, {130, 192, 32}}) {
    const Example e(rows, channels, count);
    std::vector<float> expected(size_t(rows) * count), out = expected;
    table_product(e.table(), e.x.data(), count, expected.data(), serial_for, *find_linear_kernels("baseline"));
    for (const char* name : kNames) {
      const LinearKernels* kernels = find_linear_kernels(name);
      if (kernels == nullptr) continue;
      table_product(e.table(), e.x.data(), count, out.data(), serial_for, *kernels);
      CHECK(out == expected, "%s, %d rows, %d channels, %d tokens", name, rows, channels, count);
    }
  }
}

TEST(table_rows_are_found) {
  const Example e(40, 96, 1);
  const int64_t tokens[] = {39, 0, 7};
  std::vector<float> out(3 * 96);
  table_lookup(e.table(), tokens, 3, out.data());
  for (int t = 0; t < 3; ++t) {
    for (int c = 0; c < 96; ++c) {
      CHECK(double(out[size_t(t * 96 + c)]) == e.weights[size_t(tokens[t])][size_t(c)], "token %d, channel %d", t, c);
    }
  }
}

}  // namespace
}  // namespace adakv::testing
