// What kernel_benchmark measures: cells, each a piece of work that is run again and again in turn with all others.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "parallel.h"

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

// Threads that spin between calls, as those of the runtime do.
class SpinningPool {
 public:
  explicit SpinningPool(int threads) {
    for (int i = 1; i < threads; ++i) {
      helpers_.emplace_back([this, i] {
        for (int seen = 0;;) {
          while (call_.load(std::memory_order_acquire) == seen) {
          }
          ++seen;
          if (stop_) return;
          shares_->work(i, *body_);
          busy_.fetch_sub(1, std::memory_order_release);
        }
      });
    }
  }

  ~SpinningPool() {
    stop_ = true;
    call_.fetch_add(1, std::memory_order_release);
    for (std::thread& helper : helpers_) helper.join();
  }

  int threads() const { return int(helpers_.size()) + 1; }

  void run(int n, const std::function<void(int)>& body) {
    Shares shares(n, threads());
    shares_ = &shares;
    body_ = &body;
    busy_ = int(helpers_.size());
    call_.fetch_add(1, std::memory_order_release);
    shares.work(0, body);
    while (busy_.load(std::memory_order_acquire) != 0) {
    }
  }

 private:
  std::vector<std::thread> helpers_;
  std::atomic<int> call_{0}, busy_{0};
  Shares* shares_ = nullptr;
  const std::function<void(int)>* body_ = nullptr;
  bool stop_ = false;
};

// Each adds its cells. Memory and pool must outlive them.
void add_memory_cells(std::vector<Cell>& cells, Memory& memory, SpinningPool& pool);
void add_row_cells(std::vector<Cell>& cells, const Options& options, Memory& memory, SpinningPool& pool);
void add_weight_cells(std::vector<Cell>& cells, const Options& options, SpinningPool& pool);

}  // namespace adakv
