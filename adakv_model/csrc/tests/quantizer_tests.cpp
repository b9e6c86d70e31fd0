#include "cache/quantizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cache/tile.h"
#include "check.h"
#include "fast_exp.h"
#include "layer.h"

namespace adakv::testing {
namespace {

constexpr int kDims[] = {16, 32, 64, 128, 256};
constexpr int kWidths[] = {2, 3, 4, 8, 16};

// The half nearest to x, ties to even, in double arithmetic.
uint16_t slow_half(double x) {
  const double magnitude = std::fabs(x);
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent, m in [0.5, 1)
  const double ulp = std::ldexp(1.0, std::max(exponent - 1, -14) - 10);
  const double rounded = std::nearbyint(magnitude / ulp) * ulp;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (rounded < std::ldexp(1.0, -14)) return uint16_t(sign | int(rounded / std::ldexp(1.0, -24)));
  std::frexp(rounded, &exponent);
  const int field = int(std::ldexp(rounded, 11 - exponent));  // 1024 .. 2047
  return uint16_t(sign | ((exponent - 1 + 15) << 10) | (field - 1024));
}

double slow_value(uint16_t h) {
  const int exponent = (h >> 10) & 31, fraction = h & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

struct Quantized {
  std::vector<uint16_t> codes;
  uint8_t scale[2];
  std::vector<float> back;
};

Quantized round_trip(const std::vector<float>& x, int bits, ScaleMode mode) {
  const int dim = int(x.size());
  Quantized r{std::vector<uint16_t>(x.size()), {0xaa, 0xaa}, std::vector<float>(x.size())};
  quantize_row(x.data(), bits, dim, r.codes.data(), r.scale);
  dequantize_row(r.codes.data(), r.scale, bits, mode, dim, r.back.data());
  return r;
}

double peak_of(const std::vector<float>& x) {
  double peak = 0;
  for (float v : x) peak = std::max(peak, std::fabs(double(v)));
  return peak;
}

TEST(every_finite_half_round_trips) {
  for (int h = 0; h < 65536; ++h) {
    if ((h & 0x7c00) == 0x7c00) continue;
    const float value = half_to_float(uint16_t(h));
    CHECK(double(value) == slow_value(uint16_t(h)), "half %04x reads as %g", h, value);
    CHECK(float_to_half(value) == h, "half %04x becomes %04x", h, float_to_half(value));
  }
}

TEST(halves_round_to_nearest_even) {
  for (int h = 0; h < 0x7bff; ++h) {  // between every half and the next: the middle and its neighbours
    const float low = half_to_float(uint16_t(h)), high = half_to_float(uint16_t(h + 1));
    const float middle = low + (high - low) / 2;
    for (float x : {middle, std::nextafter(middle, low), std::nextafter(middle, high)}) {
      CHECK(float_to_half(x) == slow_half(x), "%a: %04x, not %04x", x, float_to_half(x), slow_half(x));
      CHECK(float_to_half(-x) == slow_half(-x), "%a", -x);
    }
  }
  Random random(1);
  for (int i = 0; i < 200000; ++i) {
    const float x = float_from_bits(uint32_t(random.next()));
    if (!(std::fabs(x) <= kFp16Max)) continue;
    CHECK(float_to_half(x) == slow_half(x), "%a: %04x, not %04x", x, float_to_half(x), slow_half(x));
  }
}

TEST(scale_codes_are_sixteenths_of_an_octave) {
  CHECK(kScaleTables.scales[0] == 0.0f && kScaleTables.scales[128] == 1.0f && kScaleTables.scales[144] == 2.0f);
  for (int code = 1; code < 256; ++code) {
    const double scale = std::exp2((code - 128) / 16.0), bound = std::exp2((code - 128.5) / 16.0);
    CHECK(kScaleTables.scales[code] == float(scale), "code %d", code);
    CHECK(kScaleTables.bounds[code - 1] == float(bound), "code %d", code);
  }
}

// The code by a search from the start, for rows whose every channel is the same, so that it is their rms.
TEST(scale_code_is_the_number_of_bounds_not_above_the_rms) {
  for (int i = 0; i < 255; ++i) {
    const float bound = kScaleTables.bounds[i];
    for (float value : {std::nextafter(bound, 0.0f), bound, std::nextafter(bound, 1e9f)}) {
      const float rms = std::sqrt(value * value);  // as the row's
      int expected = 0;
      while (expected < 255 && kScaleTables.bounds[expected] <= rms) ++expected;
      for (int bits : {2, 3, 4, 0x03020404}) {
        const Quantized r = round_trip(std::vector<float>(64, value), bits, kRms);
        CHECK(r.scale[0] == expected && r.scale[1] == 0xaa, "%a: code %d, not %d", value, r.scale[0], expected);
      }
    }
  }
}

// Bit `bit` of code n of 64, by the drawing in docs/cache-format.md: its number from the start of the tile.
int bit_place(int width, int n, int bit) {
  if (width == 8) return 8 * n + bit;
  const bool high = width == 3 && bit == 2;
  const int field = high ? 1 : width == 3 ? 2 : width, bytes = 64 * field / 8;
  return (high ? 128 : 0) + 8 * (n % bytes) + field * (n / bytes) + (high ? 0 : bit);
}

TEST(codes_of_a_tile_lie_in_planes) {
  Random random(1);
  for (int width : {2, 3, 4, 8}) {
    for (int trial = 0; trial < 20; ++trial) {
      std::vector<uint8_t> tile(size_t(tile_bytes(width)), uint8_t(random.integer(0, 255))), want(tile.size(), 0);
      for (int n = 0; n < kTileCodes; ++n) {
        const int code = random.integer(0, (1 << width) - 1);
        set_code(tile.data(), width, n, unsigned(code));
        CHECK(int(code_at(tile.data(), width, n)) == code, "%d bits, code %d", width, n);
        for (int bit = 0; bit < width; ++bit) {
          const int place = bit_place(width, n, bit);
          want[size_t(place / 8)] = uint8_t(want[size_t(place / 8)] | (code >> bit & 1) << place % 8);
        }
      }
      CHECK(tile == want, "%d bits", width);
    }
  }
}

// The bytes of whole blocks, from the description of tiles in packing.py.
std::vector<uint8_t> packed_blocks(const std::vector<std::vector<uint16_t>>& rows, int bits, int dim, Side side) {
  std::vector<uint8_t> all(rows.size() * size_t(row_bytes(bits, dim)), 0);
  const auto put = [&all](int64_t at, int bit) { all[size_t(at / 8)] = uint8_t(all[size_t(at / 8)] | bit << at % 8); };
  const Runs runs = runs_of(bits, dim);
  for (size_t r = 0; r < rows.size(); ++r) {
    const int slot = int(r) % kBlockSlots;
    const int64_t block = 8 * (int64_t(r) / kBlockSlots) * kBlockSlots * row_bytes(bits, dim);
    for (int c = 0; c < dim; ++c) {
      const int band = c / runs.channels, width = runs.width[band];
      int64_t tile = block;  // in bits
      for (int b = 0; b < band; ++b) tile += int64_t(kBlockSlots) * runs.channels * runs.width[b];
      const int in_band = c - band * runs.channels, number = side == kKey ? in_band / 4 : c / 16 * 4 + slot / 4;
      const int n = side == kKey ? 4 * slot + c % 4 : 4 * (c % 16) + slot % 4;
      for (int bit = 0; bit < width; ++bit) {
        const int in_block = side == kKey ? c * kBlockSlots + slot : slot * dim + c;  // of 16-bit rows
        const int64_t at = width == 16 ? block + 16 * int64_t(in_block) + bit
                                       : tile + int64_t(number) * kTileCodes * width + bit_place(width, n, bit);
        put(at, rows[r][size_t(c)] >> bit & 1);
      }
    }
  }
  return all;
}

// Rows stored in any order over garbage read back, lie where they should and leave their neighbours alone.
TEST(stored_codes_come_back_and_lie_in_tiles) {
  Random random(8);
  for (int dim : kDims) {
    for (int trial = 0; trial < 20; ++trial) {
      const Side side = trial % 2 ? kValue : kKey;
      const int bits = trial < 10 ? kWidths[trial / 2] : random_bits(random, dim, side);
      const Runs runs = runs_of(bits, dim);
      constexpr int kRows = 2 * kBlockSlots;
      std::vector<std::vector<uint16_t>> rows(kRows, std::vector<uint16_t>(size_t(dim)));
      std::vector<uint8_t> segment(size_t(kRows * row_bytes(bits, dim)), 0xa5);
      std::vector<uint16_t> back(size_t(dim), 7);
      for (int r = 0; r < kRows; ++r) load_codes(segment.data(), bits, dim, side, r, rows[size_t(r)].data());
      for (int i = 0; i < 2 * kRows; ++i) {
        const int r = i < kRows ? (11 * i + 5) % kRows : random.integer(0, kRows - 1);
        for (int c = 0; c < dim; ++c) {
          rows[size_t(r)][size_t(c)] = uint16_t(random.integer(0, (1 << runs.width[c / runs.channels]) - 1));
        }
        store_codes(segment.data(), bits, dim, side, r, rows[size_t(r)].data());
        for (int other = 0; other < kRows; ++other) {
          load_codes(segment.data(), bits, dim, side, other, back.data());
          CHECK(back == rows[size_t(other)], "widths %#x, dim %d, side %d: row %d after row %d", bits, dim, side, other,
                r);
        }
      }
      CHECK(segment == packed_blocks(rows, bits, dim, side), "widths %#x, dim %d, side %d", bits, dim, side);
    }
  }
}

// Codes and scale are those of the definition, in double arithmetic, but for values at the edge of a level.
TEST(codes_are_levels_below_the_value) {
  Random random(9);
  constexpr double kSteps[] = {0, 0, 0.996, 0.586, 0.335, 0, 0, 0, 0.05};
  for (int dim : kDims) {
    for (int trial = 0; trial < 60; ++trial) {
      const int bits = trial < 5 ? kWidths[trial] : random_bits(random, dim, kKey);
      const std::vector<float> x = random.normals(size_t(dim));
      const Quantized r = round_trip(x, bits, kRms);
      const Runs runs = runs_of(bits, dim);
      double square = 0;
      for (float v : x) square += double(v) * v / dim;
      const double scale = row_scale(bits, r.scale), wanted = is_narrow(bits) ? std::sqrt(square)
                                                              : bits == 8     ? peak_of(x) / 255
                                                                              : peak_of(x);
      CHECK(std::fabs(std::log2(scale / wanted)) < (is_narrow(bits) ? 1 / 31.9 : 2e-3), "%g, not %g", scale, wanted);
      for (int c = 0; c < dim; ++c) {
        const int width = runs.width[c / runs.channels];
        const double step = is_narrow(bits) ? scale * kSteps[width] : bits == 8 ? 2 * wanted : scale * 0x1p-15;
        const double at = x[size_t(c)] / step + (1 << (width - 1)), top = (1 << width) - 1;
        const int code = r.codes[size_t(c)];
        CHECK(code <= top && (at > 0 ? code < at + 0.01 : code == 0) && (at < top ? code > at - 1.01 : code == top),
              "widths %#x, channel %d: %d at %g", bits, c, code, at);
      }
    }
  }
}

// Every band of a mixed row is what a uniform row with the same scale holds in those channels.
TEST(bands_are_coded_like_uniform_rows) {
  Random random(8);
  for (int dim : kDims) {
    const int count = n_bands(dim), channels = dim / count;
    for (int trial = 0; trial < 40; ++trial) {
      const int bits = mixed_bits(random, dim);
      const std::vector<float> x = random.normals(size_t(dim));
      const Quantized mixed = round_trip(x, bits, ScaleMode(trial % 2));
      for (int b = 0; b < count; ++b) {
        const int width = (bits >> (8 * b)) & 255;
        if (width == 8) continue;  // plain 8-bit rows have another scale
        const Quantized uniform = round_trip(x, width, ScaleMode(trial % 2));
        CHECK(uniform.scale[0] == mixed.scale[0], "dim %d", dim);
        for (size_t i = size_t(b * channels); i < size_t((b + 1) * channels); ++i) {
          CHECK(mixed.back[i] == uniform.back[i] && mixed.codes[i] == uniform.codes[i],
                "dim %d, widths %#x, channel %d", dim, bits, int(i));
        }
      }
    }
  }
}

// Mean squared error of a unit normal over the MSE-optimal uniform quantizer (Max 1960; GAUSSIAN_MSE in quantizer.py).
TEST(narrow_rows_err_as_theory_says) {
  const double expected[] = {0.1188, 0.0374, 0.0115};
  for (int dim : kDims) {
    for (int w = 0; w < 3; ++w) {
      Random random(uint64_t(dim + w));
      double error = 0, power = 0;
      for (int row = 0; row < 60000 / dim; ++row) {
        const std::vector<float> x = random.normals(size_t(dim));
        const Quantized r = round_trip(x, kWidths[w], kRms);
        for (size_t i = 0; i < x.size(); ++i) {
          error += (double(x[i]) - r.back[i]) * (double(x[i]) - r.back[i]);
          power += double(x[i]) * x[i];
        }
      }
      const double relative = error / power;
      // Short rows do better: their own rms bounds their peak.
      CHECK(relative < 1.05 * expected[w] && (dim < 64 || relative > 0.9 * expected[w]),
            "%d bits, dim %d: %.5f, not %.5f", kWidths[w], dim, relative, expected[w]);
    }
  }
}

TEST(wide_rows_err_by_less_than_half_a_step) {
  Random random(5);
  for (int dim : kDims) {
    for (int trial = 0; trial < 200; ++trial) {
      std::vector<float> x = random.normals(size_t(dim));
      const float gain = std::ldexp(1.0f, random.integer(-4, 12));  // below, an 8-bit scale is a subnormal half
      for (float& v : x) v *= gain;
      const double peak = peak_of(x);
      // 8 bits: half a step, then fp16 rounding of the scale. 16 bits: the step of the next fp16 at or above the peak.
      const double bounds[] = {peak * (1 / 255.0 + 1 / 2048.0) * 1.0001, peak * 0x1p-16 * 1.02};
      for (int wide = 0; wide < 2; ++wide) {
        const Quantized r = round_trip(x, kWidths[3 + wide], kRms);
        for (size_t i = 0; i < x.size(); ++i) {
          const double error = std::fabs(double(x[i]) - r.back[i]);
          CHECK(error <= bounds[wide], "%d bits, dim %d: %g > %g", kWidths[3 + wide], dim, error, bounds[wide]);
        }
      }
    }
  }
}

TEST(unbiased_levels_keep_the_logit_on_average) {
  Random random(6);
  for (int dim : kDims) {
    for (int trial = 0; trial < 8; ++trial) {
      const int bits = trial < 3 ? kWidths[trial] : mixed_bits(random, dim);
      double xx = 0, unbiased = 0, shrunk = 0;
      for (int row = 0; row < 100000 / dim; ++row) {
        const std::vector<float> x = random.normals(size_t(dim));
        const Quantized u = round_trip(x, bits, kUnbiased), r = round_trip(x, bits, kRms);
        CHECK(u.codes == r.codes && u.scale[0] == r.scale[0]);
        for (size_t i = 0; i < x.size(); ++i) {
          xx += double(x[i]) * x[i], unbiased += double(x[i]) * u.back[i], shrunk += double(x[i]) * r.back[i];
        }
      }
      // Within what scale steps and samples leave. Short rows differ from Gaussian ones: their rms bounds their peak.
      CHECK(std::fabs(unbiased / xx - 1) < (dim < 64 ? 0.04 : 0.02), "widths %#x, dim %d: %g", bits, dim,
            unbiased / xx);
      CHECK(unbiased > shrunk, "widths %#x, dim %d", bits, dim);
    }
  }
}

TEST(extreme_rows_stay_finite) {
  constexpr float kExtremes[] = {0.0f, -0.0f, 1e-45f, 1e-40f, 6e-8f, 1e-5f, 1.0f, 6e4f, 65504.0f, 1e6f, 1e30f};
  for (int dim : kDims) {
    Random random{uint64_t(dim)};
    for (int w = 0; w < 10; ++w) {
      const int bits = w < 5 ? kWidths[w] : mixed_bits(random, dim);
      for (ScaleMode mode : {kRms, kUnbiased}) {
        for (float value : kExtremes) {
          for (int pattern = 0; pattern < 3; ++pattern) {  // identical, alternating, one outlier
            std::vector<float> x(size_t(dim), pattern == 2 ? 0.0f : value);
            if (pattern == 1) {
              for (size_t i = 1; i < x.size(); i += 2) x[i] = -value;
            }
            x[0] = value;
            const Quantized r = round_trip(x, bits, mode);
            for (float back : r.back) CHECK(std::isfinite(back), "widths %#x, dim %d, %g", bits, dim, value);
            if (value == 0.0f) CHECK(peak_of(r.back) == 0.0, "widths %#x: zero reads as %g", bits, peak_of(r.back));
          }
        }
      }
    }
  }
}

TEST(hadamard_is_orthonormal_and_matches_its_matrix) {
  Random random(7);
  for (int dim : kDims) {
    const std::vector<float> x = random.normals(size_t(dim));
    std::vector<float> y = x;
    hadamard(y.data(), dim);
    for (int i = 0; i < dim; ++i) {
      double expected = 0;
      for (int j = 0; j < dim; ++j) expected += (__builtin_popcount(i & j) & 1) ? -double(x[size_t(j)]) : x[size_t(j)];
      expected /= std::sqrt(double(dim));
      CHECK(std::fabs(y[size_t(i)] - expected) < 1e-5, "dim %d: %g, not %g", dim, y[size_t(i)], expected);
    }
    hadamard(y.data(), dim);
    for (size_t i = 0; i < y.size(); ++i) CHECK(std::fabs(y[i] - x[i]) < 1e-5, "dim %d", dim);
  }
}

TEST(fast_exp_is_close_and_vanishes_below_its_range) {
  constexpr int kSamples = 500000;
  double worst = 0;
  for (int i = 0; i <= kSamples; ++i) {
    const float x = -87.0f * float(i) / float(kSamples);
    const double exact = std::exp(double(x));
    worst = std::max(worst, std::fabs(double(fast_exp(x)) - exact) / exact);
  }
  CHECK(worst < 3e-7, "worst relative error %g", worst);
  CHECK(fast_exp(0.0f) == 1.0f);
  for (float x : {std::nextafter(-87.0f, -88.0f), -88.0f, -1e4f, -1e30f, -std::numeric_limits<float>::infinity()}) {
    CHECK(fast_exp(x) == 0.0f, "exp(%g) is %g", x, fast_exp(x));
  }
}

}  // namespace
}  // namespace adakv::testing
