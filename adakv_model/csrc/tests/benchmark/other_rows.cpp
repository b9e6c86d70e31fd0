#include "other_rows.h"

#include <arm_neon.h>

#include <cstring>

namespace adakv {

namespace {

constexpr int kQueries = 3;

float32x4_t half_to_float4(const uint16_t* from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }

}  // namespace

void int8_products_3x16c4(const int8_t* x, int k, const int8_t* w, int n, const float* scale, float* out) {
  for (int column = 0; column < n; column += 16) {
    int32x4_t sums[kQueries][4];
    for (auto& query : sums) {
      for (int32x4_t& sum : query) sum = vdupq_n_s32(0);
    }
    for (int i = 0; i < k; i += 4, w += 64) {
      const int8x16_t codes[4] = {vld1q_s8(w), vld1q_s8(w + 16), vld1q_s8(w + 32), vld1q_s8(w + 48)};
      for (int q = 0; q < kQueries; ++q) {
        int32_t four;
        std::memcpy(&four, x + int64_t(q) * k + i, 4);
        const int8x16_t y = vreinterpretq_s8_s32(vdupq_n_s32(four));
        for (int v = 0; v < 4; ++v) sums[q][v] = vdotq_s32(sums[q][v], codes[v], y);
      }
    }
    for (int q = 0; q < kQueries; ++q) {
      for (int v = 0; v < 4; ++v) {
        const float32x4_t value = vmulq_f32(vcvtq_f32_s32(sums[q][v]), vld1q_f32(scale + column + 4 * v));
        vst1q_f32(out + int64_t(q) * n + column + 4 * v, value);
      }
    }
  }
}

void fp16_scores(const float* queries, int dim, const uint16_t* rows, int slots, float* scores) {
  for (int slot = 0; slot < slots; slot += 16) {
    float32x4_t sums[kQueries][4];
    for (auto& query : sums) {
      for (float32x4_t& sum : query) sum = vdupq_n_f32(0.0f);
    }
    for (int c = 0; c < dim; ++c, rows += 16) {
      for (int v = 0; v < 4; ++v) {
        const float32x4_t row = half_to_float4(rows + 4 * v);
        for (int q = 0; q < kQueries; ++q) sums[q][v] = vfmaq_n_f32(sums[q][v], row, queries[q * dim + c]);
      }
    }
    for (int q = 0; q < kQueries; ++q) {
      for (int v = 0; v < 4; ++v) vst1q_f32(scores + int64_t(q) * slots + slot + 4 * v, sums[q][v]);
    }
  }
}

void fp16_sums(const float* weights, int slots, const uint16_t* rows, int dim, float* acc) {
  for (int channel = 0; channel < dim; channel += 16) {
    float32x4_t sums[kQueries][4];
    for (auto& query : sums) {
      for (float32x4_t& sum : query) sum = vdupq_n_f32(0.0f);
    }
    for (int slot = 0; slot < slots; ++slot) {
      for (int v = 0; v < 4; ++v) {
        const float32x4_t row = half_to_float4(rows + int64_t(slot) * dim + channel + 4 * v);
        for (int q = 0; q < kQueries; ++q) sums[q][v] = vfmaq_n_f32(sums[q][v], row, weights[q * slots + slot]);
      }
    }
    for (int q = 0; q < kQueries; ++q) {
      for (int v = 0; v < 4; ++v) vst1q_f32(acc + int64_t(q) * dim + channel + 4 * v, sums[q][v]);
    }
  }
}

}  // namespace adakv
