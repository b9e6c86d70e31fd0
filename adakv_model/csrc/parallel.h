#pragma once

#include <functional>

namespace adakv {

// Runs body(i) for i in [0, n), possibly on several threads; returns when all are done.
using ParallelFor = std::function<void(int n, const std::function<void(int)>& body)>;

inline void serial_for(int n, const std::function<void(int)>& body) {
  for (int i = 0; i < n; ++i) body(i);
}

}  // namespace adakv
