// A minimal test framework and a portable random source: no dependency, so it builds for any target.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

namespace adakv::testing {

struct Case {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline bool add_case(const char* name, std::function<void()> body) {
  cases().push_back({name, std::move(body)});
  return true;
}

#define TEST(name)                                                          \
  static void name();                                                       \
  static const bool name##_added = ::adakv::testing::add_case(#name, name); \
  static void name()

// On failure prints the place and a printf-style explanation and leaves the test.
#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition)) {                                                  \
      std::printf("%s:%d: failed: %s:", __FILE__, __LINE__, #condition); \
      std::printf(" " __VA_ARGS__);                                      \
      std::printf("\n");                                                 \
      ++::adakv::testing::failures();                                    \
      return;                                                            \
    }                                                                    \
  } while (0)

// SplitMix64 (Steele, Lea, Flood 2014). Every value it gives is an integer or a multiple of 1/256, so that
// inputs are the same bits on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Integer in [low, high].
  int integer(int low, int high) { return low + int(next() % uint64_t(high - low + 1)); }

  // Multiple of 1/256 in [-limit, limit].
  float fraction(int limit = 1) { return float(integer(-256 * limit, 256 * limit)) / 256.0f; }

  // Nearly normal with variance 1: the sum of twelve uniform numbers in [-0.5, 0.5].
  float normal() {
    int sum = 0;
    for (int i = 0; i < 12; ++i) sum += integer(-128, 128);
    return float(sum) / 256.0f;
  }

  std::vector<float> normals(size_t n) {
    std::vector<float> x(n);
    for (float& value : x) value = normal();
    return x;
  }

 private:
  uint64_t state_;
};

// FNV-1a over a run of bytes.
inline uint64_t hash_bytes(const void* data, size_t size, uint64_t hash = 0xcbf29ce484222325u) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

}  // namespace adakv::testing
