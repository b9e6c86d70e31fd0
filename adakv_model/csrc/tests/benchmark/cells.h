// What kernel_benchmark measures: cells, each a piece of work that is run again and again in turn with all others.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "benchmark/spinning_pool.h"

namespace adakv {

struct Cell {
  std::string kind, isa, place;  // place: memory, cache
  int bits = 0, slots = 0;
  int64_t units = 0;  // (slot, kv head) pairs, or products of one token with one matrix, of one run
  int64_t bytes = 0;  // read by one run
  std::function<void()> run;
  std::vector<double> ns;  // of every run
};

struct Options {
  int rounds = 9, queries = 3, dim = 64, megabytes = 128;
  std::vector<int> threads{1}, slots{4096}, bits{2, 3, 4, 8, 16};
  std::vector<std::string> isas;  // none: all that this CPU runs
};

// More memory than any cache holds, read on from where the last cell stopped: what a cell reads comes from memory.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  uint8_t* data() { return bytes_.data(); }
  int64_t size() const { return int64_t(bytes_.size()); }
  const uint8_t* take(int64_t bytes);

 private:
  std::vector<uint8_t> bytes_;  // every pair is a small fp16, so that any place serves as scales too
  int64_t at_ = 0;
};

// Each adds its cells. Memory and pool must outlive them.
void add_memory_cells(std::vector<Cell>& cells, Memory& memory, SpinningPool& pool);
void add_row_cells(std::vector<Cell>& cells, const Options& options, Memory& memory, SpinningPool& pool);
void add_weight_cells(std::vector<Cell>& cells, const Options& options, SpinningPool& pool);

}  // namespace adakv
