// ExecuTorch kernels adakv::{table_lookup,table_product}.out: argument checks around table.h. Schemas: ops.py.
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>

#include "pool.h"
#include "table.h"

namespace adakv {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

#define ADAKV_CHECK(condition) ET_KERNEL_CHECK(ctx, condition, InvalidArgument, out)

bool table_ok(const Tensor& codes, const Tensor& scales) {
  return codes.scalar_type() == ScalarType::Byte && scales.scalar_type() == ScalarType::Half && codes.dim() == 3 &&
         scales.dim() == 3 && codes.size(0) == scales.size(0) && codes.size(1) == scales.size(1) &&
         codes.size(2) == kTableBlockBytes && scales.size(2) == kTableRows;
}

Table table_of(const Tensor& codes, const Tensor& scales, int64_t rows) {
  return {codes.const_data_ptr<uint8_t>(), reinterpret_cast<const uint16_t*>(scales.const_data_ptr()), rows,
          int(codes.size(1)) * kTableGroup};
}

bool resize(Tensor& out, int64_t count, int64_t width) {
  const SizesType sizes[] = {1, SizesType(count), SizesType(width)};
  return executorch::runtime::resize_tensor(out, {sizes, 3}) == Error::Ok;
}

bool tokens_ok(const Tensor& tokens, int64_t rows) {
  const int64_t* ids = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    if (ids[i] < 0 || ids[i] >= rows) {
      ET_LOG(Error, "adakv: token id %lld is outside the vocabulary of %lld", (long long)ids[i], (long long)rows);
      return false;
    }
  }
  return true;
}

Tensor& table_lookup_out(KernelRuntimeContext& ctx, const Tensor& tokens, const Tensor& codes, const Tensor& scales,
                         Tensor& out) {
  ADAKV_CHECK(table_ok(codes, scales) && tokens_ok(tokens, codes.size(0) * kTableRows));
  const Table table = table_of(codes, scales, codes.size(0) * kTableRows);
  ADAKV_CHECK(resize(out, tokens.numel(), table.channels));
  table_lookup(table, tokens.const_data_ptr<int64_t>(), int(tokens.numel()), out.mutable_data_ptr<float>());
  return out;
}

Tensor& table_product_out(KernelRuntimeContext& ctx, const Tensor& x, const Tensor& codes, const Tensor& scales,
                          int64_t rows, Tensor& out) {
  ADAKV_CHECK(table_ok(codes, scales) && x.scalar_type() == ScalarType::Float && x.dim() == 3);
  const Table table = table_of(codes, scales, rows);
  ADAKV_CHECK(rows > 0 && table.blocks() == codes.size(0));
  ADAKV_CHECK(x.size(0) == 1 && x.size(2) == table.channels);
  ADAKV_CHECK(resize(out, x.size(1), table.rows));
  table_product(table, x.const_data_ptr<float>(), int(x.size(1)), out.mutable_data_ptr<float>(), pool(),
                table_kernels());
  return out;
}

}  // namespace

EXECUTORCH_LIBRARY(adakv, "table_lookup.out", table_lookup_out);
EXECUTORCH_LIBRARY(adakv, "table_product.out", table_product_out);

}  // namespace adakv
