// ExecuTorch's thread pool as a ParallelFor.
#pragma once

#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "parallel.h"

namespace adakv {

inline const ParallelFor& pool() {
  static const ParallelFor run = [](int n, const std::function<void(int)>& body) {
    executorch::extension::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(int(i));
    });
  };
  return run;
}

}  // namespace adakv
