// Loops over items on several threads. Nothing here starts a thread: who calls a kernel brings them.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <thread>

namespace adakv {

// Items 0 to n - 1 of a loop. They see what all items of the loops before wrote.
struct Loop {
  int n;
  std::function<void(int)> body;
};

// The items of a loop, in a share for each worker. A worker takes its own share in order, as memory is read fastest in
// long runs, and then what is left of the others', as cores differ in speed and may be taken away.
class Shares {
 public:
  static constexpr int kMost = 64;

  void split(int n, int shares) {
    count_ = shares;
    left_ = n;
    for (int s = 0; s < count_; ++s) {
      shares_[size_t(s)].next = int(int64_t(n) * s / count_);
      shares_[size_t(s)].end = int(int64_t(n) * (s + 1) / count_);
    }
  }

  void work(int share, const std::function<void(int)>& body) {
    int done = 0;
    for (int k = 0; k < count_; ++k) {
      Share& from = shares_[size_t((share + k) % count_)];
      for (int i = from.next++; i < from.end; i = from.next++, ++done) body(i);
    }
    if (done > 0) left_.fetch_sub(done, std::memory_order_acq_rel);
  }

  // Until all items are done: those that are not are in some running worker's hands.
  void wait() const {
    for (int spins = 0; left_.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins >= kSpins) std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 20000;  // some tens of microseconds

  struct alignas(64) Share {  // a cache line of its own
    std::atomic<int> next;
    int end;
  };
  std::array<Share, kMost> shares_;
  alignas(64) std::atomic<int> left_;
  int count_;
};

// Runs loops on a team of threads.
class ParallelFor {
 public:
  // start(n, worker) calls worker(0) to worker(n - 1), each once, on whichever threads and in whichever order, and
  // returns when all have.
  using Start = std::function<void(int n, const std::function<void(int)>& worker)>;

  static constexpr int kMostLoops = 4;

  ParallelFor(int threads, Start start) : threads_(std::min(threads, Shares::kMost)), start_(std::move(start)) {}

  // Calls body(i) for i in [0, n); returns when all are done.
  void operator()(int n, const std::function<void(int)>& body) const { run({{n, body}}); }

  // One loop after the other. Between them threads wait for each other without leaving the team, which would let the
  // faster ones fall asleep.
  void run(std::initializer_list<Loop> loops) const {
    int most = 0;
    for (const Loop& loop : loops) most = std::max(most, loop.n);
    const int workers = std::min(threads_, most);
    if (workers <= 1) {
      for (const Loop& loop : loops) {
        for (int i = 0; i < loop.n; ++i) loop.body(i);
      }
      return;
    }
    Shares shares[kMostLoops];
    for (size_t l = 0; l < loops.size(); ++l) shares[l].split(loops.begin()[l].n, workers);
    const auto worker = [&](int w) {
      for (size_t l = 0; l < loops.size(); ++l) {
        if (l > 0) shares[l - 1].wait();
        shares[l].work(w, loops.begin()[l].body);
      }
    };
    start_(workers, std::cref(worker));
  }

 private:
  int threads_;
  Start start_;
};

inline const ParallelFor serial_for{1, nullptr};

}  // namespace adakv
