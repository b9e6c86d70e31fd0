// The kernels as plain C functions, for tests and for eager runs on the fast kernels (adakv_model/native.py).
#include <cstring>
#include <thread>
#include <vector>

#include "cache.h"
#include "int4.h"
#include "rows.h"
#include "table.h"

#define ADAKV_API extern "C" __attribute__((visibility("default")))

namespace {

// Threads of its own: tests must not need ExecuTorch's pool. n - 1 helpers take every n-th item.
adakv::ParallelFor with_threads(int threads) {
  return [threads](int n, const std::function<void(int)>& body) {
    std::vector<std::thread> helpers;
    const auto work = [&](int first) {
      for (int i = first; i < n; i += threads) body(i);
    };
    for (int t = 1; t < threads && t < n; ++t) helpers.emplace_back(work, t);
    work(0);
    for (auto& helper : helpers) helper.join();
  };
}

}  // namespace

// Scales: one byte or fp16 a row, as the widths demand.
ADAKV_API void adakv_quantize_rows(const float* x, int rows, int bits, int dim, uint8_t* packed, uint8_t* scales) {
  for (int r = 0; r < rows; ++r) {
    adakv::quantize_row(x + int64_t(r) * dim, bits, dim, packed + int64_t(r) * adakv::row_bytes(bits, dim),
                        scales + r * adakv::scale_bytes(bits));
  }
}

ADAKV_API void adakv_dequantize_rows(const uint8_t* packed, const uint8_t* scales, int rows, int bits, int mode,
                                     int dim, float* x) {
  for (int r = 0; r < rows; ++r) {
    adakv::dequantize_row(packed + int64_t(r) * adakv::row_bytes(bits, dim), scales + r * adakv::scale_bytes(bits),
                          bits, adakv::ScaleMode(mode), dim, x + int64_t(r) * dim);
  }
}

ADAKV_API void adakv_hadamard(float* x, int rows, int dim) {
  for (int r = 0; r < rows; ++r) adakv::hadamard(x + int64_t(r) * dim, dim);
}

ADAKV_API void adakv_transform(const float* x, int rows, const float* matrix, int dim, float* out) {
  std::vector<float> columns(size_t(dim) * dim);
  adakv::transpose(matrix, dim, columns.data());
  for (int r = 0; r < rows; ++r) adakv::transform(x + int64_t(r) * dim, columns.data(), dim, out + int64_t(r) * dim);
}

ADAKV_API void adakv_depart(const int64_t* tokens, int count, int64_t p, const float* token_log_frequency,
                            int32_t* history, float* observed, int64_t* attention, int window, int64_t n_attentions,
                            int64_t lag, float* features) {
  adakv::depart(tokens, count, p, token_log_frequency, history, observed, attention, window, n_attentions, lag,
                features);
}

ADAKV_API int adakv_assign(const float* logits, int count, int64_t p, const int32_t* capacities, int n_tiers,
                           int32_t* progress, uint8_t* tiers, int64_t window, int32_t* plan) {
  return adakv::assign(logits, count, p, capacities, n_tiers, progress, tiers, window, plan) ? 0 : 1;
}

ADAKV_API void adakv_observe(const float* logits, const int64_t* tokens, int count, int64_t p, int64_t vocab,
                             float* observed, int window, float* last_logits, float* surprisal, int threads) {
  adakv::observe(logits, tokens, count, p, vocab, observed, window, last_logits, surprisal, with_threads(threads));
}

ADAKV_API void adakv_attend(const adakv::AttendArgs* args, int threads) { adakv::attend(*args, with_threads(threads)); }

// One row kernel by instruction set, so that every set can be tested on one machine; 1 if the CPU lacks it.
ADAKV_API int adakv_score_rows(const char* isa, int bits, int mode, const uint8_t* codes, const uint8_t* scales,
                               int rows, const float* queries, int n, int dim, float* scores) {
  const adakv::RowKernels* kernels = adakv::find_row_kernels(isa);
  if (kernels == nullptr) return 1;
  kernels->score({bits, adakv::ScaleMode(mode), codes, scales, rows}, queries, n, dim, scores, rows);
  return 0;
}

ADAKV_API int adakv_accumulate_rows(const char* isa, int bits, int mode, const uint8_t* codes, const uint8_t* scales,
                                    int rows, const float* weights, int n, int dim, float* acc) {
  const adakv::RowKernels* kernels = adakv::find_row_kernels(isa);
  if (kernels == nullptr) return 1;
  kernels->accumulate({bits, adakv::ScaleMode(mode), codes, scales, rows}, weights, rows, n, dim, acc);
  return 0;
}

ADAKV_API const char* adakv_row_kernels() { return adakv::row_kernels().name; }

ADAKV_API int adakv_table_product(const char* isa, const uint8_t* codes, const uint16_t* scales, int64_t rows,
                                  int channels, const float* x, int count, float* out, int threads) {
  const adakv::LinearKernels* kernels = adakv::find_linear_kernels(isa);
  if (kernels == nullptr) return 1;
  adakv::table_product({codes, scales, rows, channels}, x, count, out, with_threads(threads), *kernels);
  return 0;
}

ADAKV_API void adakv_table_lookup(const uint8_t* codes, const uint16_t* scales, int64_t rows, int channels,
                                  const int64_t* tokens, int count, float* out) {
  adakv::table_lookup({codes, scales, rows, channels}, tokens, count, out);
}

ADAKV_API int adakv_norm_linear(const char* isa, const uint8_t* blocks, const float* units, int64_t rows, int channels,
                                const float* x, const float* norm, float eps, int count, float* out, int threads) {
  const adakv::LinearKernels* kernels = adakv::find_linear_kernels(isa);
  if (kernels == nullptr) return 1;
  adakv::norm_linear(x, norm, eps, {blocks, units, rows, channels}, count, out, with_threads(threads), *kernels);
  return 0;
}

ADAKV_API int adakv_add_linear(const char* isa, const uint8_t* blocks, const float* units, int64_t rows, int channels,
                               const float* x, const float* residual, int count, float* out, int threads) {
  const adakv::LinearKernels* kernels = adakv::find_linear_kernels(isa);
  if (kernels == nullptr) return 1;
  adakv::add_linear(x, residual, {blocks, units, rows, channels}, count, out, with_threads(threads), *kernels);
  return 0;
}

ADAKV_API int adakv_swiglu_linear(const char* isa, const uint8_t* blocks, const float* units, int64_t rows,
                                  int channels, const float* gate_up, const float* residual, int count, float* out,
                                  int threads) {
  const adakv::LinearKernels* kernels = adakv::find_linear_kernels(isa);
  if (kernels == nullptr) return 1;
  adakv::swiglu_linear(gate_up, residual, {blocks, units, rows, channels}, count, out, with_threads(threads), *kernels);
  return 0;
}
