// Sixteen numbers side by side, in the widest vectors of the instruction set that a file is compiled for. Every lane is
// computed for itself and rounded after each operation, so results do not depend on that set.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>
#include <utility>

#include "fast_exp.h"

namespace {

using namespace adakv;

#if defined(__AVX512F__)
constexpr int kVectorLanes = 16;
#elif defined(__AVX2__)
constexpr int kVectorLanes = 8;
#else
constexpr int kVectorLanes = 4;
#endif

constexpr int kLanes = 16, kVectors = kLanes / kVectorLanes;

using FloatVector = float __attribute__((vector_size(4 * kVectorLanes)));
using IntVector = int32_t __attribute__((vector_size(4 * kVectorLanes)));
using HalfVector = uint16_t __attribute__((vector_size(2 * kVectorLanes)));

struct Lanes {
  FloatVector v[kVectors];
};
struct IntLanes {
  IntVector v[kVectors];
};

// f(i) for every vector; spelled out rather than a loop, so that they stay in registers.
template <typename Out, typename F, size_t... I>
inline __attribute__((always_inline)) Out each_of(const F& f, std::index_sequence<I...>) {
  return {{f(I)...}};
}
template <typename Out, typename F>
inline __attribute__((always_inline)) Out each(const F& f) {
  return each_of<Out>(f, std::make_index_sequence<kVectors>());
}

inline Lanes set1(float x) {
  return each<Lanes>([&](size_t) { return x - FloatVector{}; });
}
inline Lanes load(const float* from) {
  return each<Lanes>([&](size_t i) {
    FloatVector v;
    std::memcpy(&v, from + i * kVectorLanes, sizeof(v));
    return v;
  });
}
template <typename T, typename L>
inline void store(T* to, const L& x) {
  each<L>([&](size_t i) {
    std::memcpy(to + i * kVectorLanes, &x.v[i], sizeof(x.v[i]));
    return x.v[i];
  });
}

inline Lanes operator+(const Lanes& a, const Lanes& b) {
  return each<Lanes>([&](size_t i) { return a.v[i] + b.v[i]; });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
  return each<Lanes>([&](size_t i) { return a.v[i] - b.v[i]; });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
  return each<Lanes>([&](size_t i) { return a.v[i] * b.v[i]; });
}
inline Lanes largest(const Lanes& a, const Lanes& b) {
  return each<Lanes>([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline IntLanes operator+(const IntLanes& a, const IntLanes& b) {
  return each<IntLanes>([&](size_t i) { return a.v[i] + b.v[i]; });
}
inline Lanes to_float(const IntLanes& x) {
  return each<Lanes>([&](size_t i) { return __builtin_convertvector(x.v[i], FloatVector); });
}

inline IntVector widen(const HalfVector& x) {
#if defined(__AVX512F__)
  return IntVector(_mm512_cvtepu16_epi32(__m256i(x)));
#elif defined(__AVX2__)
  return IntVector(_mm256_cvtepu16_epi32(__m128i(x)));  // GCC 12 makes five instructions of the conversion below
#elif defined(__ARM_NEON)
  return IntVector(vmovl_u16(uint16x4_t(x)));  // and moves every number by itself
#else
  return __builtin_convertvector(x, IntVector);
#endif
}

// The odd levels 2 c - 65535 of sixteen 16-bit codes, at any address.
inline Lanes levels_16(const uint8_t* codes) {
  return each<Lanes>([&](size_t i) {
    HalfVector halves;
    std::memcpy(&halves, codes + i * sizeof(halves), sizeof(halves));
    return __builtin_convertvector(2 * widen(halves) - 65535, FloatVector);
  });
}

// Nearest integers of x, |x| < 2^22, ties to even: adding 1.5 * 2^23 leaves them in the low bits.
inline IntLanes round_lanes(const Lanes& x) {
  return each<IntLanes>([&](size_t i) {
    const FloatVector shifted = x.v[i] + 0x1.8p23f;
    IntVector bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    return bits - 0x4b400000;
  });
}

// exp of kCount vectors, in step, as each operation waits for the one before.
template <int kCount>
inline __attribute__((always_inline)) void exp_vectors(FloatVector* x) {
  FloatVector r[kCount], power[kCount];
  for (int i = 0; i < kCount; ++i) r[i] = exp_reduced<FloatVector, IntVector>(x[i], &power[i]);
  for (int i = 0; i < kCount; ++i) x[i] = FloatVector{} + kExpSeries[0];
  for (int k = 1; k < kExpTerms; ++k) {
    for (int i = 0; i < kCount; ++i) x[i] = x[i] * r[i] + kExpSeries[k];
  }
  for (int i = 0; i < kCount; ++i) x[i] = x[i] * power[i];
}
inline Lanes exp_lanes(const Lanes& x) {
  Lanes e = x;
  exp_vectors<kVectors>(e.v);
  return e;
}

// Lane l of a vector becomes lane l + kBy, around its end.
template <size_t kBy, size_t... I>
inline FloatVector turned(const FloatVector& v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, ((I + kBy) % kVectorLanes)...);
}

// All lanes, folded in halves: lane l with l + 8, then with l + 4, ...
template <size_t kHalf, typename F>
inline float fold_vector(const FloatVector& v, const F& f) {
  if constexpr (kHalf == 0) {
    return v[0];
  } else {
    return fold_vector<kHalf / 2>(f(v, turned<kHalf>(v, std::make_index_sequence<kVectorLanes>())), f);
  }
}
template <typename F>
inline float fold(const Lanes& x, const F& f) {
  constexpr size_t kHalf = kVectorLanes / 2;
  if constexpr (kVectors == 1) {
    return fold_vector<kHalf>(x.v[0], f);
  } else if constexpr (kVectors == 2) {
    return fold_vector<kHalf>(f(x.v[0], x.v[1]), f);
  } else {
    return fold_vector<kHalf>(f(f(x.v[0], x.v[2]), f(x.v[1], x.v[3])), f);
  }
}
inline float lane_sum(const Lanes& x) {
  return fold(x, [](const FloatVector& a, const FloatVector& b) { return a + b; });
}
inline float lane_max(const Lanes& x) {
  return fold(x, [](const FloatVector& a, const FloatVector& b) { return a > b ? a : b; });
}

}  // namespace
