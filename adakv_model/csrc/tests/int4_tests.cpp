// 4-bit layers on every instruction set this CPU has, against double precision.
#include "linear/int4.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "check.h"

namespace adakv::testing {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm"};

struct Layer {
  std::vector<uint8_t> blocks;
  std::vector<float> units;
  std::vector<double> weights;  // [rows, channels]
  int rows, channels;

  Layer(int rows, int channels) : weights(size_t(rows * channels)), rows(rows), channels(channels) {
    Random random(static_cast<uint64_t>(rows + channels));
    const int groups = channels / kGroup;
    blocks.resize(size_t(rows / kBlockRows * groups * kInt4BlockBytes));
    for (uint8_t& byte : blocks) byte = uint8_t(random.integer(0, 255));
    for (int i = 0; i < 2 * rows; ++i) units.push_back(1e-4f * float(random.integer(1, 1000)));
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < channels; ++c) {
        const int b = r / kBlockRows, i = r % kBlockRows, quad = c % kGroup / 4;
        const uint8_t* block = blocks.data() + (b * groups + c / kGroup) * kInt4BlockBytes;
        const int code = block[quad % 4 * 32 + 4 * i + c % 4] >> (quad / 4 * 4) & 15;
        const double step = double(block[128 + i]) * double(units[size_t(2 * b * kBlockRows + i)]);
        const double offset = int8_t(block[136 + i]) * double(units[size_t((2 * b + 1) * kBlockRows + i)]);
        weights[size_t(r * channels + c)] = (code - 8) * step + offset;
      }
    }
  }

  Int4Matrix matrix() const { return {blocks.data(), units.data(), rows, channels}; }
};

// out against start + W x, where a code of x may be off by one if x lies halfway between two codes.
void check_product(const char* name, const Layer& layer, const std::vector<double>& x, const float* residual,
                   const float* out) {
  std::vector<double> rounded, doubt;
  for (int g = 0; g < layer.channels; g += kGroup) {
    double peak = 0;
    for (int j = 0; j < kGroup; ++j) peak = std::max(peak, std::fabs(x[size_t(g + j)]));
    const double step = peak > 0 ? peak / 127 : 1;
    for (int j = 0; j < kGroup; ++j) {
      const double code = x[size_t(g + j)] / step;
      rounded.push_back(std::nearbyint(code) * step);
      doubt.push_back(std::fabs(code - std::floor(code) - 0.5) < 1e-3 ? step : 0);
    }
  }
  for (int r = 0; r < layer.rows; ++r) {
    double want = residual == nullptr ? 0 : double(residual[r]), size = std::fabs(want), slack = 0;
    for (int c = 0; c < layer.channels; ++c) {
      const double weight = layer.weights[size_t(r * layer.channels + c)];
      want += weight * rounded[size_t(c)];
      size += std::fabs(weight * rounded[size_t(c)]);
      slack += std::fabs(weight * doubt[size_t(c)]);
    }
    CHECK(std::fabs(out[r] - want) <= 1e-5 * size + slack, "%s, %d channels, row %d: %g, not %g", name, layer.channels,
          r, double(out[r]), want);
  }
}

std::vector<double> token(const std::vector<float>& x, int t, int channels) {
  return {x.begin() + t * channels, x.begin() + (t + 1) * channels};
}

TEST(int4_layers_are_those_of_rounded_activations) {
  for (const char* name : kNames) {
    const LinearKernels* kernels = find_linear_kernels(name);
    if (kernels == nullptr) continue;
    for (const auto& [rows, channels, count] : {std::array{8, 32, 1}, {72, 192, 5}, {40, 576, 4}, {16, 1536, 7}}) {
      const Layer layer(rows, channels);
      Random random(77);
      std::vector<float> x = random.normals(size_t(count * channels)), norm = random.normals(size_t(channels));
      const std::vector<float> residual = random.normals(size_t(count * rows));
      const std::vector<float> gate_up = random.normals(size_t(2 * count * channels));
      for (int j = 0; j < kGroup; ++j) x[size_t(j)] = 0;  // a silent group
      x[size_t(channels - 1)] = 500;                      // an outlier
      std::vector<float> normed(size_t(count * rows)), added = normed, gated = normed;
      norm_linear(x.data(), norm.data(), 1e-5f, layer.matrix(), count, normed.data(), serial_for, *kernels);
      add_linear(x.data(), residual.data(), layer.matrix(), count, added.data(), serial_for, *kernels);
      swiglu_linear(gate_up.data(), residual.data(), layer.matrix(), count, gated.data(), serial_for, *kernels);
      for (int t = 0; t < count; ++t) {
        const size_t at = size_t(t * rows);
        std::vector<double> input = token(x, t, channels);
        check_product(name, layer, input, residual.data() + at, added.data() + at);
        double squares = 0;
        for (double value : input) squares += value * value;
        for (int c = 0; c < channels; ++c) {
          input[size_t(c)] *= double(norm[size_t(c)]) / std::sqrt(squares / channels + 1e-5);
        }
        check_product(name, layer, input, nullptr, normed.data() + at);
        const std::vector<double> gate = token(gate_up, 2 * t, channels), up = token(gate_up, 2 * t + 1, channels);
        for (size_t c = 0; c < gate.size(); ++c) input[c] = gate[c] / (1 + std::exp(-gate[c])) * up[c];
        check_product(name, layer, input, residual.data() + at, gated.data() + at);
      }
    }
  }
}

