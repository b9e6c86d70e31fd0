#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>

namespace adakv {

// Runs body(i) for i in [0, n), possibly on several threads; returns when all are done.
using ParallelFor = std::function<void(int n, const std::function<void(int)>& body)>;

inline void serial_for(int n, const std::function<void(int)>& body) {
  for (int i = 0; i < n; ++i) body(i);
}

// Items 0 to n - 1 in a share for each thread. A thread takes its own share in order, as memory is read fastest in long
// runs, and then what is left of the others', as cores differ in speed and may be taken away.
class Shares {
 public:
  static constexpr int kMost = 64;

  Shares(int n, int shares) : count_(std::clamp(shares, 1, kMost)) {
    for (int s = 0; s < count_; ++s) {
      shares_[size_t(s)].next = int(int64_t(n) * s / count_);
      shares_[size_t(s)].end = int(int64_t(n) * (s + 1) / count_);
    }
  }

  int count() const { return count_; }

  void work(int share, const std::function<void(int)>& body) {
    for (int k = 0; k < count_; ++k) {
      Share& from = shares_[size_t((share + k) % count_)];
      for (int i = from.next++; i < from.end; i = from.next++) body(i);
    }
  }

 private:
  struct alignas(64) Share {  // a cache line of its own
    std::atomic<int> next;
    int end;
  };
  std::array<Share, kMost> shares_;
  int count_;
};

}  // namespace adakv
