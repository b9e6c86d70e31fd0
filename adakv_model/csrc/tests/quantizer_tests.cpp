#include "quantizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

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
  std::vector<uint8_t> packed;
  uint8_t scale[2];
  std::vector<float> back;
};

Quantized round_trip(const std::vector<float>& x, int bits, ScaleMode mode) {
  const int dim = int(x.size());
  Quantized r{std::vector<uint8_t>(size_t(row_bytes(bits, dim))), {0xaa, 0xaa}, std::vector<float>(x.size())};
  quantize_row(x.data(), bits, dim, r.packed.data(), r.scale);
  dequantize_row(r.packed.data(), r.scale, bits, mode, dim, r.back.data());
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

// Codes of a run at the width and channels of packing, the first time with the largest code everywhere.
template <int kWidth>
void check_packing(int channels, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> codes(size_t(channels), uint8_t((1 << kWidth) - 1)), back(codes.size());
  std::vector<uint8_t> packed(size_t(channels * kWidth / 8));
  std::vector<float> levels(codes.size());
  for (int trial = 0; trial < 20; ++trial) {
    pack_run(codes.data(), kWidth, packed.data(), channels);
    unpack_run<kWidth>(packed.data(), back.data(), channels);
    CHECK(back == codes, "%d bits, %d channels", kWidth, channels);
    unpack_levels<kWidth>(packed.data(), 0.5f, levels.data(), channels);
    for (size_t i = 0; i < codes.size(); ++i) {
      CHECK(levels[i] == 0.5f * float(2 * codes[i] - (1 << kWidth) + 1), "%d bits, %d channels", kWidth, channels);
    }
    for (uint8_t& code : codes) code = uint8_t(random.integer(0, (1 << kWidth) - 1));
  }
}

TEST(unpack_inverts_pack) {
  for (int channels : {8, 16, 32, 64, 128, 256}) {
    check_packing<2>(channels, 1);
    check_packing<3>(channels, 2);
    check_packing<4>(channels, 3);
    check_packing<8>(channels, 4);
  }
}

TEST(sixteen_bit_codes_are_little_endian) {
  const uint8_t packed[] = {0, 0, 255, 255, 0, 128, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0};
  float out[8];
  unpack_levels<16>(packed, 1.0f, out, 8);
  CHECK(out[0] == -65535 && out[1] == 65535 && out[2] == 1 && out[3] == 2 * 513 - 65535);
}

// Every band of a mixed row is what a uniform row with the same scale holds in those channels.
TEST(bands_are_packed_one_after_another) {
  Random random(8);
  for (int dim : kDims) {
    const int count = n_bands(dim), channels = dim / count;
    for (int trial = 0; trial < 40; ++trial) {
      const int bits = mixed_bits(random, dim);
      const std::vector<float> x = random.normals(size_t(dim));
      const Quantized mixed = round_trip(x, bits, ScaleMode(trial % 2));
      size_t at = 0;
      for (int b = 0; b < count; ++b) {
        const int width = (bits >> (8 * b)) & 255;
        const size_t first = size_t(b * channels), bytes = size_t(channels * width / 8);
        if (width != 8) {  // plain 8-bit rows have another scale
          const Quantized uniform = round_trip(x, width, ScaleMode(trial % 2));
          CHECK(uniform.scale[0] == mixed.scale[0], "dim %d", dim);
          for (size_t i = first; i < first + size_t(channels); ++i) {
            CHECK(mixed.back[i] == uniform.back[i], "dim %d, widths %#x, channel %d", dim, bits, int(i));
          }
        }
        at += bytes;
      }
      CHECK(at == mixed.packed.size() && row_bytes(bits, dim) == int(at), "dim %d, widths %#x", dim, bits);
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
        CHECK(u.packed == r.packed && u.scale[0] == r.scale[0]);
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

TEST(transform_is_the_product_with_its_matrix) {
  Random random(15);
  for (int dim : kDims) {
    const std::vector<float> x = random.normals(size_t(dim)), matrix = random.normals(size_t(dim) * dim);
    std::vector<float> columns(matrix.size()), y(x.size());
    transpose(matrix.data(), dim, columns.data());
    transform(x.data(), columns.data(), dim, y.data());
    for (int i = 0; i < dim; ++i) {
      float expected = x[0] * matrix[size_t(i * dim)];
      for (int j = 1; j < dim; ++j) expected = expected + x[size_t(j)] * matrix[size_t(i * dim + j)];
      CHECK(y[size_t(i)] == expected, "dim %d: %g, not %g", dim, y[size_t(i)], expected);
    }
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