TEST(int4_layers_do_not_depend_on_the_tokens_beside_nor_on_threads) {
  for (const char* name : kNames) {
    const LinearKernels* kernels = find_linear_kernels(name);
    if (kernels == nullptr) continue;
    const Layer layer(104, 576);
    Random random(1);
    const std::vector<float> x = random.normals(9 * 576), norm = random.normals(576);
    std::vector<float> together(104 * 9), alone(104);
    const ParallelFor backwards(3, [](int n, const std::function<void(int)>& worker) {
      for (int i = n - 1; i >= 0; --i) worker(i);
    });
    norm_linear(x.data(), norm.data(), 1e-5f, layer.matrix(), 9, together.data(), backwards, *kernels);
    for (int t = 0; t < 9; ++t) {
      norm_linear(x.data() + t * 576, norm.data(), 1e-5f, layer.matrix(), 1, alone.data(), serial_for, *kernels);
      for (int r = 0; r < 104; ++r) CHECK(together[size_t(t * 104 + r)] == alone[size_t(r)], "%s, token %d", name, t);
    }
  }
}

TEST(int4_layers_of_every_set_equal_the_baseline) {
  for (const auto& [rows, channels] : {std::array{8, 32}, {40, 64}, {72, 576}, {104, 1536}}) {
    const Layer layer(rows, channels);
    Random random(2);
    for (int count : {1, 2, 3, 7, 8, 13, 32}) {
      std::vector<float> x = random.normals(size_t(count * channels));
      const std::vector<float> norm = random.normals(size_t(channels));
      const std::vector<float> residual = random.normals(size_t(count * rows));
      const std::vector<float> gate_up = random.normals(size_t(2 * count * channels));
      x[size_t(channels - 1)] = 500;
      const auto all = [&](const LinearKernels& kernels) {
        const size_t size = size_t(count * rows);
        std::vector<float> out(3 * size);
        norm_linear(x.data(), norm.data(), 1e-5f, layer.matrix(), count, out.data(), serial_for, kernels);
        add_linear(x.data(), residual.data(), layer.matrix(), count, out.data() + size, serial_for, kernels);
        swiglu_linear(gate_up.data(), residual.data(), layer.matrix(), count, out.data() + 2 * size, serial_for,
                      kernels);
        return out;
      };
      const std::vector<float> expected = all(*find_linear_kernels("baseline"));
      for (const char* name : kNames) {
        const LinearKernels* kernels = find_linear_kernels(name);
        if (kernels == nullptr) continue;
        CHECK(all(*kernels) == expected, "%s, %d rows, %d channels, %d tokens", name, rows, channels, count);
      }
    }
  }
}

TEST(the_linear_kernels_in_use_are_among_those_found) {
  CHECK(find_linear_kernels(linear_kernels().name) == &linear_kernels(), "%s", linear_kernels().name);
  CHECK(find_linear_kernels("no such set") == nullptr);
}

TEST(swiglu_of_extremes_is_finite) {
  for (const char* name : kNames) {
    const LinearKernels* kernels = find_linear_kernels(name);
    if (kernels == nullptr) continue;
    const float gate[] = {-1e30f, -100, -80, 0, 80, 100, 1e30f, -0.0f};
    const float up[] = {1, 1, 1, 1, 1, 1, 1, 1};
    float out[8];
    kernels->swiglu(gate, up, 8, out);
    for (int i = 0; i < 8; ++i) {
      const float want = gate[i] > 0 ? gate[i] : 0;
      CHECK(std::fabs(out[i] - want) <= 1e-6f * want + 1e-30f, "%s: silu(%g) = %g", name, double(gate[i]),
            double(out[i]));
    }
  }
}

}  // namespace
}  // namespace adakv::testing
