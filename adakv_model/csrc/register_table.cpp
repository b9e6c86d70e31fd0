// ExecuTorch kernels adakv::{table_lookup,table_product}.out: argument checks around table.h. Schemas: ops.py.
#include "linear/table.h"
#include "register.h"

namespace adakv {
namespace {

bool table_ok(const Tensor& codes, const Tensor& scales) {
  return codes.scalar_type() == ScalarType::Byte && scales.scalar_type() == ScalarType::Half && codes.dim() == 3 &&
         scales.dim() == 3 && codes.size(0) == scales.size(0) && codes.size(1) == scales.size(1) &&
         codes.size(2) == kTableBlockBytes && scales.size(2) == kBlockRows;
}

Table table_of(const Tensor& codes, const Tensor& scales, int64_t rows) {
  return {codes.const_data_ptr<uint8_t>(), reinterpret_cast<const uint16_t*>(scales.const_data_ptr()), rows,
          int(codes.size(1)) * kGroup};
}

Tensor& table_lookup_out(KernelRuntimeContext& ctx, const Tensor& tokens, const Tensor& codes, const Tensor& scales,
                         Tensor& out) {
  ADAKV_CHECK(table_ok(codes, scales) && tokens_ok(tokens, codes.size(0) * kBlockRows));
  const Table table = table_of(codes, scales, codes.size(0) * kBlockRows);
  ADAKV_CHECK(resize<3>(out, {1, SizesType(tokens.numel()), SizesType(table.channels)}));
  table_lookup(table, tokens.const_data_ptr<int64_t>(), int(tokens.numel()), out.mutable_data_ptr<float>());
  return out;
}

Tensor& table_product_out(KernelRuntimeContext& ctx, const Tensor& x, const Tensor& codes, const Tensor& scales,
                          int64_t rows, Tensor& out) {
  ADAKV_CHECK(table_ok(codes, scales) && x.scalar_type() == ScalarType::Float && x.dim() == 3);
  const Table table = table_of(codes, scales, rows);
  ADAKV_CHECK(rows > 0 && table.blocks() == codes.size(0));
  ADAKV_CHECK(x.size(0) == 1 && x.size(2) == table.channels);
  ADAKV_CHECK(resize<3>(out, {1, SizesType(x.size(1)), SizesType(table.rows)}));
  table_product(table, x.const_data_ptr<float>(), int(x.size(1)), out.mutable_data_ptr<float>(), pool(),
                linear_kernels());
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(adakv, "table_lookup.out", table_lookup_out);
EXECUTORCH_LIBRARY(adakv, "table_product.out", table_product_out);

}  // namespace adakv
