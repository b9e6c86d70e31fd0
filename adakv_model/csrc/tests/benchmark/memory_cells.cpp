// The roofline: reading and copying memory, and the core's clock.
#include <cstring>

#include "cells.h"

namespace adakv {

namespace {

constexpr int64_t kPiece = 1 << 20;
constexpr int kPieces = 16;
constexpr int kSteps = 1 << 18;  // dependent additions of a clock sample, one cycle each

using Words = uint64_t __attribute__((vector_size(16)));

// Four streams at once: faster than one.
uint64_t sum_words(const uint8_t* bytes) {
  constexpr int kStreams = 4, kVectors = 4;
  Words sums[kVectors] = {};
  for (int64_t i = 0; i < kPiece / kStreams; i += kVectors * int64_t(sizeof(Words))) {
    for (int s = 0; s < kStreams; ++s) {
      for (int v = 0; v < kVectors; ++v) {
        Words words;
        std::memcpy(&words, bytes + s * (kPiece / kStreams) + i + v * int64_t(sizeof(Words)), sizeof(words));
        sums[v] += words;
      }
    }
  }
  Words total = {};
  for (const Words& sum : sums) total += sum;
  return total[0] + total[1];
}

// A chain of additions whose operands the compiler and the core cannot fold.
void count_cycles() {
  uint64_t x = 1, y = 3;
  for (int i = 0; i < kSteps / 16; ++i) {
    for (int k = 0; k < 16; ++k) {
#if defined(__x86_64__)
      asm volatile("add %1, %0" : "+r"(x) : "r"(y));
#elif defined(__aarch64__)
      asm volatile("add %0, %0, %1" : "+r"(x) : "r"(y));
#else
      asm volatile("" : "+r"(x) : "r"(y));
#endif
    }
  }
}

}  // namespace

Memory::Memory(int64_t bytes) : bytes_(size_t(bytes)) {
  uint32_t state = 1;
  for (size_t i = 0; i + 1 < bytes_.size(); i += 2) {
    state = state * 1664525u + 1013904223u;
    bytes_[i] = uint8_t(state >> 24);
    bytes_[i + 1] = 0x2c;
  }
}

const uint8_t* Memory::take(int64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (at_ + bytes > size()) at_ = 0;
  const uint8_t* piece = bytes_.data() + at_;
  at_ += bytes;
  return piece;
}

void add_memory_cells(std::vector<Cell>& cells, Memory& memory, SpinningPool& pool) {
  Cell clock{"clock", "", "cache"}, read{"read", "", "memory"}, copy{"copy", "", "memory"};
  clock.units = kSteps;
  clock.run = [] { count_cycles(); };
  read.bytes = kPieces * kPiece;
  read.run = [&memory, &pool] {
    const uint8_t* from = memory.take(kPieces * kPiece);
    pool.loop()(kPieces, [&](int i) {
      volatile uint64_t keep = sum_words(from + i * kPiece);
      (void)keep;
    });
  };
  copy.bytes = kPieces * kPiece;  // read; as many are written
  copy.run = [&memory, &pool] {
    const uint8_t* from = memory.take(kPieces * kPiece);
    uint8_t* to = memory.data() + (memory.take(kPieces * kPiece) - memory.data());
    pool.loop()(kPieces, [&](int i) { std::memcpy(to + i * kPiece, from + i * kPiece, size_t(kPiece)); });
  };
  cells.push_back(clock);
  cells.push_back(read);
  cells.push_back(copy);
}

}  // namespace adakv
