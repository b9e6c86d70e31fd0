#include "quantizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "fast_exp.h"

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
  uint16_t scale;
  std::vector<float> back;
};

Quantized round_trip(const std::vector<float>& x, int bits, ScaleMode mode) {
  const int dim = int(x.size());
  Quantized r{std::vector<uint8_t>(size_t(row_bytes(bits, dim))), 0, std::vector<float>(x.size())};
  quantize_row(x.data(), bits, mode, dim, r.packed.data(), &r.scale);
  dequantize_row(r.packed.data(), &r.scale, bits, dim, r.back.data());
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

template <int kBits>
void check_packing(int dim, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> codes(size_t(dim), uint8_t((1 << kBits) - 1)), back(codes.size());
  std::vector<uint8_t> packed(size_t(row_bytes(kBits, dim)));
  for (int trial = 0; trial < 20; ++trial) {  // the first with the largest code everywhere
    pack(codes.data(), kBits, packed.data(), dim);
    unpack_codes<kBits>(packed.data(), back.data(), dim);
    CHECK(back == codes, "%d bits, dim %d", kBits, dim);
    for (uint8_t& code : codes) code = uint8_t(random.integer(0, (1 << kBits) - 1));
  }
}

TEST(unpack_inverts_pack) {
  for (int dim : kDims) {
    check_packing<2>(dim, 1);
    check_packing<3>(dim, 2);
    check_packing<4>(dim, 3);
    check_packing<8>(dim, 4);
  }
}

TEST(sixteen_bit_codes_are_little_endian_less_half) {
  const uint8_t packed[] = {0, 0, 255, 255, 0, 128, 1, 2};
  float out[4];
  unpack_floats<16>(packed, out, 4);
  CHECK(out[0] == -32768 && out[1] == 32767 && out[2] == 0 && out[3] == 513 - 32768);
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

TEST(unbiased_scale_keeps_the_logit) {
  Random random(6);
  for (int dim : kDims) {
    for (int bits : {2, 3, 4}) {
      for (int trial = 0; trial < 50; ++trial) {
        const std::vector<float> x = random.normals(size_t(dim));
        const Quantized r = round_trip(x, bits, kUnbiased);
        double xx = 0, xq = 0;
        for (size_t i = 0; i < x.size(); ++i) xx += double(x[i]) * x[i], xq += double(x[i]) * r.back[i];
        CHECK(std::fabs(xq / xx - 1) < 6e-4, "%d bits, dim %d: %g", bits, dim, xq / xx);
      }
    }
  }
}

TEST(extreme_rows_stay_finite) {
  constexpr float kExtremes[] = {0.0f, -0.0f, 1e-45f, 1e-40f, 6e-8f, 1e-5f, 1.0f, 6e4f, 65504.0f, 1e6f, 1e30f};
  for (int dim : kDims) {
    for (int bits : kWidths) {
      for (ScaleMode mode : {kRms, kUnbiased}) {
        for (float value : kExtremes) {
          for (int pattern = 0; pattern < 3; ++pattern) {  // identical, alternating, one outlier
            std::vector<float> x(size_t(dim), pattern == 2 ? 0.0f : value);
            if (pattern == 1) {
              for (size_t i = 1; i < x.size(); i += 2) x[i] = -value;
            }
            x[0] = value;
            const Quantized r = round_trip(x, bits, mode);
            for (float back : r.back) CHECK(std::isfinite(back), "%d bits, dim %d, %g", bits, dim, value);
            if (value == 0.0f) CHECK(peak_of(r.back) == 0.0, "%d bits: zero reads as %g", bits, peak_of(r.back));
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
