// Memory of one call: pieces of a workspace, aligned to cache lines.
#pragma once

#include <cstdint>

namespace adakv {

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Hands out pieces of the workspace; without memory it counts them.
struct Arena {
  uint8_t* memory;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t n) {
    T* piece = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + used);
    used += aligned(n * int64_t(sizeof(T)));
    return piece;
  }
};

}  // namespace adakv
