#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "parallel.h"

namespace adakv {

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
          if (i < count_) (*worker_)(i);
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

  ParallelFor loop() {
    return {threads(), [this](int n, const std::function<void(int)>& worker) { start(n, worker); }};
  }

 private:
  void start(int n, const std::function<void(int)>& worker) {
    count_ = n;
    worker_ = &worker;
    busy_ = int(helpers_.size());
    call_.fetch_add(1, std::memory_order_release);
    worker(0);
    while (busy_.load(std::memory_order_acquire) != 0) {
    }
  }

  std::vector<std::thread> helpers_;
  std::atomic<int> call_{0}, busy_{0};
  const std::function<void(int)>* worker_ = nullptr;
  int count_ = 0;
  bool stop_ = false;
};

}  // namespace adakv
