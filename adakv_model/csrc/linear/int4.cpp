#include "linear/int4.h"

namespace adakv {

namespace {

void multiply(const Int4Matrix& matrix, const Activations& activations, const float* residual, float* out,
              const ParallelFor& parallel, const LinearKernels& kernels) {
  for_row_tasks(matrix.rows, parallel, [&](int64_t first, int64_t rows) {
    const float* added = residual == nullptr ? nullptr : residual + first;
    kernels.int4(matrix, first, rows, activations.tokens(), added, out + first, matrix.rows);
  });
}

}  // namespace

void norm_linear(const float* x, const float* norm, float eps, const Int4Matrix& matrix, int count, float* out,
                 const ParallelFor& parallel, const LinearKernels& kernels) {
  const int channels = matrix.channels;
  const auto input = [&](int t, float* scratch) {
    kernels.normalize(x + int64_t(t) * channels, norm, eps, channels, scratch);
    return scratch;
  };
  multiply(matrix, {count, channels, kInt4Bias, input, parallel, kernels}, nullptr, out, parallel, kernels);
}

void add_linear(const float* x, const float* residual, const Int4Matrix& matrix, int count, float* out,
                const ParallelFor& parallel, const LinearKernels& kernels) {
  const auto input = [&](int t, float*) { return x + int64_t(t) * matrix.channels; };
  multiply(matrix, {count, matrix.channels, kInt4Bias, input, parallel, kernels}, residual, out, parallel, kernels);
}

void swiglu_linear(const float* gate_up, const float* residual, const Int4Matrix& matrix, int count, float* out,
                   const ParallelFor& parallel, const LinearKernels& kernels) {
  const int channels = matrix.channels;
  const auto input = [&](int t, float* scratch) {
    const float* gate = gate_up + int64_t(t) * 2 * channels;
    kernels.swiglu(gate, gate + channels, channels, scratch);
    return scratch;
  };
  multiply(matrix, {count, channels, kInt4Bias, input, parallel, kernels}, residual, out, parallel, kernels);
}

}  // namespace adakv
