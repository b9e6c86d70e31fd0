// Products of one token with the weights of SmolLM2-135M: all 4-bit layers, and the 6-bit table as output layer.
#include <algorithm>
#include <memory>

#include "cache/quantizer.h"
#include "cells.h"
#include "linear/int4.h"
#include "linear/table.h"

namespace adakv {

namespace {

struct Shape {
  const char* name;
  int rows, channels;
};
constexpr Shape kShapes[] = {{"qkv", 960, 576}, {"o", 576, 576}, {"gate_up", 3072, 576}, {"down", 576, 1536}};
constexpr int kLayers = 30, kVocabulary = 49152, kHidden = 576, kWidest = 3072;

// Matrices in the order of a step, and what goes in and comes out.
struct Weights {
  std::vector<std::vector<uint8_t>> blocks;
  std::vector<uint8_t> table;
  std::vector<uint16_t> scales;
  std::vector<float> units, norm, x, residual, out;
  int64_t int4_bytes = 0;

  Weights() : units(2 * kWidest, 1e-3f), norm(kHidden, 1.0f), x(kWidest), residual(kHidden, 0.1f), out(kVocabulary) {
    for (int i = 0; i < 4 * kLayers; ++i) {
      const Shape& shape = kShapes[i % 4];
      blocks.emplace_back(size_t(shape.rows / kBlockRows * (shape.channels / kGroup) * kInt4BlockBytes));
      for (size_t j = 0; j < blocks.back().size(); ++j) blocks.back()[j] = uint8_t(j * 7 + j / 13);
      int4_bytes += int64_t(blocks.back().size());
    }
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(i * 2654435761u % 2000) * 1e-3f - 1.0f;
    const size_t groups = size_t(kVocabulary / kBlockRows) * (kHidden / kGroup);
    table.assign(groups * kTableBlockBytes, 0x5a);
    scales.assign(groups * kBlockRows, float_to_half(0.01f));
  }
};

void multiply_layers(Weights& w, int layers, const LinearKernels& kernels, const ParallelFor& parallel) {
  for (size_t i = 0; i < size_t(4 * layers); ++i) {
    const Shape& shape = kShapes[i % 4];
    const Int4Matrix matrix{w.blocks[i].data(), w.units.data(), shape.rows, shape.channels};
    switch (i % 4) {
      case 1: add_linear(w.x.data(), w.residual.data(), matrix, 1, w.out.data(), parallel, kernels); break;
      case 3: swiglu_linear(w.x.data(), w.residual.data(), matrix, 1, w.out.data(), parallel, kernels); break;
      default: norm_linear(w.x.data(), w.norm.data(), 1e-5f, matrix, 1, w.out.data(), parallel, kernels);
    }
  }
}

}  // namespace

void add_weight_cells(std::vector<Cell>& cells, const Options& options, SpinningPool& pool) {
  const auto weights = std::make_shared<Weights>();
  const ParallelFor parallel = pool.loop();
  for (const char* name : {"baseline", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm"}) {
    const LinearKernels* kernels = find_linear_kernels(name);
    const auto& chosen = options.isas;
    const char* known_as = std::string(name) == "baseline" ? "scalar" : name;
    if (kernels == nullptr || (!chosen.empty() && std::find(chosen.begin(), chosen.end(), known_as) == chosen.end())) {
      continue;
    }
    const int count = std::string(name) == "baseline" ? 1 : kLayers;  // slow
    Cell layers{"int4", name, "memory"}, table{"table", name, "memory"};
    layers.bits = 4;
    layers.units = 4 * count;
    layers.bytes = weights->int4_bytes / kLayers * count;
    layers.run = [=] { multiply_layers(*weights, count, *kernels, parallel); };
    table.bits = 6;
    table.units = 1;
    table.bytes = int64_t(weights->table.size() + 2 * weights->scales.size());
    table.run = [=] {
      Weights& w = *weights;
      table_product({w.table.data(), w.scales.data(), kVocabulary, kHidden}, w.x.data(), 1, w.out.data(), parallel,
                    *kernels);
    };
    cells.push_back(layers);  // each puts the other's bytes out of the caches
    cells.push_back(table);
  }
}

}  // namespace adakv
