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
  } const golden[] = {{16, 8, 0xb360df5a9959dd23},  {32, 16, 0xba71b82b1181c4ef}, {64, 8, 0x476b764e999bb208},
                      {64, 16, 0x05ef63ef0f24c93d}, {128, 8, 0x5739822504db0f75}, {256, 16, 0xde7b9a090b6e3bd2}};
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
