// ExecuTorch kernels adakv::{norm,add,swiglu}_linear.out: argument checks around int4.h. Schemas: ops.py.
#include "linear/int4.h"
#include "register.h"

namespace adakv {
namespace {

bool matrix_ok(const Tensor& blocks, const Tensor& units) {
  return blocks.scalar_type() == ScalarType::Byte && units.scalar_type() == ScalarType::Float && blocks.dim() == 3 &&
         units.dim() == 3 && blocks.size(2) == kInt4BlockBytes && units.size(0) == blocks.size(0) &&
         units.size(1) == 2 && units.size(2) == kBlockRows;
}

Int4Matrix matrix_of(const Tensor& blocks, const Tensor& units) {
  return {blocks.const_data_ptr<uint8_t>(), units.const_data_ptr<float>(), blocks.size(0) * kBlockRows,
          int(blocks.size(1)) * kGroup};
}

// float32 [1, T, width] with the T of `like`.
bool floats_ok(const Tensor& x, const Tensor& like, int64_t width) {
  return x.scalar_type() == ScalarType::Float && x.dim() == 3 && like.dim() == 3 && x.size(0) == 1 &&
         x.size(1) == like.size(1) && x.size(2) == width;
}

bool resize_rows(Tensor& out, const Tensor& x, const Int4Matrix& matrix) {
  return resize<3>(out, {1, SizesType(x.size(1)), SizesType(matrix.rows)});
}

Tensor& norm_linear_out(KernelRuntimeContext& ctx, const Tensor& x, const Tensor& norm, double eps,
                        const Tensor& blocks, const Tensor& units, Tensor& out) {
  ADAKV_CHECK(matrix_ok(blocks, units));
  const Int4Matrix matrix = matrix_of(blocks, units);
  ADAKV_CHECK(floats_ok(x, x, matrix.channels) && norm.scalar_type() == ScalarType::Float);
  ADAKV_CHECK(norm.numel() == matrix.channels && resize_rows(out, x, matrix));
  norm_linear(x.const_data_ptr<float>(), norm.const_data_ptr<float>(), float(eps), matrix, int(x.size(1)),
              out.mutable_data_ptr<float>(), pool(), linear_kernels());
  return out;
}

Tensor& add_linear_out(KernelRuntimeContext& ctx, const Tensor& x, const Tensor& residual, const Tensor& blocks,
                       const Tensor& units, Tensor& out) {
  ADAKV_CHECK(matrix_ok(blocks, units));
  const Int4Matrix matrix = matrix_of(blocks, units);
  ADAKV_CHECK(floats_ok(x, x, matrix.channels) && floats_ok(residual, x, matrix.rows) && resize_rows(out, x, matrix));
  add_linear(x.const_data_ptr<float>(), residual.const_data_ptr<float>(), matrix, int(x.size(1)),
             out.mutable_data_ptr<float>(), pool(), linear_kernels());
  return out;
}

Tensor& swiglu_linear_out(KernelRuntimeContext& ctx, const Tensor& gate_up, const Tensor& residual,
                          const Tensor& blocks, const Tensor& units, Tensor& out) {
  ADAKV_CHECK(matrix_ok(blocks, units));
  const Int4Matrix matrix = matrix_of(blocks, units);
  ADAKV_CHECK(floats_ok(gate_up, gate_up, 2 * int64_t(matrix.channels)) && floats_ok(residual, gate_up, matrix.rows));
  ADAKV_CHECK(resize_rows(out, gate_up, matrix));
  swiglu_linear(gate_up.const_data_ptr<float>(), residual.const_data_ptr<float>(), matrix, int(gate_up.size(1)),
                out.mutable_data_ptr<float>(), pool(), linear_kernels());
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(adakv, "norm_linear.out", norm_linear_out);
EXECUTORCH_LIBRARY(adakv, "add_linear.out", add_linear_out);
EXECUTORCH_LIBRARY(adakv, "swiglu_linear.out", swiglu_linear_out);

}  // namespace adakv
