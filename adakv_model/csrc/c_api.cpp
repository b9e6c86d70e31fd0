// The kernels as plain C functions, for tests and for eager runs on the fast kernels (adakv_model/runtime/native.py).
#include <cstring>
#include <thread>
#include <vector>

#include "cache/attend_kernels.h"
#include "cache/cache.h"
#include "linear/int4.h"
#include "linear/table.h"

#define ADAKV_API extern "C" __attribute__((visibility("default")))

namespace {

// Threads of its own: tests must not need ExecuTorch's pool.
adakv::ParallelFor with_threads(int threads) {
  return {threads, [](int n, const std::function<void(int)>& worker) {
            std::vector<std::thread> helpers;
            for (int i = 1; i < n; ++i) helpers.emplace_back(worker, i);
            worker(0);
            for (auto& helper : helpers) helper.join();
          }};
}

}  // namespace

// Rows into the first blocks of a segment, and back. Scales: one byte or fp16 a row, as the widths demand.
ADAKV_API void adakv_quantize_rows(const float* x, int rows, int bits, int dim, int side, uint8_t* packed,
                                   uint8_t* scales) {
  for (int r = 0; r < rows; ++r) {
    uint16_t codes[adakv::kMaxHeadDim];
    adakv::quantize_row(x + int64_t(r) * dim, bits, dim, codes, scales + r * adakv::scale_bytes(bits));
    adakv::store_codes(packed, bits, dim, adakv::Side(side), r, codes);
  }
}

ADAKV_API void adakv_dequantize_rows(const uint8_t* packed, const uint8_t* scales, int rows, int bits, int mode,
                                     int dim, int side, float* x) {
  for (int r = 0; r < rows; ++r) {
    uint16_t codes[adakv::kMaxHeadDim];
    adakv::load_codes(packed, bits, dim, adakv::Side(side), r, codes);
    adakv::dequantize_row(codes, scales + r * adakv::scale_bytes(bits), bits, adakv::ScaleMode(mode), dim,
                          x + int64_t(r) * dim);
  }
}

ADAKV_API void adakv_hadamard(float* x, int rows, int dim) {
  for (int r = 0; r < rows; ++r) adakv::hadamard(x + int64_t(r) * dim, dim);
}

ADAKV_API void adakv_transform(const float* x, int rows, const float* columns, int dim, float* out) {
  for (int r = 0; r < rows; ++r) {
    adakv::attend_kernels().transform(x + int64_t(r) * dim, columns, dim, out + int64_t(r) * dim);
  }
}

ADAKV_API void adakv_depart(const int64_t* tokens, int count, int64_t p, const float* token_log_frequency,
                            int32_t* history, float* observed, int64_t* attention, int ring, int64_t n_attentions,
                            int64_t lag, int64_t window, int64_t departure, float* features) {
  adakv::depart(tokens, count, p, token_log_frequency, history, observed, attention, ring, n_attentions, lag,
                {window, departure}, features);
}

ADAKV_API int adakv_assign(const float* logits, int count, int64_t p, const int32_t* capacities, int n_tiers,
                           int32_t* progress, uint8_t* tiers, int64_t window, int64_t departure, int32_t* plan) {
  return adakv::assign(logits, count, p, capacities, n_tiers, progress, tiers, {window, departure}, plan) ? 0 : 1;
}

ADAKV_API void adakv_observe(const float* logits, const int64_t* tokens, int count, int64_t p, int64_t vocab,
                             float* observed, int ring, float* last_logits, float* surprisal, int threads) {
  adakv::observe(logits, tokens, count, p, vocab, observed, ring, last_logits, surprisal, with_threads(threads));
}

ADAKV_API void adakv_attend(const adakv::AttendArgs* args, int threads) { adakv::attend(*args, with_threads(threads)); }

ADAKV_API int64_t adakv_attend_workspace(const adakv::AttendArgs* args) { return adakv::attend_workspace(*args); }

// One kernel by instruction set, so that every set can be tested on one machine; 1 if the CPU lacks it.
ADAKV_API int adakv_score_rows(const char* isa, int bits, int mode, const uint8_t* codes, const uint8_t* scales,
                               int rows, const float* queries, int n, int dim, float* scores, int64_t stride) {
  const adakv::AttendKernels* kernels = adakv::find_attend_kernels(isa);
  if (kernels == nullptr) return 1;
  std::vector<int8_t> x(size_t(n) * size_t(dim));
  std::vector<float> units(size_t(n) * adakv::kMaxBands);
  std::vector<int32_t> sums(size_t(n) * adakv::kMaxBands);
  for (int q = 0; q < n; ++q) {
    kernels->quantize_query(queries + int64_t(q) * dim, dim, &x[size_t(q) * size_t(dim)],
                            &units[size_t(q) * adakv::kMaxBands], &sums[size_t(q) * adakv::kMaxBands]);
  }
  kernels->score({bits, adakv::ScaleMode(mode), dim, codes, scales, rows},
                 {queries, x.data(), units.data(), sums.data(), n}, scores, stride);
  return 0;
}

ADAKV_API int adakv_accumulate_rows(const char* isa, int bits, int mode, const uint8_t* codes, const uint8_t* scales,
                                    int rows, const float* weights, int n, int dim, float* acc) {
  const adakv::AttendKernels* kernels = adakv::find_attend_kernels(isa);
  if (kernels == nullptr) return 1;
  kernels->accumulate({bits, adakv::ScaleMode(mode), dim, codes, scales, rows}, weights, rows, n, acc);
  return 0;
}

// x[i] = exp(x[i] - largest) over n numbers; their sum and the largest in sums.
ADAKV_API int adakv_softmax_part(const char* isa, float* x, int64_t n, float* sums) {
  const adakv::AttendKernels* kernels = adakv::find_attend_kernels(isa);
  if (kernels == nullptr) return 1;
  sums[0] = kernels->softmax_part(x, n, sums + 1);
  return 0;
}

ADAKV_API const char* adakv_attend_kernels() { return adakv::attend_kernels().name; }

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
