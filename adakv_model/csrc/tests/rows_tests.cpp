// Row kernels of every instruction set against plain double arithmetic.
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "layer.h"
#include "quantizer.h"

namespace adakv::testing {
namespace {

std::vector<const RowKernels*> available() {
  std::vector<const RowKernels*> sets;
  for (const char* name : {"baseline", "avx2", "neon", "dotprod"}) {
    if (const RowKernels* set = find_row_kernels(name)) sets.push_back(set);
  }
  return sets;
}

// Packed random rows, and what dequantize_row makes of them. Buffers have exactly the size of the rows.
struct Block {
  std::vector<uint8_t> codes, scales;
  std::vector<float> decoded;  // [count, dim]
  Rows rows;

  Block(Random& random, int bits, ScaleMode mode, int dim, int count)
      : codes(size_t(count) * row_bytes(bits, dim)),
        scales(size_t(count) * scale_bytes(bits)),
        decoded(size_t(count) * dim) {
    for (int r = 0; r < count; ++r) {
      uint8_t* packed = codes.data() + size_t(r) * row_bytes(bits, dim);
      uint8_t* scale = scales.data() + size_t(r) * scale_bytes(bits);
      quantize_row(random.normals(size_t(dim)).data(), bits, dim, packed, scale);
      dequantize_row(packed, scale, bits, mode, dim, &decoded[size_t(r) * dim]);
    }
    rows = {bits, mode, codes.data(), scales.data(), count};
  }
};

void check_score(const RowKernels& kernels, Random& random, const Block& block, int dim, int n) {
  const int count = block.rows.count, stride = count + random.integer(0, 5);
  const std::vector<float> queries = random.normals(size_t(n) * dim);
  std::vector<float> scores(size_t(n - 1) * stride + count, -7.0f);
  kernels.score(block.rows, queries.data(), n, dim, scores.data(), stride);
  for (int q = 0; q < n; ++q) {
    for (int r = 0; r < count; ++r) {
      double expected = 0;
      for (int j = 0; j < dim; ++j)
        expected += double(queries[size_t(q * dim + j)]) * block.decoded[size_t(r * dim + j)];
      const float got = scores[size_t(q * stride + r)];
      CHECK(std::fabs(got - expected) < 5e-5, "%s, widths %#x, dim %d, query %d of %d, row %d of %d: %g, not %g",
            kernels.name, block.rows.bits, dim, q, n, r, count, got, expected);
    }
    for (int r = count; r < stride && q + 1 < n; ++r) {
      CHECK(scores[size_t(q * stride + r)] == -7.0f, "%s wrote past its rows", kernels.name);
    }
  }
}

void check_accumulate(const RowKernels& kernels, Random& random, const Block& block, int dim, int n) {
  const int count = block.rows.count, stride = count + random.integer(0, 5);
  std::vector<float> weights(size_t(n - 1) * stride + count), acc = random.normals(size_t(n) * dim);
  for (float& w : weights) w = std::fabs(random.fraction());
  const std::vector<float> before = acc;
  kernels.accumulate(block.rows, weights.data(), stride, n, dim, acc.data());
  for (int q = 0; q < n; ++q) {
    for (int j = 0; j < dim; ++j) {
      double expected = before[size_t(q * dim + j)];
      for (int r = 0; r < count; ++r)
        expected += double(weights[size_t(q * stride + r)]) * block.decoded[size_t(r * dim + j)];
      const float got = acc[size_t(q * dim + j)];
      CHECK(std::fabs(got - expected) < 5e-5, "%s, widths %#x, dim %d, query %d of %d, channel %d, %d rows: %g, not %g",
            kernels.name, block.rows.bits, dim, q, n, j, count, got, expected);
    }
  }
}

TEST(row_kernels_of_every_instruction_set_match_decoded_rows) {
  CHECK(!available().empty());
  for (const RowKernels* kernels : available()) {
    Random random(11);
    for (int dim : {16, 32, 64, 128, 256}) {
      std::vector<int> widths = {2, 3, 4, 8, 16};
      for (int i = 0; i < 8; ++i) widths.push_back(mixed_bits(random, dim));
      for (int bits : widths) {
        for (int count : {1, 2, 7, 8, 9, 21}) {
          const Block block(random, bits, ScaleMode(random.integer(0, 1)), dim, count);
          for (int n : {1, 3, 8}) {
            check_score(*kernels, random, block, dim, n);
            check_accumulate(*kernels, random, block, dim, n);
          }
        }
      }
    }
  }
}

// A row's score is the same wherever it stands; rows of weight 0 add nothing, whatever comes after them.
TEST(row_kernels_do_not_depend_on_how_rows_are_cut) {
  for (const RowKernels* kernels : available()) {
    Random random(14);
    for (int dim : {16, 32, 64, 128, 256}) {
      for (int trial = 0; trial < 12; ++trial) {
        constexpr int kWidths[] = {2, 3, 4, 8, 16};
        const int bits = trial < 5 ? kWidths[trial] : mixed_bits(random, dim), count = 21, n = 3;
        const Block block(random, bits, ScaleMode(trial % 2), dim, count);
        const std::vector<float> queries = random.normals(size_t(n) * dim);
        std::vector<float> scores(size_t(n) * count), weights(scores.size());
        kernels->score(block.rows, queries.data(), n, dim, scores.data(), count);
        for (float& w : weights) w = std::fabs(random.fraction());
        for (int visible = 1; visible < count; ++visible) {
          const Rows first = {bits, block.rows.mode, block.rows.codes, block.rows.scales, visible};
          std::vector<float> fewer(size_t(n) * visible), hidden(weights);
          kernels->score(first, queries.data(), n, dim, fewer.data(), visible);
          std::vector<float> all_sum(size_t(n) * dim, 0.0f), few_sum(all_sum);
          for (int q = 0; q < n; ++q) {
            for (int r = 0; r < visible; ++r) {
              CHECK(fewer[size_t(q * visible + r)] == scores[size_t(q * count + r)], "%s, widths %#x, dim %d: row %d",
                    kernels->name, bits, dim, r);
            }
            std::fill(hidden.begin() + q * count + visible, hidden.begin() + (q + 1) * count, 0.0f);
          }
          kernels->accumulate(block.rows, hidden.data(), count, n, dim, all_sum.data());
          kernels->accumulate(first, hidden.data(), count, n, dim, few_sum.data());
          CHECK(all_sum == few_sum, "%s, widths %#x, dim %d, %d rows", kernels->name, bits, dim, visible);
          std::vector<float> one(static_cast<size_t>(dim), 0.0f);  // one query alone
          kernels->accumulate(first, hidden.data() + count, count, 1, dim, one.data());
          CHECK(std::equal(one.begin(), one.end(), few_sum.begin() + dim), "%s, widths %#x, dim %d: a query alone",
                kernels->name, bits, dim);
        }
      }
    }
  }
}

TEST(softmax_part_sums_exponentials) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (const RowKernels* kernels : available()) {
    Random random(12);
    for (int n : {1, 2, 15, 16, 17, 100}) {
      for (int hidden : {0, 1, n - 1, n}) {
        std::vector<float> x = random.normals(size_t(n));
        for (float& v : x) v *= 20;
        std::fill_n(x.begin(), std::min(hidden, n), kNone);
        const std::vector<float> before = x;
        const float expected_peak = *std::max_element(before.begin(), before.end());
        float peak = 0;
        const float sum = kernels->softmax_part(x.data(), n, &peak);
        CHECK(peak == expected_peak, "%s: peak %g, not %g", kernels->name, peak, expected_peak);
        double total = 0;
        for (size_t i = 0; i < x.size(); ++i) {
          const double e = before[i] == kNone ? 0 : std::exp(double(before[i]) - peak);
          CHECK(std::fabs(x[i] - e) < 1e-6, "%s: %g, not %g", kernels->name, x[i], e);
          total += e;
        }
        CHECK(std::fabs(sum - total) < 1e-5 * std::max(total, 1.0), "%s: sum %g, not %g", kernels->name, sum, total);
      }
    }
  }
}

TEST(prediction_stats_match_double_arithmetic) {
  for (const RowKernels* kernels : available()) {
    Random random(13);
    for (int vocab : {1, 2, 15, 16, 17, 4095, 4096, 4097, 9001}) {
      for (float gain : {0.0f, 1.0f, 8.0f, 400.0f}) {
        std::vector<float> logits = random.normals(size_t(vocab));
        for (float& v : logits) v *= gain;
        const int token = random.integer(0, vocab - 1);
        double total = 0, weighted = 0;
        const double peak = *std::max_element(logits.begin(), logits.end());
        for (float v : logits) total += std::exp(v - peak), weighted += std::exp(v - peak) * (v - peak);
        const double expected[] = {1 / total, std::log(total) - weighted / total,
                                   std::log(total) - (double(logits[size_t(token)]) - peak)};
        float got[3];
        kernels->prediction_stats(logits.data(), vocab, token, got);
        for (int i = 0; i < 3; ++i) {
          CHECK(std::fabs(got[i] - expected[i]) < 1e-5 * std::max(1.0, std::fabs(expected[i])),
                "%s, vocabulary %d, gain %g, value %d: %g, not %g", kernels->name, vocab, gain, i, got[i], expected[i]);
        }
      }
    }
  }
}

TEST(the_kernels_in_use_are_among_those_found) {
  const RowKernels& used = row_kernels();
  CHECK(find_row_kernels(used.name) == &used, "%s", used.name);
  CHECK(find_row_kernels("no such set") == nullptr);
}

}  // namespace
}  // namespace adakv::testing
