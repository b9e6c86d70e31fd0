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
    int dim, window_bits, departure;
    uint64_t hash;
  } const golden[] = {
      {16, 8, 1, 0x221b944923e308a5},  {32, 16, 1, 0x2fc1e747f73440b9}, {64, 8, 1, 0x2f23d8b0efa5496f},
      {64, 16, 1, 0x558229064d6798b0}, {128, 8, 1, 0x7c54dd5e966e4cbd}, {256, 16, 1, 0xdec6a80ba3f308d4},
      {64, 8, 32, 0x321e09d476d9de2a},
  };
  bool equal = true;
  for (const auto& want : golden) {
    Shape shape;
    shape.dim = want.dim;
    shape.window_bits = want.window_bits;
    shape.window = 24;
    shape.departure = want.departure;
    shape.integer_logits = true;
    Layer layer(shape, uint64_t(want.dim + want.window_bits));
    CHECK(layer.run({3, 16, 1}));
    const uint64_t got = state_hash(layer);
    std::printf("golden hash, dim %d, window bits %d, departure %d: 0x%016llx\n", want.dim, want.window_bits,
                want.departure, (unsigned long long)got);
    equal &= got == want.hash;
  }
  CHECK(equal, "the hashes above are not those of the source");
}

}  // namespace
}  // namespace adakv::testing
