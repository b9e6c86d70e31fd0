// Packed bytes, tiers and slots are equal on every machine: hashes of runs whose inputs are multiples of 1/256
// and whose tier wishes are integers. A change of the storage format or of the quantizer's arithmetic must change
// them; nothing else may.
#include <cstdio>
#include <vector>

#include "check.h"
#include "layer.h"

namespace adakv::testing {
namespace {

uint64_t state_hash(Layer& layer) {
  const auto add = [](uint64_t hash, const auto& values) {
    return hash_bytes(values.data(), values.size() * sizeof(values[0]), hash);
  };
  uint64_t hash = hash_bytes(nullptr, 0);
  hash = add(hash, layer.cache.bytes());
  hash = add(hash, layer.tiers);
  hash = add(hash, layer.progress);
  return add(hash, layer.history);
}

TEST(packed_bytes_are_those_of_every_other_machine) {
  struct {
    int dim, window_bits;
    uint64_t hash;
  } const golden[] = {{16, 8, 0x50ba560bf238175e},  {32, 16, 0x68a776ea954e2f00}, {64, 8, 0x82dd8a7cafeb78d4},
                      {64, 16, 0xd6a6ca145216aac2}, {128, 8, 0x8e3aba2e17c72cea}, {256, 16, 0xab9ecf7724e75a24}};
  bool equal = true;
  for (const auto& want : golden) {
    Shape shape;
    shape.dim = want.dim;
    shape.window_bits = want.window_bits;
    shape.window = 24;
    shape.integer_logits = true;
    Layer layer(shape, uint64_t(want.dim + want.window_bits));
    CHECK(layer.run({3, 16, 1}));
    const uint64_t got = state_hash(layer);
    std::printf("golden hash, dim %d, window bits %d: 0x%016llx\n", want.dim, want.window_bits,
                (unsigned long long)got);
    equal &= got == want.hash;
  }
  CHECK(equal, "the hashes above are not those of the source");
}

}  // namespace
}  // namespace adakv::testing
