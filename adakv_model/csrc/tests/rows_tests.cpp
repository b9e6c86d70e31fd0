// Attention kernels: every instruction set equals the scalar one bit for bit, and that one plain double arithmetic.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cache/attend_kernels.h"
#include "cache/quantizer.h"
#include "cache/tile.h"
#include "check.h"
#include "layer.h"

namespace adakv::testing {
namespace {

constexpr int kDims[] = {16, 32, 64, 128, 256}, kWidths[] = {2, 3, 4, 8, 16};
constexpr float kNone = -std::numeric_limits<float>::infinity();

const AttendKernels& scalar() { return *find_attend_kernels("scalar"); }

// Sets that this CPU runs, without the scalar one.
std::vector<const AttendKernels*> vector_sets() {
  std::vector<const AttendKernels*> sets;
  for (const char* name : {"avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm"}) {
    if (const AttendKernels* set = find_attend_kernels(name)) sets.push_back(set);
  }
  return sets;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

enum Kind { kNormal, kZeros, kTiny, kHuge, kOutlier, kMixed, kKinds };

std::vector<float> vector_of(Random& random, int dim, Kind kind) {
  std::vector<float> x = random.normals(size_t(dim));
  if (kind == kMixed) kind = Kind(random.integer(0, kMixed - 1));
  const float gain = kind == kZeros ? 0.0f : kind == kTiny ? 1e-36f : kind == kHuge ? 1e7f : 1.0f;
  for (float& v : x) v *= gain;
  if (kind == kOutlier) x[size_t(random.integer(0, dim - 1))] = 3000.0f;
  return x;
}

// Packed random rows in whole blocks of exactly their size, and the odd levels and scales they stand for. The last
// block is filled up with garbage.
struct Block {
  std::vector<uint8_t> codes, scales;
  std::vector<double> levels, decoded;  // [count, dim], without and with the row's scale
  std::vector<double> top;              // [dim], the largest level
  Rows rows;

  Block(Random& random, int bits, int dim, Side side, int count, Kind kind) {
    const int whole = (count + kBlockSlots - 1) / kBlockSlots * kBlockSlots;
    const ScaleMode mode = ScaleMode(random.integer(0, 1));
    codes.assign(size_t(whole * row_bytes(bits, dim)), 0xff);
    scales.assign(size_t(whole * scale_bytes(bits)), 0xff);
    rows = {bits, mode, dim, codes.data(), scales.data(), count};
    const Runs runs = runs_of(bits, dim);
    std::vector<uint16_t> row(static_cast<size_t>(dim));
    for (int r = 0; r < count; ++r) {
      uint8_t* scale = scales.data() + r * scale_bytes(bits);
      quantize_row(vector_of(random, dim, kind).data(), bits, dim, row.data(), scale);
      if (is_narrow(bits) && kind == kMixed && random.integer(0, 3) == 0) *scale = 255;
      store_codes(codes.data(), bits, dim, side, r, row.data());
      for (int c = 0; c < dim; ++c) {
        const int width = runs.width[c / runs.channels], odd = 2 * int(row[size_t(c)]) - (1 << width) + 1;
        levels.push_back(odd * double(level_factor(bits, width, mode)));
        decoded.push_back(levels.back() * row_scale(bits, scale));
      }
    }
    for (int c = 0; c < dim; ++c) {
      const int width = runs.width[c / runs.channels];
      top.push_back(((1 << width) - 1) * double(level_factor(bits, width, mode)));
    }
  }
};

// Queries, quantized by the scalar kernels.
struct Asked {
  std::vector<float> values, scales;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  int dim, n;

  Asked(Random& random, int d, int count, Kind kind)
      : scales(size_t(count) * kMaxBands), codes(size_t(count) * d), sums(scales.size()), dim(d), n(count) {
    for (int q = 0; q < n; ++q) {
      const std::vector<float> x = vector_of(random, dim, kind);
      values.insert(values.end(), x.begin(), x.end());
      const size_t at = size_t(q) * dim, band = size_t(q) * kMaxBands;
      scalar().quantize_query(&values[at], dim, &codes[at], &scales[band], &sums[band]);
    }
  }

  Queries of(int first, int count) const {
    const size_t at = size_t(first) * dim, band = size_t(first) * kMaxBands;
    return {&values[at], &codes[at], &scales[band], &sums[band], count};
  }
  // A channel as the kernels read it.
  double value(int bits, int q, int c) const {
    const size_t at = size_t(q * dim + c);
    if (bits == 16) return values[at];
    return double(codes[at]) * scales[size_t(q * kMaxBands + c / (dim / n_bands(dim)))];
  }
};

int random_count(Random& random) {
  constexpr int kCounts[] = {1, 15, 16, 17, 31, 32, 33, 48, 511, 512};
  const int choice = random.integer(0, 5);
  return choice == 0 ? kCounts[random.integer(0, 9)] : choice == 1 ? random.integer(1, 512) : random.integer(1, 70);
}

int random_queries(Random& random) { return random.integer(0, 1) ? random.integer(1, 9) : random.integer(1, 32); }

// Every width in use, bands often enough for each to meet every other.
int trial_bits(Random& random, int trial, int dim, Side side) {
  return trial % 10 < 5 || side == kValue ? kWidths[trial % 5] : mixed_bits(random, dim);
}

TEST(query_codes_are_nearest_and_equal_in_every_set) {
  Random random(10);
  for (int dim : kDims) {
    for (int trial = 0; trial < 100; ++trial) {
      const Asked asked(random, dim, 1, Kind(trial % kKinds));
      const int channels = dim / n_bands(dim);
      for (int b = 0; b < n_bands(dim); ++b) {
        const size_t band = size_t(b);
        int32_t sum = 0;
        for (int c = b * channels; c < (b + 1) * channels; ++c) {
          const double x = asked.values[size_t(c)], code = asked.codes[size_t(c)];
          sum += asked.codes[size_t(c)];
          CHECK(
              std::fabs(code) <= 127 && std::fabs(x - code * asked.scales[band]) <= 0.5001 * asked.scales[band] + 1e-30,
              "dim %d: %g has code %g of %g", dim, x, code, asked.scales[band]);
        }
        CHECK(sum == asked.sums[band]);
      }
      for (const AttendKernels* set : vector_sets()) {
        Asked other = asked;
        other.codes.assign(other.codes.size(), 99);
        set->quantize_query(other.values.data(), dim, other.codes.data(), other.scales.data(), other.sums.data());
        CHECK(other.codes == asked.codes && same_bits(other.scales, asked.scales) && other.sums == asked.sums,
              "%s, dim %d", set->name, dim);
      }
    }
  }
}

void check_score(Random& random, int trial, int dim) {
  const int bits = trial_bits(random, trial, dim, kKey), count = random_count(random), n = random_queries(random);
  const Block block(random, bits, dim, kKey, count, Kind(random.integer(0, kKinds - 1)));
  const Asked asked(random, dim, n, Kind(random.integer(0, kKinds - 1)));
  const int whole = (count + kBlockSlots - 1) / kBlockSlots * kBlockSlots, stride = whole + random.integer(0, 5);
  const auto run = [&](const AttendKernels& set, int first, int queries) {
    std::vector<float> scores(size_t(queries - 1) * stride + whole, -7.0f);
    set.score(block.rows, asked.of(first, queries), scores.data(), stride);
    // Entries past the last row are undefined; what lies past its block is compared.
    for (int q = 0; q < queries; ++q) std::fill_n(scores.begin() + int64_t(q) * stride + count, whole - count, 0.0f);
    return scores;
  };
  const std::vector<float> scores = run(scalar(), 0, n);
  for (int q = 0; q < n; ++q) {
    for (int r = whole; r < stride && q + 1 < n; ++r) {
      CHECK(scores[size_t(q * stride + r)] == -7.0f, "wrote past the last block");
    }
    for (int r = 0; r < count; ++r) {
      const double scale = row_scale(bits, block.scales.data() + r * scale_bytes(bits));
      double expected = 0, most = 0;
      for (int c = 0; c < dim; ++c) {
        expected += asked.value(bits, q, c) * block.decoded[size_t(r * dim + c)];
        most += std::fabs(asked.value(bits, q, c)) * block.top[size_t(c)] * scale;
      }
      const float got = scores[size_t(q * stride + r)];
      CHECK(std::fabs(got - expected) <= 2e-5 * most + 1e-30,
            "widths %#x, dim %d, query %d of %d, row %d of %d: %g, not %g", bits, dim, q, n, r, count, got, expected);
    }
  }
  for (const AttendKernels* set : vector_sets()) {
    CHECK(same_bits(run(*set, 0, n), scores), "%s, widths %#x, dim %d, %d queries, %d rows", set->name, bits, dim, n,
          count);
  }
  const int alone = random.integer(0, n - 1);  // a query's scores do not depend on its neighbours
  const std::vector<float> one = run(attend_kernels(), alone, 1);
  CHECK(std::equal(one.begin(), one.end(), scores.begin() + int64_t(alone) * stride), "widths %#x, dim %d: alone", bits,
        dim);
}

TEST(scores_match_double_arithmetic_and_are_equal_in_every_set) {
  Random random(11);
  for (int dim : kDims) {
    for (int trial = 0; trial < 60; ++trial) check_score(random, trial, dim);
  }
}

std::vector<float> random_weights(Random& random, int count) {
  std::vector<float> weights(static_cast<size_t>(count));
  const int kind = random.integer(0, 4);
  for (float& w : weights) {
    w = kind == 0   ? 0.0f
        : kind == 1 ? std::fabs(random.fraction())
        : kind == 2 ? std::exp(8 * random.normal() - 40)
        : kind == 3 ? 1e-37f
                    : float(random.integer(0, 9) == 0);
  }
  return weights;
}

void check_accumulate(Random& random, int trial, int dim) {
  const int bits = trial_bits(random, trial, dim, kValue), count = random_count(random), n = random_queries(random);
  const Block block(random, bits, dim, kValue, count, Kind(random.integer(0, kKinds - 1)));
  const int stride = count + random.integer(0, 5);
  std::vector<float> weights(size_t(n - 1) * stride + count, 1e9f);
  for (int q = 0; q < n; ++q) {
    const std::vector<float> w = random_weights(random, count);
    std::copy(w.begin(), w.end(), weights.begin() + int64_t(q) * stride);
  }
  const auto run = [&](const AttendKernels& set, int first, int queries) {
    std::vector<float> acc(size_t(queries) * dim, -7.0f);
    set.accumulate(block.rows, &weights[size_t(first * stride)], stride, queries, acc.data());
    return acc;
  };
  const std::vector<float> acc = run(scalar(), 0, n);
  for (int q = 0; q < n; ++q) {
    std::vector<double> expected(size_t(dim), 0.0), most(expected);
    for (int start = 0; start < count; start += kGroupRows) {
      const int end = std::min(start + kGroupRows, count);
      double peak = 0;
      for (int r = start; r < end; ++r) {
        const double w =
            double(weights[size_t(q * stride + r)]) * row_scale(bits, block.scales.data() + r * scale_bytes(bits));
        peak = std::max(peak, w);
        for (int c = 0; c < dim; ++c) expected[size_t(c)] += w * block.levels[size_t(r * dim + c)];
      }
      // Weights are rounded to 1/127 of the largest; floats besides.
      for (int r = start; r < end; ++r) {
        for (int c = 0; c < dim; ++c) {
          const double rounded = bits == 16 ? 0 : 0.5001 / 127 * std::fabs(block.levels[size_t(r * dim + c)]);
          most[size_t(c)] += peak * (rounded + 4e-5 * block.top[size_t(c)]) + 1e-28;
        }
      }
    }
    for (int c = 0; c < dim; ++c) {
      const double got = acc[size_t(q * dim + c)], want = expected[size_t(c)];
      CHECK(std::fabs(got - want) <= most[size_t(c)],
            "widths %#x, dim %d, query %d of %d, channel %d, %d rows: %g, not %g", bits, dim, q, n, c, count, got,
            want);
    }
  }
  for (const AttendKernels* set : vector_sets()) {
    CHECK(same_bits(run(*set, 0, n), acc), "%s, widths %#x, dim %d, %d queries, %d rows", set->name, bits, dim, n,
          count);
  }
  const int alone = random.integer(0, n - 1);
  const std::vector<float> one = run(attend_kernels(), alone, 1);
  CHECK(std::equal(one.begin(), one.end(), acc.begin() + int64_t(alone) * dim), "widths %#x, dim %d: alone", bits, dim);
  for (int q = 0; q < n; ++q) {  // rows of weight 0 at the end add nothing
    std::fill_n(&weights[size_t(q * stride + count / 2)], count - count / 2, 0.0f);
  }
  if (count < 2) return;
  const std::vector<float> all = run(attend_kernels(), 0, n);
  Rows fewer = block.rows;
  fewer.count = count / 2;
  std::vector<float> few(all.size());
  attend_kernels().accumulate(fewer, weights.data(), stride, n, few.data());
  CHECK(all == few, "widths %#x, dim %d, %d of %d rows", bits, dim, count / 2, count);
}

TEST(weighted_sums_match_double_arithmetic_and_are_equal_in_every_set) {
  Random random(12);
  for (int dim : kDims) {
    for (int trial = 0; trial < 50; ++trial) check_accumulate(random, trial, dim);
  }
}

// The largest sums that integers must hold: every code and every weight at its end.
TEST(saturated_products_are_equal_in_every_set) {
  Random random(16);
  for (int bits : {2, 3, 4, 8, 0x02080304, 0x08080403}) {
    for (int sign : {-1, 1}) {
      Block block(random, bits, 256, kKey, 32, kNormal);
      std::fill(block.codes.begin(), block.codes.end(), 0xff);
      for (int n : {1, 4, 6}) {
        Asked asked(random, 256, n, kNormal);
        std::fill(asked.codes.begin(), asked.codes.end(), int8_t(sign * 127));
        std::fill(asked.sums.begin(), asked.sums.end(), sign * 127 * 64);
        std::vector<float> want(size_t(n) * 32), got(want), weights(want.size(), 1.0f);
        std::vector<float> want_sum(size_t(n) * 256), got_sum(want_sum);
        scalar().score(block.rows, asked.of(0, n), want.data(), 32);
        if (is_uniform(bits)) scalar().accumulate(block.rows, weights.data(), 32, n, want_sum.data());
        for (const AttendKernels* set : vector_sets()) {
          set->score(block.rows, asked.of(0, n), got.data(), 32);
          CHECK(same_bits(want, got), "%s, widths %#x", set->name, bits);
          if (is_uniform(bits)) set->accumulate(block.rows, weights.data(), 32, n, got_sum.data());
          CHECK(same_bits(want_sum, got_sum), "%s, widths %#x", set->name, bits);
        }
      }
    }
  }
}

TEST(transform_and_join_are_sums_in_order_in_every_set) {
  Random random(15);
  std::vector<const AttendKernels*> sets = vector_sets();
  sets.push_back(&scalar());
  for (int dim : kDims) {
    const size_t d = size_t(dim);
    const std::vector<float> x = random.normals(d), columns = random.normals(d * d), other = random.normals(d);
    std::vector<float> want(d), y(d), joined(d);
    for (size_t i = 0; i < d; ++i) {
      want[i] = x[0] * columns[i];
      for (size_t j = 1; j < d; ++j) want[i] = want[i] + x[j] * columns[j * d + i];
      joined[i] = x[i] * 0.3f + other[i] * 0.7f;
    }
    for (const AttendKernels* set : sets) {
      set->transform(x.data(), columns.data(), dim, y.data());
      CHECK(same_bits(y, want), "%s, dim %d", set->name, dim);
      y = x;
      set->join(y.data(), 0.3f, other.data(), 0.7f, dim);
      CHECK(same_bits(y, joined), "%s, dim %d", set->name, dim);
    }
  }
}

TEST(softmax_part_sums_exponentials_in_every_set) {
  Random random(12);
  for (int n : {1, 2, 15, 16, 17, 33, 100, 512}) {
    for (int hidden : {0, 1, n - 1, n}) {
      std::vector<float> before = random.normals(size_t(n));
      for (float& v : before) v *= 20;
      std::fill_n(before.begin(), std::min(hidden, n), kNone);
      std::vector<float> x = before;
      float peak = 0, other_peak = 0;
      const float sum = scalar().softmax_part(x.data(), n, &peak);
      CHECK(peak == *std::max_element(before.begin(), before.end()), "peak %g", peak);
      double total = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double e = before[i] == kNone ? 0 : std::exp(double(before[i]) - peak);
        CHECK(std::fabs(x[i] - e) < 1e-6, "%g, not %g", x[i], e);
        total += e;
      }
      CHECK(std::fabs(sum - total) < 1e-5 * std::max(total, 1.0), "sum %g, not %g", sum, total);
      for (const AttendKernels* set : vector_sets()) {
        std::vector<float> y = before;
        const float other = set->softmax_part(y.data(), n, &other_peak);
        CHECK(other == sum && other_peak == peak && same_bits(x, y), "%s, %d numbers, %d hidden", set->name, n, hidden);
      }
    }
  }
}

TEST(prediction_stats_match_double_arithmetic_in_every_set) {
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
      std::vector<float> got(3), other(3);
      scalar().prediction_stats(logits.data(), vocab, token, got.data());
      for (size_t i = 0; i < 3; ++i) {
        CHECK(std::fabs(got[i] - expected[i]) < 1e-5 * std::max(1.0, std::fabs(expected[i])),
              "vocabulary %d, gain %g, value %d: %g, not %g", vocab, gain, int(i), got[i], expected[i]);
      }
      for (const AttendKernels* set : vector_sets()) {
        set->prediction_stats(logits.data(), vocab, token, other.data());
        CHECK(same_bits(got, other), "%s, vocabulary %d, gain %g", set->name, vocab, gain);
      }
    }
  }
}

TEST(the_kernels_in_use_are_among_those_found) {
  const AttendKernels& used = attend_kernels();
  CHECK(find_attend_kernels(used.name) == &used, "%s", used.name);
  CHECK(find_attend_kernels("no such set") == nullptr);
}

}  // namespace
}  // namespace adakv::testing
